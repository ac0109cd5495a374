"""Q3_K: 16 groups of 16 numbers, each with a signed 6-bit scale of one half float.

A block: 32 bytes of high bits, 64 of low ones, 12 of scales, the half float.
"""

import numpy as np

from hotcold.gguf_io.quantise.halves import put_half
from hotcold.gguf_io.quantise.jit import kernel
from hotcold.gguf_io.quantise.search import (
    ONE,
    ZERO,
    divide_to,
    floats,
    importance_weights,
    largest,
    moved_scale,
    ordered_sum,
    round_to,
    signed_scale,
    squares,
    sum_of_squares,
)

BLOCK, GROUP, N_GROUPS, SIZE = 256, 16, 16, 110
LOW, SCALES, D = 32, 96, 108  # where they begin
TOP, SCALE_TOP, TWO = np.float32(4), np.float32(32), np.float32(2)


@kernel
def q3_k(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """Rows [n_rows, n] to bytes."""
    levels, scales = floats(BLOCK), floats(N_GROUPS)
    for row in range(len(rows)):
        for i in range(rows.shape[1] // BLOCK):
            x, block = rows[row, i * BLOCK : (i + 1) * BLOCK], out[row, i * SIZE : (i + 1) * SIZE]
            if len(importance):
                d = weighed_groups(x, importance[i * BLOCK : (i + 1) * BLOCK], levels, scales, block)
            else:
                d = plain_groups(x, levels, scales, block)
            for j in range(N_GROUPS):
                part = slice(j * GROUP, (j + 1) * GROUP)
                if d * scales[j] != 0:
                    divide_to(x[part], d * scales[j], -TOP, TOP - ONE, levels[part])
            put_scales(scales, block)
            put_levels(levels, block)


@kernel
def plain_groups(x: np.ndarray, levels: np.ndarray, scales: np.ndarray, block: np.ndarray) -> np.float32:
    """Whole scales of the largest one's 32nd, levels; stores and returns the half float."""
    weights = floats(GROUP)
    for j in range(N_GROUPS):
        part = slice(j * GROUP, (j + 1) * GROUP)
        squares(x[part], weights)
        scales[j] = moved_scale(x[part], weights, TOP, levels[part])
    far = largest(scales)
    if far == 0:
        scales[:] = -SCALE_TOP  # stored as 0
        return put_half(block, D, ZERO)
    round_to(scales, -SCALE_TOP / far, -SCALE_TOP, SCALE_TOP - ONE, scales)
    return put_half(block, D, ONE / (-SCALE_TOP / far))


@kernel
def weighed_groups(
    x: np.ndarray, importance: np.ndarray, levels: np.ndarray, scales: np.ndarray, block: np.ndarray
) -> np.float32:
    """As `plain_groups`, but errors weigh by importance, those of scales too."""
    weights, trial, sums, exact = floats(GROUP), floats(GROUP), floats(N_GROUPS), floats(N_GROUPS)
    spread = TWO * sum_of_squares(x) / np.float32(BLOCK)
    for j in range(N_GROUPS):
        part = slice(j * GROUP, (j + 1) * GROUP)
        importance_weights(x[part], importance[part], spread, weights)
        sums[j] = ordered_sum(weights)
        exact[j] = signed_scale(x[part], weights, TOP, levels[part], trial)
    return put_half(block, D, signed_scale(exact, sums, SCALE_TOP, scales, trial))


@kernel
def put_scales(scales: np.ndarray, block: np.ndarray) -> None:
    """16 scales from -32 to 31 in 12 bytes: low halves in 8, two high bits of each in 4."""
    block[SCALES : SCALES + 12] = 0
    for j in range(N_GROUPS):
        code = np.int64(scales[j] + SCALE_TOP)
        block[SCALES + j % 8] |= (code & 15) << 4 * (j // 8)
        block[SCALES + 8 + j % 4] |= code >> 4 << 2 * (j // 4)


@kernel
def put_levels(levels: np.ndarray, block: np.ndarray) -> None:
    """Levels from -4 to 3: bit 2 of the 32s one above the other, low bits of four 32s in a byte."""
    block[: LOW + 64] = 0
    for j in range(BLOCK):
        code = np.int64(levels[j] + TOP)
        block[j % 32] |= code >> 2 << j // 32
        block[LOW + 32 * (j // 128) + j % 32] |= (code & 3) << 2 * (j // 32 % 4)
