"""Q4_K and Q5_K: 8 groups of 32 numbers, each with a 6-bit scale and a 6-bit minimum of two half floats.

A block: the half floats of scales and minima, 12 bytes of both, 32 bytes of fifth bits (Q5_K), 128 bytes of
low bits: of each 64 levels, the first 32 in the low halves and the others in the high halves.
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

BLOCK, GROUP, N_GROUPS = 256, 32, 8
SCALES, LEVELS = 4, 16  # where they begin
SCALE_TOP, TWO = np.float32(63), np.float32(2)
TOP_4, TOP_5 = np.float32(15), np.float32(31)
PLAIN_4: Search = (TOP_4, np.float32(-1.0), np.float32(0.1), 20)
PLAIN_5: Search = (TOP_5, np.float32(-0.5), np.float32(0.1), 15)
FIRST, STEP, N_STEPS = np.float32(-0.9), np.float32(0.05), 36


@kernel
def q4_k(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """Rows [n_rows, n] to bytes of Q4_K."""
    all_rows(rows, importance, PLAIN_4, 0, out)


@kernel
def q5_k(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """Rows [n_rows, n] to bytes of Q5_K."""
    all_rows(rows, importance, PLAIN_5, 32, out)


@kernel
def all_rows(rows: np.ndarray, importance: np.ndarray, plain: Search, n_high: int, out: np.ndarray) -> None:
    """Rows [n_rows, n] to bytes; `plain` is how scales are searched without importance."""
    levels, scales, below = floats(BLOCK), floats(N_GROUPS), floats(N_GROUPS)
    top, size = plain[0], LEVELS + n_high + BLOCK // 2
    for row in range(len(rows)):
        for i in range(rows.shape[1] // BLOCK):
            x, block = rows[row, i * BLOCK : (i + 1) * BLOCK], out[row, i * size : (i + 1) * size]
            if len(importance):
                of_row = importance[i * BLOCK : (i + 1) * BLOCK]
                d, m = weighed_groups(x, of_row, top, levels, scales, below, block)
            else:
                d, m = plain_groups(x, plain, levels, scales, below, block)
            for j in range(N_GROUPS):
                part = slice(j * GROUP, (j + 1) * GROUP)
                if d * scales[j] != 0:
                    divide_above(x[part], d * scales[j], m * below[j], top, levels[part])
            put_scales(scales, below, block)
            put_levels(levels, n_high, block)


@kernel
def plain_groups(
    x: np.ndarray,
    plain: Search,
    levels: np.ndarray,
    scales: np.ndarray,
    below: np.ndarray,
    block: np.ndarray,
) -> tuple[np.float32, np.float32]:
    """Whole scales and minima of the largest one's 63rd, levels; stores and returns the half floats."""
    weights, trial = floats(GROUP), floats(GROUP)
    for j in range(N_GROUPS):
        group = x[j * GROUP : (j + 1) * GROUP]
        mean = np.sqrt(sum_of_squares(group) / np.float32(GROUP))
        for k in range(GROUP):
            weights[k] = mean + abs(group[k])
        scales[j], below[j] = affine_scale(
            group, weights, plain, False, levels[j * GROUP : (j + 1) * GROUP], trial
        )
    d = put_half(block, 0, bytes_by_the_largest(scales))
    return d, put_half(block, 2, bytes_by_the_largest(below))


@kernel
def bytes_by_the_largest(x: np.ndarray) -> np.float32:
    """Whole 63rds as `by_the_largest` makes them, kept in bytes, as ggml does."""
    unit = by_the_largest(x, SCALE_TOP)
    for j in range(len(x)):
        x[j] = min(np.float32(np.int64(x[j]) & 255), SCALE_TOP)
    return unit


@kernel
def weighed_groups(
    x: np.ndarray,
    importance: np.ndarray,
    top: np.float32,
    levels: np.ndarray,
    scales: np.ndarray,
    below: np.ndarray,
    block: np.ndarray,
) -> tuple[np.float32, np.float32]:
    """As `plain_groups`, but errors weigh by importance, those of scales and minima too."""
    weights, trial, sums = floats(GROUP), floats(GROUP), np.empty((3, N_GROUPS), np.float32)
    spread = TWO * sum_of_squares(x) / np.float32(BLOCK)
    for j in range(N_GROUPS):
        part = slice(j * GROUP, (j + 1) * GROUP)
        importance_weights(x[part], importance[part], spread, weights)
        sums[0, j] = ordered_sum(weights)
        sums[1, j], sums[2, j] = affine_scale(
            x[part], weights, (top, FIRST, STEP, N_STEPS), False, levels[part], trial
        )
    d = put_half(block, 0, positive_scale(sums[1], sums[0], SCALE_TOP, scales))
    return d, put_half(block, 2, positive_scale(sums[2], sums[0], SCALE_TOP, below))


@kernel
def put_scales(scales: np.ndarray, below: np.ndarray, block: np.ndarray) -> None:
    """Eight 6-bit scales and minima in 12 bytes: the last four's high bits lie above the first four's."""
    for j in range(4):
        first, second = np.int64(scales[j]), np.int64(scales[j + 4])
        first_below, second_below = np.int64(below[j]), np.int64(below[j + 4])
        block[SCALES + j] = first | second >> 4 << 6
        block[SCALES + 4 + j] = first_below | second_below >> 4 << 6
        block[SCALES + 8 + j] = second & 15 | (second_below & 15) << 4


@kernel
def put_levels(levels: np.ndarray, n_high: int, block: np.ndarray) -> None:
    """The levels' low bits, and their fifth bits in `n_high` (0 or 32) bytes before them."""
    block[LEVELS : LEVELS + n_high] = 0
    for pair in range(4):
        for j in range(GROUP):
            a, b = np.int64(levels[64 * pair + j]), np.int64(levels[64 * pair + GROUP + j])
            block[LEVELS + n_high + GROUP * pair + j] = a & 15 | (b & 15) << 4
            if n_high:
                block[LEVELS + j] |= a >> 4 << 2 * pair | b >> 4 << 2 * pair + 1
