"""What each block type's bytes are, in NumPy: the definitions that the kernels are tested against.

Groups lie in columns: x [numbers a group, groups]. float32 throughout, sums in order.
"""

from collections.abc import Callable

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

T = GGMLQuantizationType
F32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Weights = F32 | None

f = np.float32
TINY = f(1e-15)
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], f)
MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], f)


def define(rows: F32, kind: GGMLQuantizationType, importance: Weights = None) -> Bytes:
    """float32 [n_rows, n] as bytes of the type; importance [n] weighs errors."""
    block, size = GGML_QUANT_SIZES[kind]
    x = rows.astype(f).reshape(-1, block)
    weights = None if importance is None else np.tile(importance.reshape(-1, block), (len(rows), 1))
    mean_square = None
    if importance is not None and block == 32:  # of whole rows, but for IQ4_NL
        mean_square = np.repeat(total((rows * rows).T) / f(rows.shape[1]), rows.shape[1] // block)
    with np.errstate(all="ignore"):
        packed = DEFINITIONS[kind](x, weights, mean_square)
    return np.asarray(packed, np.uint8).reshape(len(rows), rows.shape[1] // block * size)


def total(terms: F32) -> F32:
    """Sums down the columns, in order."""
    found = np.zeros(terms.shape[1], f)
    for term in terms:
        found = found + term
    return found


def nearest(x: F32, low: float, high: float) -> F32:
    """Whole numbers within bounds, ties to even; `low` for what is no number."""
    return np.nan_to_num(np.clip(np.rint(x), f(low), f(high)), nan=low).astype(f)


def farthest(x: F32) -> F32:
    """Of each column the number that is farthest from 0, the first of equal ones."""
    found: F32 = np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0]
    return np.where(found == 0, f(0), found)


def lowest(x: F32) -> F32:
    """Of each column the least number, the first of equal ones: 0 and -0 are."""
    first = (x == x.min(0)).argmax(0)
    found: F32 = np.take_along_axis(x, first[None], 0)[0]
    return found


def signed(x: F32, w: F32, top: int) -> tuple[F32, F32]:
    """Scales and levels -top to top - 1 of least weighted error among 19 ranges."""
    far = farthest(x)

    def sums(levels: F32) -> tuple[F32, F32]:
        return total(w * x * levels), total(w * levels * levels)

    levels = nearest(x * (f(-top) / far), -top, top - 1)
    along, square = sums(levels)
    scale = np.where(square != 0, along / square, f(0))
    best = scale * along
    for tenths in (k for k in range(-9, 10) if k):
        trial = nearest(x * (-(f(top) + f(0.1) * f(tenths)) / far), -top, top - 1)
        along, square = sums(trial)
        better = (square > 0) & (along * along > best * square)
        levels = np.where(better, trial, levels)
        scale = np.where(better, along / square, scale)
        best = np.where(better, scale * along, best)
    zeros = ~(np.abs(far) >= TINY)
    return np.where(zeros, f(0), scale), np.where(zeros, f(-top), levels)


def moved(x: F32, w: F32, levels: F32, low: int, high: int) -> tuple[F32, F32]:
    """Scales and levels after five rounds in which single levels move where the error is less for it."""
    along, square = total(w * x * levels), total(w * levels * levels)
    levels = levels.copy()
    for _ in range(5):
        for i in range(len(x)):
            rest, rest_square = along - w[i] * x[i] * levels[i], square - w[i] * levels[i] * levels[i]
            new = nearest(x[i] * rest_square / rest, low, high)
            may = (rest > 0) & (new != levels[i]) & ((low < 0) | (rest_square > 0))
            rest, rest_square = rest + w[i] * x[i] * new, rest_square + w[i] * new * new
            better = may & (rest_square > 0) & (rest * rest * square > along * along * rest_square)
            levels[i] = np.where(better, new, levels[i])
            along, square = np.where(better, rest, along), np.where(better, rest_square, square)
    return np.where(square > 0, along / square, f(0)), levels


def positive(x: F32, w: F32, top: int) -> tuple[F32, F32]:
    """Scales and levels 0 to top of numbers that are not negative: nine ranges, then `moved`."""
    most = np.maximum(x.max(0), f(0))

    def error(factor: F32) -> F32:
        difference = x - f(1) / factor * nearest(x * factor, 0, top)
        return total(w * difference * difference)

    factor = f(top) / most
    best = error(factor)
    for tenths in (k for k in range(-4, 5) if k):
        trial = (f(0.1) * f(tenths) + f(top)) / most
        found = error(trial)
        factor, best = np.where(found < best, trial, factor), np.where(found < best, found, best)
    scale, levels = moved(x, w, nearest(x * factor, 0, top), 0, top)
    zeros = ~(most >= TINY)
    return np.where(zeros, f(0), scale), np.where(zeros, f(0), levels)


def affine(
    x: F32, w: F32, top: int, guesses: tuple[float, float, int], absolute: bool = False
) -> tuple[F32, F32, F32]:
    """Scales, negated minima and levels 0 to top of least weighted error among guessed ranges."""
    least, most = lowest(x), x.max(0)
    least = np.where(least > 0, f(0), least)
    sum_w, sum_x = total(w), total(w * x)
    start, step, n = f(guesses[0]), f(guesses[1]), guesses[2]

    def error(levels: F32, scale: F32, least: F32) -> F32:
        difference = scale * levels + least - x
        return total(w * (np.abs(difference) if absolute else difference * difference))

    one = ~(most > least)
    factor = f(top) / (most - least)
    scale = f(1) / factor
    levels = nearest(factor * (x - least), 0, top)
    best = error(levels, scale, least)
    for i in range(n + 1):
        trial = nearest((start + step * f(i) + f(top)) / (most - least) * (x - least), 0, top)
        sum_l, sum_ll, sum_lx = total(w * trial), total(w * trial * trial), total(w * trial * x)
        det = sum_w * sum_ll - sum_l * sum_l
        new, low = (sum_w * sum_lx - sum_x * sum_l) / det, (sum_ll * sum_x - sum_l * sum_lx) / det
        fitted: F32 = np.where(low > 0, sum_lx / sum_ll, new)
        bottom: F32 = np.minimum(low, f(0))
        found = error(trial, fitted, bottom)
        better = (det > 0) & (found < best)
        levels, best = np.where(better, trial, levels), np.where(better, found, best)
        scale, least = np.where(better, fitted, scale), np.where(better, bottom, least)
    return np.where(one, f(0), scale), -least, np.where(one, f(0), levels)


def groups(x: F32, size: int) -> F32:
    """Blocks [n, block] as columns of groups [size, n * block / size]."""
    return np.ascontiguousarray(x.reshape(-1, size).T)


def halves(*numbers: F32) -> Bytes:
    """float32 [n] each as half floats side by side: bytes [n, 2 * count]."""
    return np.stack([number.astype(np.float16) for number in numbers], 1).view(np.uint8)


def half(number: F32) -> F32:
    """What the half float nearest to it holds."""
    return number.astype(np.float16).astype(f)


def weighed(x: F32, weights: F32, mean_square: F32) -> F32:
    """importance * sqrt(mean square + x^2), blocks in rows."""
    return weights * np.sqrt(mean_square[:, None] + x * x)


def mean_of(x: F32, times: int) -> F32:
    """times the mean square of each block."""
    return f(times) * total((x * x).T) / f(x.shape[1])


def nibbles(codes: F32) -> Bytes:
    """Codes [n, 32] as 16 bytes: i and i + 16 share a byte."""
    c = codes.astype(np.uint8)
    return (c[:, :16] & 15 | (c[:, 16:] & 15) << 4).astype(np.uint8)


def fifth_bits(codes: F32) -> Bytes:
    """Bit 4 of codes [n, 32] as four bytes."""
    return np.packbits(codes.astype(np.uint8) >> 4 & 1, axis=1, bitorder="little")


def scaled_32(x: F32, weights: Weights, spread: Weights, top: int) -> Bytes:
    """Q4_0 and Q5_0."""
    if weights is not None and spread is not None:
        scale, levels = signed(x.T, weighed(x, weights, spread).T, top)
        codes = levels.T + f(top)
    else:
        scale = farthest(x.T) / f(-top)
        factor = np.where(scale != 0, f(1) / scale, f(0))
        codes = np.clip(np.floor(x * factor[:, None] + f(top + 0.5)), 0, 2 * top - 1)
    parts = [halves(scale), *([fifth_bits(codes)] if top == 16 else []), nibbles(codes)]
    return np.concatenate(parts, 1)


def affine_32(x: F32, weights: Weights, spread: Weights, top: int) -> Bytes:
    """Q4_1 and Q5_1."""
    if weights is not None and spread is not None:
        scale, below, levels = affine(x.T, weighed(x, weights, spread).T, top, (-0.9, 0.05, 36))
        least, codes = -below, levels.T
    else:
        least = lowest(x.T)
        scale = (-lowest(-x.T) - least) / f(top)
        factor = np.where(scale != 0, f(1) / scale, f(0))
        codes = np.clip(np.floor((x - least[:, None]) * factor[:, None] + f(0.5)), 0, top)
    parts = [halves(scale, least), *([fifth_bits(codes)] if top == 31 else []), nibbles(codes)]
    return np.concatenate(parts, 1)


def q8_0(x: F32, weights: Weights, spread: Weights) -> Bytes:
    """Bytes, halves rounded away from 0."""
    scale = np.abs(x).max(1) / f(127)
    y = x * np.where(scale != 0, f(1) / scale, f(0))[:, None]
    whole = np.floor(np.abs(y))
    levels = np.sign(y) * np.minimum(whole + np.floor(f(2) * (np.abs(y) - whole)), f(127))
    return np.concatenate((halves(scale), levels.astype(np.int8).view(np.uint8)), 1)


def by_steps(x: F32, steps: F32, low: int, high: int, levels: F32) -> F32:
    """x [size, groups] over each group's step, rounded; as they were where that is 0."""
    return np.where(steps == 0, levels, nearest(x / steps, low, high))


def crumbs(codes: Bytes) -> Bytes:
    """2-bit codes [n, 256] as 64 bytes: halves of 128, four 32s one above the other."""
    c = codes.reshape(-1, 2, 4, 32)
    bits = c[:, :, 0] | c[:, :, 1] << 2 | c[:, :, 2] << 4 | c[:, :, 3] << 6
    return bits.astype(np.uint8).reshape(-1, 64)


def q6_k(x: F32, weights: Weights, spread: Weights) -> Bytes:
    """See q6_k.py."""
    g = groups(x, 16)
    scales, levels = signed(g, g * g if weights is None else groups(weights, 16), 32)
    far = farthest(scales.reshape(-1, 16).T)
    d = f(1) / (f(-128) / far)
    rounded = np.minimum(np.rint((f(-128) / far)[:, None] * scales.reshape(-1, 16)), f(127))
    levels = by_steps(g, (half(d)[:, None] * rounded).reshape(-1), -32, 31, levels)
    codes = (levels.T.reshape(-1, 256) + f(32)).astype(np.uint8)
    c = codes.reshape(-1, 2, 4, 32)
    low = np.concatenate((c[:, :, 0] & 15 | c[:, :, 2] << 4, c[:, :, 1] & 15 | c[:, :, 3] << 4), 2)
    parts = (
        low.reshape(-1, 128),
        crumbs((codes >> 4).astype(np.uint8)),
        rounded.astype(np.int8).view(np.uint8),
        halves(d),
    )
    packed = np.concatenate(parts, 1)
    packed[~(np.abs(far) >= TINY)] = 0
    return packed


def q3_k(x: F32, weights: Weights, spread: Weights) -> Bytes:
    """See q3_k.py."""
    g = groups(x, 16)
    if weights is None:
        w, far = g * g, farthest(g)
        scales, levels = moved(g, w, nearest(g * (f(-4) / far), -4, 3), -4, 3)
        zeros = ~(np.abs(far) >= TINY)
        scales, levels = np.where(zeros, f(0), scales), np.where(zeros, f(-4), levels)
        most = farthest(scales.reshape(-1, 16).T)
        rounded = nearest((f(-32) / most)[:, None] * scales.reshape(-1, 16), -32, 31)
        d = np.where(most == 0, f(0), f(1) / (f(-32) / most))
    else:
        w = groups(weighed(x, weights, mean_of(x, 2)), 16)
        scales, levels = signed(g, w, 4)
        d, steps = signed(scales.reshape(-1, 16).T, total(w).reshape(-1, 16).T, 32)
        rounded = steps.T
    levels = by_steps(g, (half(d)[:, None] * rounded).reshape(-1), -4, 3, levels)
    codes = (levels.T.reshape(-1, 256) + f(4)).astype(np.uint8)
    high = np.packbits((codes >> 2).reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)
    s = (rounded + f(32)).astype(np.uint8)
    above = s.reshape(-1, 4, 4) >> 4
    above = above[:, 0] | above[:, 1] << 2 | above[:, 2] << 4 | above[:, 3] << 6
    parts = (
        high,
        crumbs((codes & 3).astype(np.uint8)),
        s[:, :8] & 15 | (s[:, 8:] & 15) << 4,
        above,
        halves(d),
    )
    return np.concatenate(parts, 1)


def by_the_largest(x: F32, top: int) -> tuple[F32, F32]:
    """Numbers [n, groups] in whole steps of a top-th of each row's largest, and that step."""
    most = np.maximum(x.max(1), f(0))
    factor = np.where(most > 0, f(top) / most, f(0))
    return np.minimum(np.rint(factor[:, None] * x), f(top)), most / f(top)


def two_scales(
    x: F32, w: F32, size: int, top: int, guesses: tuple[float, float, int], search: tuple[int, bool, bool]
) -> tuple[F32, F32, F32, F32, F32]:
    """Whole scales and minima [n, groups], their steps, and codes [n, 256], of groups with a minimum.

    search: the highest scale, whether errors' sizes count, whether scales are searched by weight.
    """
    g, (scale_top, absolute, by_weight) = groups(x, size), search
    scales, below, levels = affine(g, groups(w, size), top, guesses, absolute)
    n = 256 // size
    scales, below = scales.reshape(-1, n), below.reshape(-1, n)
    if by_weight:
        sums = total(groups(w, size)).reshape(-1, n).T
        (d, a), (m, b) = positive(scales.T, sums, scale_top), positive(below.T, sums, scale_top)
        a, b = a.T, b.T
    else:
        (a, d), (b, m) = by_the_largest(scales, scale_top), by_the_largest(below, scale_top)
    steps, offsets = half(d)[:, None] * a, half(m)[:, None] * b
    levels = by_steps(g + offsets.reshape(-1), steps.reshape(-1), 0, top, levels)
    return a, b, d, m, levels.T.reshape(-1, 256)


def q2_k(x: F32, weights: Weights, spread: Weights) -> Bytes:
    """See q2_k.py."""
    if weights is None:
        a, b, d, m, codes = two_scales(x, np.abs(x), 16, 3, (-0.5, 0.1, 15), (15, True, False))
    else:
        w = weighed(x, weights, mean_of(x, 1))
        a, b, d, m, codes = two_scales(x, w, 16, 3, (-0.9, 0.05, 36), (15, False, True))
    scales = a.astype(np.uint8) | b.astype(np.uint8) << 4
    return np.concatenate((scales, crumbs(codes.astype(np.uint8)), halves(d, m)), 1)


def q45_k(x: F32, weights: Weights, top: int, guesses: tuple[float, float, int]) -> Bytes:
    """See q4_k.py."""
    if weights is None:
        of_32 = x.reshape(-1, 32)
        w = np.abs(of_32) + np.sqrt(total((of_32 * of_32).T) / f(32))[:, None]
        a, b, d, m, codes = two_scales(x, w, 32, top, guesses, (63, False, False))
    else:
        w = weighed(x, weights, mean_of(x, 2))
        a, b, d, m, codes = two_scales(x, w, 32, top, (-0.9, 0.05, 36), (63, False, True))
    s, t = a.astype(np.uint8), b.astype(np.uint8)
    scales = (
        s[:, :4] | s[:, 4:] >> 4 << 6,
        t[:, :4] | t[:, 4:] >> 4 << 6,
        s[:, 4:] & 15 | (t[:, 4:] & 15) << 4,
    )
    c = codes.astype(np.uint8).reshape(-1, 8, 32)
    high = [np.packbits(c >> 4, axis=1, bitorder="little").reshape(-1, 32)] if top == 31 else []
    low = (c[:, ::2] & 15 | (c[:, 1::2] & 15) << 4).reshape(-1, 128)
    return np.concatenate((halves(d, m), *scales, *high, low), 1)


def iq4_nl(x: F32, weights: Weights, spread: Weights) -> Bytes:
    """See tabled.py."""
    w = x * x if weights is None else weighed(x, weights, total((x * x).T) * f(2 / 32))
    x, w = x.T, w.T
    far = farthest(x)
    middles = (IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / f(2)

    def sums(factor: F32) -> tuple[F32, F32]:
        v = IQ4_VALUES[np.searchsorted(middles, x * factor, side="right")]
        return total(w * v * x), total(w * v * v)

    along, square = sums(f(1) / (-far / IQ4_VALUES[0]))
    scale = np.where(square > 0, along / square, f(0))
    best = scale * along
    for more in range(-7, 8):
        along, square = sums((f(more) + IQ4_VALUES[0]) / far)
        better = (square > 0) & (along * along > best * square)
        scale = np.where(better, along / square, scale)
        best = np.where(better, scale * along, best)
    scale = np.where(np.abs(far) >= TINY, scale, f(0))
    factor = np.where(scale != 0, f(1) / scale, f(0))
    codes = np.searchsorted(middles, x * factor, side="right").astype(f)
    return np.concatenate((halves(scale), nibbles(codes.T)), 1)


def mxfp4(x: F32, weights: Weights, spread: Weights) -> Bytes:
    """See tabled.py."""
    far = np.abs(x).max(1)
    exponent = np.where(far > 0, np.floor(np.log2(far)) - f(2 - 127), f(0)).astype(np.int64) & 255
    scale = np.ldexp(f(1), (exponent - 128).astype(np.int32)).astype(f)
    errors = np.abs(scale[:, None, None] * MXFP4_VALUES - x[:, :, None])
    return np.concatenate((exponent[:, None].astype(np.uint8), nibbles(errors.argmin(2).astype(f))), 1)


DEFINITIONS: dict[GGMLQuantizationType, Callable[[F32, Weights, Weights], Bytes]] = {
    T.Q4_0: lambda x, w, spread: scaled_32(x, w, spread, 8),
    T.Q5_0: lambda x, w, spread: scaled_32(x, w, spread, 16),
    T.Q4_1: lambda x, w, spread: affine_32(x, w, spread, 15),
    T.Q5_1: lambda x, w, spread: affine_32(x, w, spread, 31),
    T.Q8_0: q8_0,
    T.Q2_K: q2_k,
    T.Q3_K: q3_k,
    T.Q4_K: lambda x, w, _: q45_k(x, w, 15, (-1.0, 0.1, 20)),
    T.Q5_K: lambda x, w, _: q45_k(x, w, 31, (-0.5, 0.1, 15)),
    T.Q6_K: q6_k,
    T.IQ4_NL: iq4_nl,
    T.MXFP4: mxfp4,
}
