"""Llama, Mistral and Bamboo in Hugging Face's layout.

Mistral's tensors are llama's, and GGUF calls it that. Bamboo is a Mistral whose FFN is
relu(gate n) * relu(up n), an architecture of its own for PowerInfer.
"""

from dataclasses import replace

from hotcold.gguf_io.huggingface.fields import MAX_LAYERS, Fields
from hotcold.gguf_io.huggingface.model import HFModel, context_length, head_sizes
from hotcold.gguf_io.huggingface.rope import read_rope
from hotcold.gguf_io.names import RMS_EPS, ArchitectureNames, Layout, TensorRule

ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu"}
LAYER = "model.layers.{i}."


def projections(layouts: tuple[Layout, Layout], biased: str = "") -> tuple[TensorRule, ...]:
    """Matrices of attention, with biases for those of q, k, v and o that `biased` names.

    Args:
        layouts: of the rows of q and k.
    """
    table: tuple[tuple[str, str, tuple[str, str], Layout], ...] = (
        ("q", "attn_q", ("n_head_dim", "n_embd"), layouts[0]),
        ("k", "attn_k", ("n_head_kv_dim", "n_embd"), layouts[1]),
        ("v", "attn_v", ("n_head_kv_dim", "n_embd"), "same"),
        ("o", "attn_output", ("n_embd", "n_head_dim"), "same"),
    )
    rules = []
    for letter, name, shape, layout in table:
        source = f"{LAYER}self_attn.{letter}_proj"
        rules.append(TensorRule(f"blk.{{i}}.{name}.weight", f"{source}.weight", shape, layout))
        if letter in biased:
            rules.append(TensorRule(f"blk.{{i}}.{name}.bias", f"{source}.bias", shape[:1], layout))
    return tuple(rules)


def names(architecture: str, attention: tuple[TensorRule, ...]) -> ArchitectureNames:
    """The tensors of a llama-like model with these matrices of attention."""
    return ArchitectureNames(
        architecture=architecture,
        norm_eps=RMS_EPS,
        prefix="model.",
        whole=(
            TensorRule("token_embd.weight", "model.embed_tokens.weight", ("n_vocab", "n_embd")),
            TensorRule("output_norm.weight", "model.norm.weight", ("n_embd",)),
        ),
        output=TensorRule("output.weight", "lm_head.weight", ("n_vocab", "n_embd")),
        layer=(
            TensorRule("blk.{i}.attn_norm.weight", f"{LAYER}input_layernorm.weight", ("n_embd",)),
            *attention,
            TensorRule("blk.{i}.ffn_norm.weight", f"{LAYER}post_attention_layernorm.weight", ("n_embd",)),
            TensorRule("blk.{i}.ffn_gate.weight", f"{LAYER}mlp.gate_proj.weight", ("n_ff", "n_embd")),
            TensorRule("blk.{i}.ffn_up.weight", f"{LAYER}mlp.up_proj.weight", ("n_ff", "n_embd")),
        ),
        down=TensorRule("blk.{i}.ffn_down.weight", f"{LAYER}mlp.down_proj.weight", ("n_embd", "n_ff")),
    )


def read_llama(fields: Fields, sparse: bool) -> HFModel:
    """A llama; `sparse`: it comes with predictors."""
    biased = "qkvo" if fields.flag("attention_bias", False) else ""
    fields.only("mlp_bias", False, "an FFN with biases is not supported")
    return read_gated(fields, names("llama", projections(("permute_q", "permute_k"), biased)))


def read_mistral(fields: Fields, sparse: bool) -> HFModel:
    """A Mistral; its sliding window is not kept."""
    fields.only("attention_bias", False, "projections with a bias are not supported")
    model = read_gated(fields, names("llama", projections(("permute_q", "permute_k"))))
    return _without_window(fields, model)


def read_bamboo(fields: Fields, sparse: bool) -> HFModel:
    """A Bamboo."""
    fields.only("attention_bias", False, "projections with a bias are not supported")
    fields.choice("hidden_act", {"relu": "relu"}, "relu")
    model = read_gated(fields, names("bamboo", projections(("permute_q", "permute_k"))), "relu")
    return _without_window(fields, model)


def read_gated(fields: Fields, tensors: ArchitectureNames, activation: str | None = None) -> HFModel:
    """The hyperparameters that llama-like models share; `activation` is what a config without one means."""
    n_embd = fields.size("hidden_size")
    n_head, n_head_kv = head_sizes(fields, n_embd, ("num_attention_heads",), ("num_key_value_heads",))
    return HFModel(
        names=tensors,
        n_vocab=fields.size("vocab_size"),
        n_ctx_train=context_length(fields),
        n_embd=n_embd,
        n_layer=fields.size("num_hidden_layers", largest=MAX_LAYERS),
        n_ff=fields.size("intermediate_size"),
        n_head=n_head,
        n_head_kv=n_head_kv,
        norm_eps=fields.positive("rms_norm_eps"),
        rope=read_rope(fields, n_embd // n_head),
        ffn_activation=fields.choice("hidden_act", ACTIVATIONS, activation),
        tied=fields.flag("tie_word_embeddings", False),
        token_ids=fields.token_ids(),
    )


def _without_window(fields: Fields, model: HFModel) -> HFModel:
    """With a warning where attention would leave out positions that GGUF's llama attends to."""
    window = fields.values.get("sliding_window")
    if window is None or fields.size("sliding_window") >= model.n_ctx_train:
        return model
    text = f"sliding_window {window} is not kept: with more positions than that the text differs"
    return replace(model, warnings=(text,))
