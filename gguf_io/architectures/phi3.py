"""Phi-3: llama whose queries, keys and values are one matrix, and gate and up another."""

from hotcold.gguf_io.architectures.table import RMS_EPS, Architecture, in_layer, weight

PHI3 = Architecture(
    name="phi3",
    activations=("silu", "relu"),
    norm_eps=RMS_EPS,
    prefix="model.",
    whole=(
        weight("token_embd", "model.embed_tokens", "n_vocab", "n_embd"),
        weight("output_norm", "model.norm", "n_embd"),
        weight("output", "lm_head", "n_vocab", "n_embd", optional=True),
    ),
    layer=in_layer(
        "model.layers.{i}.",
        (
            weight("attn_norm", "input_layernorm", "n_embd"),
            weight(
                "attn_qkv",
                "self_attn.qkv_proj",
                *("n_qkv_dim", "n_embd"),
                parts=(("attn_q", "n_head_dim"), ("attn_k", "n_head_kv_dim"), ("attn_v", "n_head_kv_dim")),
            ),
            weight("attn_output", "self_attn.o_proj", "n_embd", "n_head_dim"),
            weight("ffn_norm", "post_attention_layernorm", "n_embd"),
            weight(
                "ffn_up",
                "mlp.gate_up_proj",
                *("n_gate_up", "n_embd"),
                parts=(("ffn_gate", "n_ff"), ("ffn_up", "n_ff")),
            ),
            weight("ffn_down", "mlp.down_proj", "n_embd", "n_ff"),
        ),
    ),
)
