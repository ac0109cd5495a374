"""Mixtures of experts that are architectures of their own: of Qwen, OLMoE, Granite, gpt-oss, SmallThinker.

Qwen2-MoE has a shared expert too, that every token goes to, behind a gate. SmallThinker's router reads the
layer's input, and its experts are ReLU-gated. gpt-oss has biases everywhere, sinks and windows. Mixtral is a llama
with experts, in `llama.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from hotcold.gguf_io.architectures.llama import attention, gated, layer_of, normed_heads
from hotcold.gguf_io.architectures.table import (
    Architecture,
    ExpertFacts,
    TensorRule,
    WindowFacts,
    expert_matrices,
    in_layer,
    weight,
    with_bias,
)

EXPERT_WIDTH, SHARED_WIDTH = "expert_feed_forward_length", "expert_shared_feed_forward_length"


def _experts(
    name: str, activation: str, attention: Iterable[TensorRule], ffn: Iterable[TensorRule], facts: ExpertFacts
) -> Architecture:
    layer = layer_of(attention, ffn)
    return gated(name, (activation,), layer, replace(facts, layer=layer), always_experts=True)


def _routed() -> tuple[TensorRule, ...]:
    """A router and its experts, as most have them."""
    return (
        weight("ffn_gate_inp", "mlp.gate", "n_expert", "n_embd"),
        *expert_matrices("mlp.experts", "gate_proj", "up_proj", "down_proj"),
    )


def _shared(source: str = "mlp.shared_expert", optional: bool = False) -> tuple[TensorRule, ...]:
    """A shared expert."""
    table = (
        ("ffn_gate_shexp", "gate_proj", "n_ff_shexp", "n_embd"),
        ("ffn_up_shexp", "up_proj", "n_ff_shexp", "n_embd"),
        ("ffn_down_shexp", "down_proj", "n_embd", "n_ff_shexp"),
    )
    return tuple(weight(role, f"{source}.{name}", *shape, optional=optional) for role, name, *shape in table)


def _biases_of_experts() -> Iterator[TensorRule]:
    """A number a row and expert."""
    for part, size in (("gate", "n_ff_exp"), ("up", "n_ff_exp"), ("down", "n_embd")):
        role, source = f"ffn_{part}_exps", f"mlp.experts.{part}_proj_bias"
        yield TensorRule(f"{role}_bias", f"{role}.bias", source, ("n_expert", size))


def _normed_rows() -> Iterator[TensorRule]:
    """Rows as they are, and a norm of all heads of q together, and of k."""
    yield from attention("same", "same", "", optional=False)
    yield weight("attn_q_norm", "self_attn.q_norm", "n_head_dim")
    yield weight("attn_k_norm", "self_attn.k_norm", "n_head_kv_dim")


QWEN3MOE = _experts(
    "qwen3moe", "silu", normed_heads(), _routed(), ExpertFacts((), "softmax", normed=True, width=EXPERT_WIDTH)
)
OLMOE = _experts(
    "olmoe",
    "silu",
    _normed_rows(),
    _routed(),
    ExpertFacts((), "softmax", normed=False, width="feed_forward_length"),
)
QWEN2MOE = _experts(
    "qwen2moe",
    "silu",
    attention("same", "same", "qkv", optional=False),
    (
        *_routed(),
        weight("ffn_gate_inp_shexp", "mlp.shared_expert_gate", "n_embd", layout="one_row"),
        *_shared(),
    ),
    ExpertFacts((), "softmax", normed=False, width=EXPERT_WIDTH, shared_width=SHARED_WIDTH),
)
SMALLTHINKER = _experts(
    "smallthinker",
    "relu",
    attention("same", "same", "", optional=False),
    (
        weight("ffn_gate_inp", "block_sparse_moe.primary_router", "n_expert", "n_embd"),
        *expert_matrices("block_sparse_moe.experts", "gate", "up", "down"),
    ),
    ExpertFacts((), "", normed=True, width=EXPERT_WIDTH),
)
SMALLTHINKER = replace(SMALLTHINKER, windows=WindowFacts(period=4, first_sees_all=True, size=4096))
"""Layers with a window rotate; the others do so only in models without windows, or of four layers."""

_GRANITE_EXPERTS = layer_of(
    attention("permute_q", "permute_k", "", optional=False),
    (
        weight("ffn_gate_inp", "block_sparse_moe.router.layer", "n_expert", "n_embd"),
        *expert_matrices("block_sparse_moe.experts", "gate", "up", "down"),
        *_shared("shared_mlp", optional=True),
    ),
)
GRANITEMOE = replace(
    gated(
        "granitemoe",
        ("silu",),
        _GRANITE_EXPERTS,
        ExpertFacts(
            _GRANITE_EXPERTS,
            "softmax",
            normed=True,
            width="feed_forward_length",
            shared_width=SHARED_WIDTH,
            may_lack_shared=True,
        ),
        always_experts=True,
    ),
    multipliers=True,
)

_GPT_OSS = in_layer(
    "model.layers.{i}.",
    (
        weight("attn_norm", "input_layernorm", "n_embd"),
        *attention("same", "same", "qkvo", optional=False),
        TensorRule("attn_sinks", "attn_sinks.weight", "self_attn.sinks", ("n_head",)),
        weight("post_attention_norm", "post_attention_layernorm", "n_embd"),
        *with_bias("ffn_gate_inp", "mlp.router", "n_expert", "n_embd"),
        *expert_matrices("mlp.experts", "gate_proj", "up_proj", "down_proj"),
        *_biases_of_experts(),
    ),
)
GPT_OSS = replace(
    gated(
        "gpt-oss",
        ("swiglu_oai",),
        _GPT_OSS,
        ExpertFacts(_GPT_OSS, "softmax_chosen", normed=False, width=EXPERT_WIDTH),
        always_experts=True,
    ),
    windows=WindowFacts(period=2, required=True),
)
MIXTURES = (QWEN3MOE, OLMOE, QWEN2MOE, SMALLTHINKER, GRANITEMOE, GPT_OSS)
