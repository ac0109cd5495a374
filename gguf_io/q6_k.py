"""Rounds to Q6_K, which the gguf package only reads: the bytes are llama.cpp's.

A block of 256 numbers is 16 groups of 16. Each group has a scale, found by weighted least squares over 19
guesses; the scales are rounded to int8 by one half float a block, then the numbers to 6 bits by their
group's rounded scale. All sums are float32 and in order, as in ggml's quantize_row_q6_K_ref without
contraction to fused multiply-adds.
"""

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

BLOCK, GROUP, N_GROUPS = 256, 16, 16
TYPE_SIZE = 210  # 128 bytes of low bits, 64 of high bits, 16 scales, a half float
LOWEST, HIGHEST = -32, 31
SMALLEST = np.float32(1e-15)  # below it a scale counts as 0
GUESSES = tuple(k for k in range(-9, 10) if k)  # tenths that are added to the range
SLAB_BLOCKS = 512  # what stays in a processor's cache


def quantize_q6_k(rows: F32) -> NDArray[np.uint8]:
    """float32 [n_rows, n], n a multiple of 256, as blocks: uint8 [n_rows, n / 256 * 210]."""
    blocks = np.ascontiguousarray(rows, np.float32).reshape(-1, BLOCK)
    made = np.empty((len(blocks), TYPE_SIZE), np.uint8)
    with np.errstate(all="ignore"):  # groups of zeros divide by them, and are put right afterwards
        for first in range(0, len(blocks), SLAB_BLOCKS):
            made[first : first + SLAB_BLOCKS] = _blocks(blocks[first : first + SLAB_BLOCKS])
    return made.reshape(*rows.shape[:-1], rows.shape[-1] // BLOCK * TYPE_SIZE)


def _blocks(x: F32) -> NDArray[np.uint8]:
    """x [n, 256] as n blocks."""
    groups = np.ascontiguousarray(x.reshape(-1, GROUP).T)
    scales, inverse = _group_scales(groups)
    largest = _of_largest_size(scales.reshape(-1, N_GROUPS).T)
    inverse_d = np.float32(-128) / largest
    d = (np.float32(1) / inverse_d).astype(np.float16)
    rounded = np.minimum(127, np.rint(inverse_d[:, None] * scales.reshape(-1, N_GROUPS))).astype(np.float32)
    steps = (d.astype(np.float32)[:, None] * rounded).reshape(-1)
    levels = np.where(steps == 0, _levels(groups, inverse), np.clip(np.rint(groups / steps), LOWEST, HIGHEST))
    codes = (levels.T.reshape(-1, BLOCK) - LOWEST).astype(np.uint8)
    made = _pack(codes, rounded.astype(np.int8), d)
    made[~(np.abs(largest) >= SMALLEST)] = 0
    return made


def _group_scales(x: F32) -> tuple[F32, F32]:
    """The scale of each group of x [16, n], and the factor whose levels gave it.

    A scale s of levels l minimises sum x^2 (x - s l)^2, so it is sum x^3 l / sum x^2 l^2.
    """
    largest = _of_largest_size(x)
    weights = x * x
    inverse = np.float32(-HIGHEST - 1) / largest
    along, square = _sums(x, weights, _levels(x, inverse))
    scale = np.where(square == 0, np.float32(0), along / square)
    best = scale * along
    for tenths in GUESSES:
        guess = -(np.float32(HIGHEST + 1) + np.float32(0.1) * np.float32(tenths)) / largest
        along, square = _sums(x, weights, _levels(x, guess))
        better = (square > 0) & (along * along > best * square)
        scale = np.where(better, along / square, scale)
        best = np.where(better, scale * along, best)
        inverse = np.where(better, guess, inverse)
    zero = np.abs(largest) < SMALLEST
    return np.where(zero, np.float32(0), scale), np.where(zero, np.float32(np.nan), inverse)


def _levels(x: F32, factor: F32) -> F32:
    """Whole numbers from -32 to 31 nearest to x factor; -32, which is stored as 0, where that is nothing."""
    levels: F32 = np.clip(np.rint(x * factor), LOWEST, HIGHEST)
    return np.where(np.isnan(levels), np.float32(LOWEST), levels)


def _sums(x: F32, weights: F32, levels: F32) -> tuple[F32, F32]:
    """sum weights x levels and sum weights levels^2 over each group, in order."""
    along, square = np.zeros(x.shape[1], np.float32), np.zeros(x.shape[1], np.float32)
    for number, weight, level in zip(x, weights, levels, strict=True):
        along += weight * number * level
        square += weight * level * level
    return along, square


def _of_largest_size(x: F32) -> F32:
    """Of each column of x the number that is farthest from 0, the first of equal ones."""
    largest: F32 = np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0]
    return largest


def _pack(codes: NDArray[np.uint8], scales: NDArray[np.int8], d: NDArray[np.float16]) -> NDArray[np.uint8]:
    """6-bit codes [n, 256], scales [n, 16] and d [n] as bytes [n, 210]: halves of 128 codes, four 32s each."""
    quarters = codes.reshape(-1, 2, 4, 32)
    low = quarters & 15
    low = np.concatenate((low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4), 2)
    high = quarters >> 4
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = (low.reshape(-1, 128), high.reshape(-1, 64), scales.view(np.uint8), d[:, None].view(np.uint8))
    return np.concatenate(parts, 1)
