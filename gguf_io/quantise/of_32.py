"""Q4_0, Q5_0, Q4_1, Q5_1 and Q8_0: blocks of 32 numbers with one scale, the _1 ones with a minimum too.

A block: the scale as a half float, the minimum as another, four bytes of fifth bits (Q5), then 16 bytes: level
i in the low half of byte i, level i + 16 in the high half. Q8_0 has a signed byte a number.
"""

import numpy as np

from hotcold.gguf_io.quantise.affine import affine_scale
from hotcold.gguf_io.quantise.halves import put_half
from hotcold.gguf_io.quantise.jit import kernel
from hotcold.gguf_io.quantise.search import (
    HALF,
    ONE,
    ZERO,
    floats,
    importance_weights,
    largest,
    signed_scale,
    sum_of_squares,
)

BLOCK, HALF_BLOCK = 32, 16
FIRST, STEP, N_STEPS = np.float32(-0.9), np.float32(0.05), 36
Q8_TOP, TWO = np.float32(127), np.float32(2)


@kernel
def truncated(number: np.float32, top: np.float32) -> np.float32:
    """The whole part, within 0 and `top`."""
    if number >= top:
        return top
    return np.floor(number) if number > 0 else ZERO


@kernel
def pack(levels: np.ndarray, n_high: int, block: np.ndarray, at: int) -> None:
    """Levels [32] as bytes from `at` on, with `n_high` (0 or 4) bytes of fifth bits before them."""
    if n_high:
        fifth = np.int64(0)
        for i in range(BLOCK):
            fifth |= (np.int64(levels[i]) >> 4 & 1) << i
        for i in range(n_high):
            block[at + i] = fifth >> 8 * i & 255
    for i in range(HALF_BLOCK):
        low, high = np.int64(levels[i]) & 15, np.int64(levels[i + HALF_BLOCK]) & 15
        block[at + n_high + i] = low | high << 4


@kernel
def scaled_rows(
    rows: np.ndarray, importance: np.ndarray, top: np.float32, n_high: int, out: np.ndarray
) -> None:
    """Q4_0 (top 8, n_high 0) and Q5_0 (top 16, n_high 4): rows [n_rows, n] to bytes."""
    levels, trial, weights = floats(BLOCK), floats(BLOCK), floats(BLOCK)
    size = 2 + n_high + HALF_BLOCK
    for row in range(len(rows)):
        spread = sum_of_squares(rows[row]) / np.float32(rows.shape[1]) if len(importance) else ZERO
        for i in range(rows.shape[1] // BLOCK):
            x, block = rows[row, i * BLOCK : (i + 1) * BLOCK], out[row, i * size : (i + 1) * size]
            if len(importance):
                importance_weights(x, importance[i * BLOCK : (i + 1) * BLOCK], spread, weights)
                put_half(block, 0, signed_scale(x, weights, top, levels, trial))
                levels += top
            else:
                put_half(block, 0, spread_around(x, top, levels))
            pack(levels, n_high, block, 2)


@kernel
def spread_around(x: np.ndarray, top: np.float32, levels: np.ndarray) -> np.float32:
    """The scale that takes the number farthest from 0 to -top, and the levels, of which `top` stands for 0."""
    scale = largest(x) / -top
    factor = ONE / scale if scale != 0 else ZERO
    for j in range(BLOCK):
        levels[j] = truncated(x[j] * factor + (top + HALF), TWO * top - ONE)
    return scale


@kernel
def affine_rows(
    rows: np.ndarray, importance: np.ndarray, top: np.float32, n_high: int, out: np.ndarray
) -> None:
    """Q4_1 (top 15, n_high 0) and Q5_1 (top 31, n_high 4): rows [n_rows, n] to bytes."""
    levels, trial, weights = floats(BLOCK), floats(BLOCK), floats(BLOCK)
    size = 4 + n_high + HALF_BLOCK
    for row in range(len(rows)):
        spread = sum_of_squares(rows[row]) / np.float32(rows.shape[1]) if len(importance) else ZERO
        for i in range(rows.shape[1] // BLOCK):
            x, block = rows[row, i * BLOCK : (i + 1) * BLOCK], out[row, i * size : (i + 1) * size]
            if len(importance):
                importance_weights(x, importance[i * BLOCK : (i + 1) * BLOCK], spread, weights)
                scale, below = affine_scale(x, weights, (top, FIRST, STEP, N_STEPS), False, levels, trial)
                least = -below
            else:
                least, scale = spread_out(x, top, levels)
            put_half(block, 0, scale)
            put_half(block, 2, least)
            pack(levels, n_high, block, 4)


@kernel
def spread_out(x: np.ndarray, top: np.float32, levels: np.ndarray) -> tuple[np.float32, np.float32]:
    """The least number and the scale that takes the largest to `top`, and the levels."""
    least, most = x[0], x[0]
    for number in x:
        least, most = min(least, number), max(most, number)
    scale = (most - least) / top
    factor = ONE / scale if scale != 0 else ZERO
    for j in range(BLOCK):
        levels[j] = truncated((x[j] - least) * factor + HALF, top)
    return least, scale


@kernel
def q4_0(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """4 bits and a scale."""
    scaled_rows(rows, importance, np.float32(8), 0, out)


@kernel
def q5_0(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """5 bits and a scale."""
    scaled_rows(rows, importance, np.float32(16), 4, out)


@kernel
def q4_1(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """4 bits, a scale and a minimum."""
    affine_rows(rows, importance, np.float32(15), 0, out)


@kernel
def q5_1(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """5 bits, a scale and a minimum."""
    affine_rows(rows, importance, np.float32(31), 4, out)


@kernel
def q8_0(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """8 bits, halves away from 0, and a scale; importance plays no part."""
    size = 2 + BLOCK
    for row in range(len(rows)):
        for i in range(rows.shape[1] // BLOCK):
            x, block = rows[row, i * BLOCK : (i + 1) * BLOCK], out[row, i * size : (i + 1) * size]
            scale = abs(largest(x)) / Q8_TOP
            factor = ONE / scale if scale != 0 else ZERO
            put_half(block, 0, scale)
            for j in range(BLOCK):
                number = x[j] * factor
                whole = np.floor(abs(number))
                level = min(whole + np.floor(TWO * (abs(number) - whole)), Q8_TOP)
                block[2 + j] = np.int64(level if number > 0 else -level) & 255
