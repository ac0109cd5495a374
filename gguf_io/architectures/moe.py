"""Mixtures of experts that are architectures of their own: Qwen3-MoE, OLMoE, Qwen2-MoE, SmallThinker.

Qwen2-MoE has a shared expert too, that every token goes to, behind a gate. SmallThinker's router reads the
layer's input, and its experts are ReLU-gated. Mixtral is a llama with experts, in `llama.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from hotcold.gguf_io.architectures.llama import attention, gated, layer_of, normed_heads
from hotcold.gguf_io.architectures.table import (
    Architecture,
    ExpertFacts,
    TensorRule,
    expert_matrices,
    weight,
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


def _shared() -> tuple[TensorRule, ...]:
    """A shared expert."""
    source = "mlp.shared_expert"
    return (
        weight("ffn_gate_shexp", f"{source}.gate_proj", "n_ff_shexp", "n_embd"),
        weight("ffn_up_shexp", f"{source}.up_proj", "n_ff_shexp", "n_embd"),
        weight("ffn_down_shexp", f"{source}.down_proj", "n_embd", "n_ff_shexp"),
    )


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
    (*_routed(), weight("ffn_gate_inp_shexp", "mlp.shared_expert_gate", "n_embd"), *_shared()),
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
MIXTURES = (QWEN3MOE, OLMOE, QWEN2MOE, SMALLTHINKER)
