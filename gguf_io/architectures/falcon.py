"""Falcon: attention and FFN side by side, LayerNorm, an FFN without a gate.

The 7 B model has one norm for attention and FFN; the 40 B model has two, attn_norm_2 for attention. One
matrix holds queries, keys and values.
"""

from gguf import GGMLQuantizationType

from hotcold.gguf_io.architectures.table import (
    LAYER_NORM_EPS,
    Architecture,
    in_layer,
    weight,
    with_bias,
)

FALCON = Architecture(
    name="falcon",
    activations=("gelu", "relu"),
    norm_eps=LAYER_NORM_EPS,
    prefix="transformer.",
    whole=(
        weight("token_embd", "transformer.word_embeddings", "n_vocab", "n_embd"),
        *with_bias("output_norm", "transformer.ln_f", "n_embd"),
        weight("output", "lm_head", "n_vocab", "n_embd", optional=True),
    ),
    layer=in_layer(
        "transformer.h.{i}.",
        (
            *with_bias("attn_norm", "ln_mlp", "n_embd"),
            *with_bias("attn_norm_2", "ln_attn", "n_embd", optional=True),
            weight(
                "attn_qkv",
                "self_attention.query_key_value",
                *("n_qkv_dim", "n_embd"),
                layout="stack_qkv",
                parts=(("attn_q", "n_head_dim"), ("attn_k", "n_head_kv_dim"), ("attn_v", "n_head_kv_dim")),
            ),
            weight("attn_output", "self_attention.dense", "n_embd", "n_head_dim"),
            weight("ffn_up", "mlp.dense_h_to_4h", "n_ff", "n_embd"),
            weight("ffn_down", "mlp.dense_4h_to_h", "n_embd", "n_ff"),
        ),
    ),
    ignored=("rotary_emb.inv_freq", "rotary.inv_freq"),
    metadata=(("tensor_data_layout", "jploski"),),
    quantised_head=GGMLQuantizationType.Q8_0,
)
ONE_NORM = FALCON.with_sources({"attn_norm": "transformer.h.{i}.input_layernorm"})
"""The same, by the source names of a model without attn_norm_2."""
