"""OPT: learned positions, LayerNorm in front, biases everywhere, a tied head, an FFN without a gate."""

from hotcold.gguf_io.architectures.table import (
    LAYER_NORM_EPS,
    Architecture,
    in_layer,
    weight,
    with_bias,
)

N_UNUSED_POSITIONS = 2  # rows of position_embd in front of position 0
DECODER = "model.decoder."

OPT = Architecture(
    name="opt",
    activations=("relu",),
    norm_eps=LAYER_NORM_EPS,
    prefix="model.",
    whole=(
        weight("token_embd", f"{DECODER}embed_tokens", "n_vocab", "n_embd"),
        weight("position_embd", f"{DECODER}embed_positions", "n_positions", "n_embd"),
        *with_bias("output_norm", f"{DECODER}final_layer_norm", "n_embd"),
        weight("output", "lm_head", "n_vocab", "n_embd", optional=True),
    ),
    layer=in_layer(
        f"{DECODER}layers.{{i}}.",
        (
            *with_bias("attn_norm", "self_attn_layer_norm", "n_embd"),
            *with_bias("attn_q", "self_attn.q_proj", "n_head_dim", "n_embd"),
            *with_bias("attn_k", "self_attn.k_proj", "n_head_kv_dim", "n_embd"),
            *with_bias("attn_v", "self_attn.v_proj", "n_head_kv_dim", "n_embd"),
            *with_bias("attn_output", "self_attn.out_proj", "n_embd", "n_head_dim"),
            *with_bias("ffn_norm", "final_layer_norm", "n_embd"),
            *with_bias("ffn_up", "fc1", "n_ff", "n_embd"),
            *with_bias("ffn_down", "fc2", "n_embd", "n_ff"),
        ),
    ),
    ignored=("decoder.version",),
    powerinfer_norm_eps=0.0,
    powerinfer_ties=True,
    pretokenizers=(("gpt-2", "opt"),),
)
