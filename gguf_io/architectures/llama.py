"""Llama and its kin: RMSNorm, a gated FFN, and a rotation.

Mistral's tensors are llama's, and GGUF calls it that. Bamboo is a Mistral whose FFN is
relu(gate n) * relu(up n), an architecture of its own for PowerInfer. Qwen2 has biases on q, k and v, and
rows as they are; Qwen3 has a norm of each head of q and k in their place.
"""

from collections.abc import Iterator

from hotcold.gguf_io.architectures.table import (
    RMS_EPS,
    Architecture,
    Layout,
    TensorRule,
    bias,
    in_layer,
    weight,
)


def _attention(layout_q: Layout, layout_k: Layout, biased: str, optional: bool) -> Iterator[TensorRule]:
    """The matrices, and biases for those of q, k, v and o that `biased` names."""
    table: tuple[tuple[str, str, tuple[str, str], Layout], ...] = (
        ("q", "attn_q", ("n_head_dim", "n_embd"), layout_q),
        ("k", "attn_k", ("n_head_kv_dim", "n_embd"), layout_k),
        ("v", "attn_v", ("n_head_kv_dim", "n_embd"), "same"),
        ("o", "attn_output", ("n_embd", "n_head_dim"), "same"),
    )
    for letter, role, shape, layout in table:
        source = f"self_attn.{letter}_proj"
        yield weight(role, source, *shape, layout=layout)
        if letter in biased:
            yield bias(role, source, shape[0], layout, optional)


def _normed_heads() -> Iterator[TensorRule]:
    """Rows as they are, and a norm of each head of q and k."""
    yield from _attention("same", "same", "", optional=False)
    for letter in "qk":
        yield weight(f"attn_{letter}_norm", f"self_attn.{letter}_norm", "head_dim")


def _gated(name: str, activations: tuple[str, ...], attention: Iterator[TensorRule]) -> Architecture:
    return Architecture(
        name=name,
        activations=activations,
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
                *attention,
                weight("ffn_norm", "post_attention_layernorm", "n_embd"),
                weight("ffn_gate", "mlp.gate_proj", "n_ff", "n_embd"),
                weight("ffn_up", "mlp.up_proj", "n_ff", "n_embd"),
                weight("ffn_down", "mlp.down_proj", "n_embd", "n_ff"),
            ),
        ),
    )


LLAMA = _gated("llama", ("silu", "relu"), _attention("permute_q", "permute_k", "qkvo", optional=True))
BAMBOO = _gated("bamboo", ("relu",), _attention("permute_q", "permute_k", "", optional=False))
QWEN2 = _gated("qwen2", ("silu", "relu"), _attention("same", "same", "qkv", optional=False))
QWEN3 = _gated("qwen3", ("silu", "relu"), _normed_heads())
