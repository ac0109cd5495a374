"""Frequencies of RoPE that config.json stretches, in float64, as transformers' documentation has them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def yarn(f: F64, base: float, head_dim: int, scaling: Mapping[str, Any]) -> F64:
    """transformers' `_compute_yarn_parameters`: a ramp between pairs that turn fast and slow."""
    n_ctx = scaling["original_max_position_embeddings"]
    fast, slow = (
        head_dim * math.log(n_ctx / (scaling.get(f"beta_{name}", usual) * 2 * math.pi)) / (2 * math.log(base))
        for name, usual in (("fast", 32), ("slow", 1))
    )
    if scaling.get("truncate", True):
        fast, slow = math.floor(fast), math.ceil(slow)
    fast, slow = max(fast, 0), min(slow, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - fast) / (slow - fast), 0, 1)
    stretched: F64 = f / scaling["factor"] * ramp + f * (1 - ramp)
    return stretched


def llama3(frequency: float, scaling: Mapping[str, Any]) -> float:
    n_ctx, wave = scaling["original_max_position_embeddings"], 2 * math.pi / frequency
    if wave < n_ctx / scaling["high_freq_factor"]:
        return frequency
    if wave > n_ctx / scaling["low_freq_factor"]:
        return float(frequency / scaling["factor"])
    smooth = (n_ctx / wave - scaling["low_freq_factor"]) / (
        scaling["high_freq_factor"] - scaling["low_freq_factor"]
    )
    return float((1 - smooth) * frequency / scaling["factor"] + smooth * frequency)
