"""Llama and its kin: RMSNorm, a gated FFN, and a rotation.

Mistral's tensors are llama's, and GGUF calls it that. Bamboo is a Mistral whose FFN is
relu(gate n) * relu(up n), an architecture of its own for PowerInfer. Qwen2 has biases on q, k and v, and
rows as they are; Qwen3 has a norm of each head of q and k in their place.
"""

from collections.abc import Iterable, Iterator

from hotcold.gguf_io.architectures.table import (
    RMS_EPS,
    Architecture,
    ExpertFacts,
    Layout,
    TensorRule,
    bias,
    expert_matrices,
    in_layer,
    weight,
)


def attention(layout_q: Layout, layout_k: Layout, biased: str, optional: bool) -> Iterator[TensorRule]:
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


def normed_heads() -> Iterator[TensorRule]:
    """Rows as they are, and a norm of each head of q and k."""
    yield from attention("same", "same", "", optional=False)
    for letter in "qk":
        yield weight(f"attn_{letter}_norm", f"self_attn.{letter}_norm", "head_dim")


DENSE = (
    weight("ffn_gate", "mlp.gate_proj", "n_ff", "n_embd"),
    weight("ffn_up", "mlp.up_proj", "n_ff", "n_embd"),
    weight("ffn_down", "mlp.down_proj", "n_embd", "n_ff"),
)


def layer_of(attention: Iterable[TensorRule], ffn: Iterable[TensorRule]) -> tuple[TensorRule, ...]:
    """The tensors of a layer with this attention and this FFN."""
    norm = weight("ffn_norm", "post_attention_layernorm", "n_embd")
    rules = (weight("attn_norm", "input_layernorm", "n_embd"), *attention, norm, *ffn)
    return in_layer("model.layers.{i}.", rules)


def gated(
    name: str,
    activations: tuple[str, ...],
    layer: tuple[TensorRule, ...],
    experts: ExpertFacts | None = None,
    always_experts: bool = False,
) -> Architecture:
    """An architecture whose layers have these tensors, and whose other tensors are llama's."""
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
        layer=layer,
        experts=experts,
        always_experts=always_experts,
    )


_LLAMA = tuple(attention("permute_q", "permute_k", "qkvo", optional=True))
MIXTRAL = ExpertFacts(
    layer=layer_of(
        _LLAMA,
        (
            weight("ffn_gate_inp", "block_sparse_moe.gate", "n_expert", "n_embd"),
            *expert_matrices("block_sparse_moe.experts", "w1", "w3", "w2"),
        ),
    ),
    gating="softmax",
    normed=True,
    width="feed_forward_length",
)
LLAMA = gated("llama", ("silu", "relu"), layer_of(_LLAMA, DENSE), MIXTRAL)
BAMBOO = gated("bamboo", ("relu",), layer_of(attention("permute_q", "permute_k", "", optional=False), DENSE))
QWEN2 = gated("qwen2", ("silu", "relu"), layer_of(attention("same", "same", "qkv", optional=False), DENSE))
QWEN3 = gated("qwen3", ("silu", "relu"), layer_of(normed_heads(), DENSE))
