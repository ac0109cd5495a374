"""Granite: llama with multipliers, and a mixture of experts whose shared expert has no gate."""

from dataclasses import replace

from hotcold.gguf_io.architectures.llama import DENSE, attention, gated, layer_of

GRANITE = replace(
    gated(
        "granite",
        ("silu", "relu"),
        layer_of(attention("permute_q", "permute_k", "qkvo", optional=True), DENSE),
    ),
    multipliers=True,
    rotation_may_be_off=True,
)
