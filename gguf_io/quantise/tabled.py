"""IQ4_NL and MXFP4: blocks of 32 numbers, each one of 16 values of a table times the block's scale.

A block: the scale, then 16 bytes: index i in the low half of byte i, index i + 16 in the high half. IQ4_NL's
scale is a half float; MXFP4's a byte, the power of two that takes the largest number to 4 or above.
"""

import numpy as np

from hotcold.gguf_io.quantise.halves import put_half
from hotcold.gguf_io.quantise.jit import kernel
from hotcold.gguf_io.quantise.search import (
    ONE,
    SMALLEST,
    ZERO,
    importance_weights,
    largest,
    squares,
    sum_of_squares,
)

BLOCK, HALF_BLOCK = 32, 16
VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)  # of MXFP4
GUESSES, TWO = 7, np.float32(2)
EXPONENT_BIAS = 127


@kernel
def nearest(x: np.float32) -> int:
    """The index of the value of IQ4_NL that is nearest, the higher of equal ones."""
    found = 0
    for i in range(1, 16):
        if x - VALUES[i - 1] >= VALUES[i] - x:
            found = i
    return found


@kernel
def iq4_nl(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """Rows [n_rows, n] to bytes of IQ4_NL."""
    weights, indices, size = np.empty(BLOCK, np.float32), np.zeros(BLOCK, np.int64), 2 + HALF_BLOCK
    for row in range(len(rows)):
        for i in range(rows.shape[1] // BLOCK):
            x, block = rows[row, i * BLOCK : (i + 1) * BLOCK], out[row, i * size : (i + 1) * size]
            if len(importance):
                spread = sum_of_squares(x) * (TWO / np.float32(BLOCK))
                importance_weights(x, importance[i * BLOCK : (i + 1) * BLOCK], spread, weights)
            else:
                squares(x, weights)
            scale = tabled_scale(x, weights)
            put_half(block, 0, scale)
            factor = ONE / scale if scale != 0 else ZERO
            for j in range(BLOCK):
                indices[j] = nearest(factor * x[j])
            for j in range(HALF_BLOCK):
                block[2 + j] = indices[j] | indices[j + HALF_BLOCK] << 4


@kernel
def tabled_scale(x: np.ndarray, weights: np.ndarray) -> np.float32:
    """The best of 16 scales: those that take the largest number to about the table's first value."""
    far = largest(x)
    if not abs(far) >= SMALLEST:
        return ZERO
    along, square = table_sums(x, weights, ONE / (-far / VALUES[0]))
    scale = along / square if square > 0 else ZERO
    best = scale * along
    for more in range(-GUESSES, GUESSES + 1):
        along, square = table_sums(x, weights, (np.float32(more) + VALUES[0]) / far)
        if square > 0 and along * along > best * square:
            scale = along / square
            best = scale * along
    return scale


@kernel
def table_sums(x: np.ndarray, weights: np.ndarray, factor: np.float32) -> tuple[np.float32, np.float32]:
    """sum w v x and sum w v^2 over the values v nearest to x * factor, in order."""
    along, square = ZERO, ZERO
    for i in range(len(x)):
        value = VALUES[nearest(factor * x[i])]
        along += weights[i] * value * x[i]
        square += weights[i] * value * value
    return along, square


@kernel
def mxfp4(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """Rows [n_rows, n] to bytes of MXFP4; importance plays no part."""
    size = 1 + HALF_BLOCK
    for row in range(len(rows)):
        for i in range(rows.shape[1] // BLOCK):
            x, block = rows[row, i * BLOCK : (i + 1) * BLOCK], out[row, i * size : (i + 1) * size]
            far = abs(largest(x))
            exponent = np.int64(np.floor(np.log2(far))) - 2 + EXPONENT_BIAS if far > 0 else 0
            exponent &= 255
            half = np.uint32(0x200000 << exponent if exponent < 2 else exponent - 1 << 23).view(np.float32)
            block[0] = exponent
            for j in range(HALF_BLOCK):
                block[1 + j] = nearest_doubled(x[j], half) | nearest_doubled(x[j + HALF_BLOCK], half) << 4


@kernel
def nearest_doubled(x: np.float32, half: np.float32) -> int:
    """The index of the value of MXFP4 that is nearest to x / half, the first of equal ones."""
    found, least = 0, abs(DOUBLED[0] * half - x)
    for i in range(1, 16):
        error = abs(DOUBLED[i] * half - x)
        if error < least:
            found, least = i, error
    return found
