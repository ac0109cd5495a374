"""What tensor cores multiply on cards from sm_80 on: kernels' sizes depend on it, and the planner's model of a card."""

from gguf import GGMLQuantizationType

TERMS_OF_INPUTS = {GGMLQuantizationType.F16: 2, GGMLQuantizationType.BF16: 3}
"""Halves that a number of an input goes as, by the type of the weights that it meets; weights_half.h has the same."""
WIDEST_IN_TILES = 256
"""Numbers of a head whose attention they do at most; attention_tiles.h has the same."""


def in_tiles(kv_type: str, head_dim: int) -> bool:
    """Whether they multiply such a cache."""
    return kv_type == "f16" and head_dim <= WIDEST_IN_TILES
