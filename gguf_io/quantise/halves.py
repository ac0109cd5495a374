"""Half floats in kernels, which Numba has no type for: to their bits and back, ties to even."""

import numpy as np

from hotcold.gguf_io.quantise.jit import kernel

INFINITE = 0x7C00
TOO_LARGE = 0x477FF000  # bits of 65520, the least that rounds to infinity
NORMAL = 0x38800000  # bits of 2^-14, the least normal half
REBIAS = 112  # exponent bias of float32 less that of a half
SMALLEST = np.float32(2**-24)
PER_SMALLEST = np.float32(2**24)


@kernel
def half_bits(number: np.float32) -> np.int64:
    """The 16 bits of the half float nearest to `number`."""
    bits = np.int64(np.float32(number).view(np.uint32))
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if size > 0x7F800000:
        return sign | 0x7E00  # NaN
    if size >= TOO_LARGE:
        return sign | INFINITE
    if size >= NORMAL:
        return sign | (size + 0xFFF + (size >> 13 & 1) >> 13) - (REBIAS << 10)
    return sign | np.int64(np.rint(abs(number) * PER_SMALLEST))


@kernel
def half_value(bits: np.int64) -> np.float32:
    """The number whose half float has these bits."""
    size = bits & 0x7FFF
    if size >= INFINITE:
        number = np.float32(np.inf) if size == INFINITE else np.float32(np.nan)
    elif size < 0x400:
        number = np.float32(size) * SMALLEST
    else:
        number = np.uint32((size << 13) + (REBIAS << 23)).view(np.float32)
    return -number if bits & 0x8000 else number


@kernel
def put_half(block: np.ndarray, at: int, number: np.float32) -> np.float32:
    """Stores `number` at byte `at` as a half float; returns what that holds."""
    bits = half_bits(number)
    block[at], block[at + 1] = bits & 255, bits >> 8
    return half_value(bits)
