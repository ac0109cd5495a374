"""Q2_K: 16 groups of 16 numbers, each with a 4-bit scale and a 4-bit minimum of two half floats.

A block: 16 bytes with a scale in the low half and a minimum in the high half, 64 bytes of levels, the half
floats of scales and minima.
"""

import numpy as np

from hotcold.gguf_io.quantise.affine import Search, affine_scale, divide_above
from hotcold.gguf_io.quantise.halves import put_half
from hotcold.gguf_io.quantise.jit import kernel
from hotcold.gguf_io.quantise.search import (
    by_the_largest,
    floats,
    importance_weights,
    ordered_sum,
    positive_scale,
    sum_of_squares,
)

BLOCK, GROUP, N_GROUPS, SIZE = 256, 16, 16, 84
LEVELS, D, M = 16, 80, 82  # where they begin
TOP, SCALE_TOP = np.float32(3), np.float32(15)
PLAIN: Search = (TOP, np.float32(-0.5), np.float32(0.1), 15)
WEIGHED: Search = (TOP, np.float32(-0.9), np.float32(0.05), 36)


@kernel
def q2_k(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """Rows [n_rows, n] to bytes."""
    levels, scales, below = floats(BLOCK), floats(N_GROUPS), floats(N_GROUPS)
    for row in range(len(rows)):
        for i in range(rows.shape[1] // BLOCK):
            x, block = rows[row, i * BLOCK : (i + 1) * BLOCK], out[row, i * SIZE : (i + 1) * SIZE]
            if len(importance):
                of_row = importance[i * BLOCK : (i + 1) * BLOCK]
                d, m = weighed_groups(x, of_row, levels, scales, below, block)
            else:
                d, m = plain_groups(x, levels, scales, below, block)
            for j in range(N_GROUPS):
                block[j] = np.int64(scales[j]) & 15 | (np.int64(below[j]) & 15) << 4
                part = slice(j * GROUP, (j + 1) * GROUP)
                if d * scales[j] != 0:
                    divide_above(x[part], d * scales[j], m * below[j], TOP, levels[part])
            put_levels(levels, block)


@kernel
def plain_groups(
    x: np.ndarray, levels: np.ndarray, scales: np.ndarray, below: np.ndarray, block: np.ndarray
) -> tuple[np.float32, np.float32]:
    """Whole scales and minima of the largest one's 15th, levels; stores and returns the half floats."""
    weights, trial = floats(GROUP), floats(GROUP)
    for j in range(N_GROUPS):
        part = slice(j * GROUP, (j + 1) * GROUP)
        weights[:] = np.abs(x[part])
        scales[j], below[j] = affine_scale(x[part], weights, PLAIN, True, levels[part], trial)
    d = put_half(block, D, by_the_largest(scales, SCALE_TOP))
    return d, put_half(block, M, by_the_largest(below, SCALE_TOP))


@kernel
def weighed_groups(
    x: np.ndarray,
    importance: np.ndarray,
    levels: np.ndarray,
    scales: np.ndarray,
    below: np.ndarray,
    block: np.ndarray,
) -> tuple[np.float32, np.float32]:
    """As `plain_groups`, but errors weigh by importance, those of scales and minima too."""
    weights, trial = floats(GROUP), floats(GROUP)
    sums, exact, least = floats(N_GROUPS), floats(N_GROUPS), floats(N_GROUPS)
    spread = sum_of_squares(x) / np.float32(BLOCK)
    for j in range(N_GROUPS):
        part = slice(j * GROUP, (j + 1) * GROUP)
        importance_weights(x[part], importance[part], spread, weights)
        sums[j] = ordered_sum(weights)
        exact[j], least[j] = affine_scale(x[part], weights, WEIGHED, False, levels[part], trial)
    d = put_half(block, D, positive_scale(exact, sums, SCALE_TOP, scales))
    return d, put_half(block, M, positive_scale(least, sums, SCALE_TOP, below))


@kernel
def put_levels(levels: np.ndarray, block: np.ndarray) -> None:
    """Four 32s of levels in the bits of 32 bytes."""
    block[LEVELS : LEVELS + 64] = 0
    for j in range(BLOCK):
        block[LEVELS + 32 * (j // 128) + j % 32] |= np.int64(levels[j]) << 2 * (j // 32 % 4)
