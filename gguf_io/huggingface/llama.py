"""Llama, Mistral and Bamboo in Hugging Face's layout."""

from dataclasses import replace

from hotcold.gguf_io.architectures.llama import BAMBOO, LLAMA
from hotcold.gguf_io.architectures.table import Architecture
from hotcold.gguf_io.huggingface.fields import MAX_LAYERS, Fields
from hotcold.gguf_io.huggingface.model import HFModel, context_length, head_sizes
from hotcold.gguf_io.huggingface.rope import read_rope, rotated

ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu"}
BIASES = frozenset(rule.role for rule in LLAMA.layer if rule.optional)


def read_llama(fields: Fields, sparse: bool) -> HFModel:
    """A llama; `sparse`: it comes with predictors."""
    biased = fields.flag("attention_bias", False)
    fields.only("mlp_bias", False, "an FFN with biases is not supported")
    return replace(read_gated(fields, LLAMA), optional=BIASES if biased else frozenset())


def read_mistral(fields: Fields, sparse: bool) -> HFModel:
    """A Mistral; its sliding window is not kept."""
    fields.only("attention_bias", False, "projections with a bias are not supported")
    model = read_gated(fields, LLAMA)
    return without_window(fields, model)


def read_bamboo(fields: Fields, sparse: bool) -> HFModel:
    """A Bamboo."""
    fields.only("attention_bias", False, "projections with a bias are not supported")
    fields.choice("hidden_act", {"relu": "relu"}, "relu")
    model = read_gated(fields, BAMBOO, "relu")
    return without_window(fields, model)


def read_gated(
    fields: Fields, architecture: Architecture, activation: str | None = None, partly: bool = False
) -> HFModel:
    """The hyperparameters that llama-like models share.

    Args:
        activation: what a config without one means.
        partly: whether a part of each head may rotate.
    """
    n_embd = fields.size("hidden_size")
    n_head, n_head_kv, head_dim = head_sizes(
        fields, n_embd, ("num_attention_heads",), ("num_key_value_heads",)
    )
    n_ctx_train = context_length(fields)
    n_rot = rotated(fields, head_dim) if partly else head_dim
    return HFModel(
        architecture=architecture,
        n_vocab=fields.size("vocab_size"),
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_layer=fields.size("num_hidden_layers", largest=MAX_LAYERS),
        n_ff=fields.size("intermediate_size"),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        norm_eps=fields.positive("rms_norm_eps"),
        rope=read_rope(fields, n_rot, n_ctx_train, partly),
        n_rot=n_rot,
        ffn_activation=fields.choice("hidden_act", ACTIVATIONS, activation),
        tied=fields.flag("tie_word_embeddings", False) if "tie_word_embeddings" in fields.values else None,
        token_ids=fields.token_ids(),
    )


def without_window(fields: Fields, model: HFModel) -> HFModel:
    """With a warning where attention would leave out positions that GGUF's llama attends to."""
    window = fields.values.get("sliding_window")
    if window is None or fields.size("sliding_window") >= model.n_ctx_train:
        return model
    text = f"sliding_window {window} is not kept: with more positions than that the text differs"
    return replace(model, warnings=(text,))
