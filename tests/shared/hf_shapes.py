"""Small models of each layout: what their config.json says, and the names and shapes of their tensors."""

from collections.abc import Iterator
from typing import Any

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
FALCON: dict[str, Any] = {
    "model_type": "falcon",
    "architectures": ["FalconForCausalLM"],
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 40,
    "layer_norm_epsilon": 1e-5,
    "alibi": False,
    "bias": False,
    "parallel_attn": True,
    "multi_query": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "mistral": LLAMA | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
    "bamboo": LLAMA | {"model_type": "bamboo", "architectures": ["BambooForCausalLM"], "hidden_act": "relu"},
    "qwen2": LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "falcon-7b": FALCON | {"num_kv_heads": 4},
    "falcon-40b": FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True},
    "qwen3": LLAMA | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 24},
    "phi3": LLAMA | {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]},
    "granite": LLAMA
    | {
        "model_type": "granite",
        "architectures": ["GraniteForCausalLM"],
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.12,
        "logits_scaling": 4.0,
    },
    "gemma3": LLAMA
    | {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_activation": "gelu_pytorch_tanh",
        "num_hidden_layers": 7,
        "head_dim": 24,
        "query_pre_attn_scalar": 24,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 4,
        "tie_word_embeddings": False,
    },
    "mixtral": LLAMA
    | {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": LLAMA
    | {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "head_dim": 24,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "qwen2_moe": LLAMA
    | {
        "model_type": "qwen2_moe",
        "architectures": ["Qwen2MoeForCausalLM"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    },
    "olmoe": LLAMA
    | {
        "model_type": "olmoe",
        "architectures": ["OlmoeForCausalLM"],
        "num_key_value_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "smallthinker": {k: v for k, v in LLAMA.items() if k not in ("intermediate_size", "hidden_act")}
    | {
        "model_type": "smallthinker",
        "architectures": ["SmallThinkerForCausalLM"],
        "head_dim": 24,
        "moe_num_primary_experts": 4,
        "moe_num_active_primary_experts": 2,
        "moe_ffn_hidden_size": 32,
    },
    "granite_moe": LLAMA
    | {
        "model_type": "granitemoeshared",
        "architectures": ["GraniteMoeSharedForCausalLM"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 32,
        "shared_intermediate_size": 64,
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.12,
        "logits_scaling": 4.0,
    },
    "gpt_oss": LLAMA
    | {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "num_hidden_layers": 4,
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
        "head_dim": 32,
        "attention_bias": True,
        "sliding_window": 4,
        "rope_theta": 150000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16},
        "swiglu_limit": 7.0,
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "opt": {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "word_embed_proj_dim": 64,
        "hidden_size": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 40,
        "max_position_embeddings": 128,
    },
}
Shapes = Iterator[tuple[str, tuple[int, ...]]]


EXPERTS = {
    "mixtral": ("block_sparse_moe", "gate", ("w1", "w3", "w2")),
    "qwen3_moe": ("mlp", "gate", ("gate_proj", "up_proj", "down_proj")),
    "qwen2_moe": ("mlp", "gate", ("gate_proj", "up_proj", "down_proj")),
    "olmoe": ("mlp", "gate", ("gate_proj", "up_proj", "down_proj")),
    "smallthinker": ("block_sparse_moe", "primary_router", ("gate", "up", "down")),
}
"""Of a mixture of experts, where they are in a layer, the router's name, and their matrices' names."""
STACKED = ("granitemoe", "granitemoeshared", "gpt_oss")


def expert_sizes(c: dict[str, Any]) -> tuple[int, int, int]:
    """Experts, those that a token goes to, and rows of each."""
    names = (
        ("num_local_experts", "num_experts", "moe_num_primary_experts"),
        ("num_experts_per_tok", "moe_num_active_primary_experts"),
        ("moe_intermediate_size", "moe_ffn_hidden_size", "intermediate_size"),
    )
    n_expert, n_used, n_ff = (next(int(c[name]) for name in some if name in c) for some in names)
    return n_expert, n_used, n_ff


def _expert_shapes(c: dict[str, Any], layer: str) -> Shapes:
    if c["model_type"] in STACKED:
        yield from _stacked_shapes(c, layer)
        return
    e, (n_expert, _, f) = c["hidden_size"], expert_sizes(c)
    where, router, (gate, up, down) = EXPERTS[c["model_type"]]
    yield f"{layer}{where}.{router}.weight", (n_expert, e)
    for i in range(n_expert):
        for name, shape in ((gate, (f, e)), (up, (f, e)), (down, (e, f))):
            yield f"{layer}{where}.experts.{i}.{name}.weight", shape
    if shared := c.get("shared_expert_intermediate_size"):
        yield f"{layer}mlp.shared_expert_gate.weight", (1, e)
        yield f"{layer}mlp.shared_expert.gate_proj.weight", (shared, e)
        yield f"{layer}mlp.shared_expert.up_proj.weight", (shared, e)
        yield f"{layer}mlp.shared_expert.down_proj.weight", (e, shared)


def _stacked_shapes(c: dict[str, Any], layer: str) -> Shapes:
    """Experts that are one tensor a layer: of Granite, and of gpt-oss, whose numbers are those of MXFP4 blocks."""
    e, (n_expert, _, f) = c["hidden_size"], expert_sizes(c)
    if c["model_type"] == "gpt_oss":
        yield f"{layer}self_attn.sinks", (c["num_attention_heads"],)
        yield f"{layer}mlp.router.weight", (n_expert, e)
        yield f"{layer}mlp.router.bias", (n_expert,)
        for name, rows, n in (("gate_up_proj", 2 * f, e), ("down_proj", e, f)):
            yield f"{layer}mlp.experts.{name}_blocks", (n_expert, rows, n // 32, 16)
            yield f"{layer}mlp.experts.{name}_scales", (n_expert, rows, n // 32)
            yield f"{layer}mlp.experts.{name}_bias", (n_expert, rows)
        return
    yield f"{layer}block_sparse_moe.router.layer.weight", (n_expert, e)
    yield f"{layer}block_sparse_moe.input_linear.weight", (n_expert, 2 * f, e)
    yield f"{layer}block_sparse_moe.output_linear.weight", (n_expert, e, f)
    if shared := c.get("shared_intermediate_size"):
        yield f"{layer}shared_mlp.input_linear.weight", (2 * shared, e)
        yield f"{layer}shared_mlp.output_linear.weight", (e, shared)


def _norms_of_heads(c: dict[str, Any], q: int, kv: int, head_dim: int) -> list[tuple[str, int]]:
    """Norms of queries and keys, and their lengths."""
    if c["model_type"] == "olmoe":
        return [("q", q), ("k", kv)]
    return [(letter, head_dim) for letter in "qk" if c["model_type"] in ("qwen3", "qwen3_moe", "gemma3_text")]


def llama_shapes(c: dict[str, Any]) -> Shapes:
    e, f, v = c["hidden_size"], c.get("intermediate_size", 0), c["vocab_size"]
    head_dim = c.get("head_dim", e // c["num_attention_heads"])
    q, kv = head_dim * c["num_attention_heads"], head_dim * c["num_key_value_heads"]
    biased = {"qwen2": "qkv", "qwen2_moe": "qkv"}.get(
        c["model_type"], "qkvo" if c.get("attention_bias") else ""
    )
    yield "model.embed_tokens.weight", (v, e)
    yield "model.norm.weight", (e,)
    if not c.get("tie_word_embeddings"):
        yield "lm_head.weight", (v, e)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield f"{layer}input_layernorm.weight", (e,)
        yield f"{layer}post_attention_layernorm.weight", (e,)
        for letter, n in _norms_of_heads(c, q, kv, head_dim):
            yield f"{layer}self_attn.{letter}_norm.weight", (n,)
        if c["model_type"] == "gemma3_text":
            for norm in ("pre_feedforward", "post_feedforward"):
                yield f"{layer}{norm}_layernorm.weight", (e,)
        if c["model_type"] == "phi3":
            yield f"{layer}self_attn.qkv_proj.weight", (q + 2 * kv, e)
            yield f"{layer}self_attn.o_proj.weight", (e, q)
            yield f"{layer}mlp.gate_up_proj.weight", (2 * f, e)
            yield f"{layer}mlp.down_proj.weight", (e, f)
            continue
        for letter, n in (("q", q), ("k", kv), ("v", kv), ("o", e)):
            yield f"{layer}self_attn.{letter}_proj.weight", (n, q if letter == "o" else e)
            if letter in biased:
                yield f"{layer}self_attn.{letter}_proj.bias", (n,)
        if c["model_type"] in (*EXPERTS, *STACKED):
            yield from _expert_shapes(c, layer)
            continue
        yield f"{layer}mlp.gate_proj.weight", (f, e)
        yield f"{layer}mlp.up_proj.weight", (f, e)
        yield f"{layer}mlp.down_proj.weight", (e, f)


def falcon_n_head_kv(c: dict[str, Any]) -> int:
    """Key and value heads: one, unless the decoder is new or not "multi_query"."""
    if c.get("new_decoder_architecture") or not c["multi_query"]:
        return int(c["num_kv_heads"])
    return 1


def falcon_norms(c: dict[str, Any]) -> tuple[str, ...]:
    """Of the FFN and of attention; one for both in an old decoder."""
    two = c.get("num_ln_in_parallel_attn", 2 if c.get("new_decoder_architecture") else 1) == 2
    return ("ln_mlp", "ln_attn") if two else ("input_layernorm",)


def _falcon_shapes(c: dict[str, Any]) -> Shapes:
    e, f, v = c["hidden_size"], c["ffn_hidden_size"], c["vocab_size"]
    head_dim = e // c["num_attention_heads"]
    yield "transformer.word_embeddings.weight", (v, e)
    yield "transformer.ln_f.weight", (e,)
    yield "transformer.ln_f.bias", (e,)
    if not c.get("tie_word_embeddings"):
        yield "lm_head.weight", (v, e)
    for i in range(c["num_hidden_layers"]):
        layer = f"transformer.h.{i}."
        for norm in falcon_norms(c):
            yield f"{layer}{norm}.weight", (e,)
            yield f"{layer}{norm}.bias", (e,)
        yield f"{layer}self_attention.query_key_value.weight", (e + 2 * head_dim * falcon_n_head_kv(c), e)
        yield f"{layer}self_attention.dense.weight", (e, e)
        yield f"{layer}mlp.dense_h_to_4h.weight", (f, e)
        yield f"{layer}mlp.dense_4h_to_h.weight", (e, f)


def _opt_shapes(c: dict[str, Any]) -> Shapes:
    e, f = c["hidden_size"], c["ffn_dim"]
    yield "model.decoder.embed_tokens.weight", (c["vocab_size"], e)
    yield "model.decoder.embed_positions.weight", (c["max_position_embeddings"] + 2, e)
    yield "model.decoder.final_layer_norm.weight", (e,)
    yield "model.decoder.final_layer_norm.bias", (e,)
    matrices = {f"self_attn.{letter}_proj": (e, e) for letter in ("q", "k", "v", "out")}
    matrices |= {"fc1": (f, e), "fc2": (e, f)}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.decoder.layers.{i}."
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            yield f"{layer}{norm}.weight", (e,)
            yield f"{layer}{norm}.bias", (e,)
        for name, shape in matrices.items():
            yield f"{layer}{name}.weight", shape
            yield f"{layer}{name}.bias", shape[:1]


SHAPES = {"falcon": _falcon_shapes, "opt": _opt_shapes}  # all others are like llama
