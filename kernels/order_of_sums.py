"""NumPy oracles of the order in which a CPU kernel adds: float32 throughout, so they give the kernels' very bits.

The order is that of a row alone, of a few tokens that share the row, and of a tile, so a token's numbers do
not depend on its company. `ref.py` says what the sums are; here is in which order they are made.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.kernels.ref import BLOCK, F32, quantise, seen_positions

TILE, PART = 64, 512  # positions whose scores are softened together; that are summed anew, then joined
LOWEST = np.finfo(np.float32).min  # the maximum of no scores
EXP2 = (
    1.0,
    0.6931470036506653,
    0.24022242426872253,
    0.05550733581185341,
    0.009671512991189957,
    0.0013264724984765053,
)


def fma(x: F32, y: F32, z: F32) -> F32:
    """x * y + z of float32 in one rounding.

    The product is exact in float64. Its sum with z is rounded to odd there, which makes the second rounding
    to float32 right (Boldo and Melquiond, 2008).
    """
    product, z = x.astype(np.float64) * y, z.astype(np.float64)
    total = product + z
    other = total - product
    error = (product - (total - other)) + (z - other)
    even = (np.ascontiguousarray(total).view(np.int64) & 1) == 0
    inexact = np.isfinite(error) & (error != 0) & even
    return np.where(inexact, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total).astype(
        np.float32
    )


def mul_add(x: F32, y: F32, z: F32) -> F32:
    """x * y + z of float32 in two roundings, as CPUs without a fused multiply-add have it."""
    return x * y + z


FMA = Callable[[F32, F32, F32], F32]


def folded(chains: F32) -> F32:
    """The sum over the first axis, a power of two of chains: its second half added to its first, and so on."""
    while len(chains) > 1:
        half = len(chains) // 2
        chains = chains[:half] + chains[half:]
    total: F32 = chains[0]
    return total


BLOCK_CHAINS = 16


def dots_of_blocks_in_order(
    numbers: NDArray[np.int32],
    scales: F32,
    minima: F32 | None,
    x: F32,
    fma: FMA = fma,
    parts: NDArray[np.int32] | None = None,
) -> F32:
    """w . x of quantised rows, by blocks of 32 numbers scale * q + minimum.

    A block's sum of q times the rounded input is an integer and exact. Block c adds to chain c mod 16

        a = fma(float(sum), scale * d, a)       and, with a minimum,
        a = fma(minimum, d * float(sum of x), a),

    d being the scale of the input; at last the chains are folded. A K type's parts of 32 count as
    blocks; where its parts of 16 have integer scales of their own (Q6_K), q has been multiplied by them. Where they
    have integers of their own for the minimum (Q2_K), the sum of x is one of x times these.

    Args:
        numbers: [n_rows, n_blocks, 32]. scales, minima: [n_rows, n_blocks]. x: [k].
        parts: [n_rows, n_blocks, 2], the integers that multiply the minimum of the first and the second 16.

    Returns:
        float32 [n_rows].
    """
    q, d = quantise(x)
    blocks = q.reshape(-1, BLOCK).astype(np.int32)
    sums = (numbers * blocks).sum(-1, dtype=np.int32).astype(np.float32)
    halves = blocks.reshape(-1, 2, BLOCK // 2).sum(-1, dtype=np.int32)
    of_x = d * (halves if parts is None else halves * parts).sum(-1, dtype=np.int32).astype(np.float32)
    of_x = np.broadcast_to(of_x, scales.shape)
    chains = np.zeros((BLOCK_CHAINS, len(numbers)), np.float32)
    for c in range(len(blocks)):
        chain = chains[c % BLOCK_CHAINS]
        chain[:] = fma(sums[:, c], scales[:, c] * d[c], chain)
        if minima is not None:
            chain[:] = fma(minima[:, c], of_x[:, c], chain)
    return folded(chains)


FLOAT_STEP, FLOAT_CHAINS = 16, 2


def dots_of_floats_in_order(w: F32, x: F32, fma: FMA = fma) -> F32:
    """w . x of float rows: number i adds to chain i mod 32 by fma; the last numbers that fill no 16 at the end.

    Chains i and i + 16 are added first, then the 16 folded, then the last numbers one by one, by fma too.

    Args:
        w: [n_rows, k]. x: [k].

    Returns:
        float32 [n_rows].
    """
    whole = len(x) // FLOAT_STEP * FLOAT_STEP
    chains = np.zeros((FLOAT_CHAINS * FLOAT_STEP, len(w)), np.float32)
    for i in range(whole):
        chain = chains[i % len(chains)]
        chain[:] = fma(w[:, i], x[i : i + 1], chain)
    total = folded(chains)
    for i in range(whole, len(x)):
        total = fma(w[:, i], x[i : i + 1], total)
    return total


def rows_in_order(coefficients: F32, w: F32, n_pieces: int, fma: FMA = fma) -> F32:
    """coefficients . w of an FFN's down rows: in ascending order by fma, in pieces of the neurons.

    Piece i has rows n_rows * i // n_pieces to n_rows * (i + 1) // n_pieces, whichever of them are
    listed; each starts from 0, and then the pieces are added in order. A zero coefficient adds nothing.

    Args:
        coefficients: [n_rows]. w: [n_rows, k].

    Returns:
        float32 [k].
    """
    total = np.zeros(w.shape[1], np.float32)
    for i in range(n_pieces):
        acc = np.zeros(w.shape[1], np.float32)
        for r in range(len(w) * i // n_pieces, len(w) * (i + 1) // n_pieces):
            acc = fma(coefficients[r : r + 1], w[r], acc) if coefficients[r] != 0 else acc
        total = total + acc if i else acc
    return total


def exp2(x: F32, fma: FMA = fma) -> F32:
    """2^x of float32 x <= 0 as kernels compute it: a polynomial of the fraction; 2^-125 is the least."""
    x = np.maximum(x, np.float32(-125))
    power = np.rint(x)
    p = np.full_like(x, EXP2[-1])
    for coefficient in EXP2[-2::-1]:
        p = fma(p, x - power, np.full_like(x, coefficient))
    return np.ldexp(p, power.astype(np.int32))


@dataclass
class _Softmax:
    """What rows have summed so far: maximum [n], totals of 16 lanes [n, 16], sums of values [n, head_dim]."""

    top: F32
    total: F32
    sums: F32

    @classmethod
    def of_nothing(cls, n: int, head_dim: int) -> "_Softmax":
        zeros = np.zeros((n, 16), np.float32), np.zeros((n, head_dim), np.float32)
        return cls(np.full((n, 1), LOWEST, np.float32), *zeros)

    def take(self, other: "_Softmax", seen: NDArray[np.bool_]) -> None:
        """The other's numbers, in the rows that see anything: seen [n, positions]."""
        rows = np.flatnonzero(seen.any(1))
        for mine, new in ((self.top, other.top), (self.total, other.total), (self.sums, other.sums)):
            mine[rows] = new[rows]


def attention_in_order(
    q: F32,
    k: F32,
    v: F32,
    n_past: int,
    window: int = 0,
    sinks: F32 | None = None,
    fma: FMA = fma,
) -> F32:
    """`attention` in float32, in the order of sums that the CPU's kernels have: their very bits.

    Nothing in it depends on how many tokens pass together. A query times 1 / (sqrt(head_dim) ln 2) makes
    scores for powers of two: chains of fma along the head. Tiles of 64 positions soften together: weight j
    goes to lane j % 16 of the total, and the sums of values are chains of fma over the positions that the row
    sees, in order. Every 512 positions the sums start anew; parts with anything to see are joined in order.
    """
    n_tokens, n_head, head_dim = q.shape
    n_keys, group = k.shape[0], n_head // k.shape[1]
    factor = np.float32(head_dim**-0.5 * (1 / math.log(2)))
    x = (q * factor).reshape(-1, head_dim)  # rows: (token, head)
    padding = ((0, -n_keys % TILE), (0, 0), (0, 0))
    # [positions, rows, head_dim]
    keys, values = (np.tile(np.repeat(np.pad(a, padding), group, 1), (1, n_tokens, 1)) for a in (k, v))
    seen = np.repeat(seen_positions(n_past, n_tokens, len(keys), window), n_head, 0)
    whole = _Softmax.of_nothing(len(x), head_dim)
    for part in range(0, n_keys, PART):
        one = _Softmax.of_nothing(len(x), head_dim)
        for first in range(part, min(part + PART, n_keys), TILE):
            here = slice(first, first + TILE)
            _meet_tile(one, x, keys[here], values[here], seen[:, here], fma)
        whole.take(_joined(whole, one, fma), seen[:, part : part + PART])
    total = whole.total
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    if sinks is not None:
        score = (np.tile(sinks, n_tokens).astype(np.float64) * (1 / math.log(2))).astype(np.float32)[:, None]
        top = np.maximum(whole.top, score)
        scale = exp2(whole.top - top, fma)
        total, whole.sums = fma(total, scale, exp2(score - top, fma)), whole.sums * scale
    return (whole.sums / total).reshape(q.shape)


def _meet_tile(state: _Softmax, x: F32, keys: F32, values: F32, seen: NDArray[np.bool_], fma: FMA) -> None:
    """Rows x [n, head_dim] meet 64 positions [64, n, head_dim]; seen [n, 64]."""
    scores = np.zeros(seen.shape, np.float32)
    for d in range(x.shape[1]):
        scores = fma(x[:, d : d + 1], keys[:, :, d].T, scores)
    scores = np.where(seen, scores, LOWEST)
    top = np.maximum(state.top, scores.max(1, keepdims=True))
    factor, weights = exp2(state.top - top, fma), np.where(seen, exp2(scores - top, fma), np.float32(0))
    total = fma(state.total, factor, weights[:, :16])
    for lane in range(16, TILE, 16):
        total = total + weights[:, lane : lane + 16]
    sums = state.sums * factor
    for j in range(TILE):
        sums = np.where(seen[:, j : j + 1], fma(weights[:, j : j + 1], values[j], sums), sums)
    state.take(_Softmax(top, total, sums), seen)


def _joined(a: _Softmax, b: _Softmax, fma: FMA) -> _Softmax:
    top = np.maximum(a.top, b.top)
    f, g = exp2(a.top - top, fma), exp2(b.top - top, fma)
    return _Softmax(top, fma(b.total, g, a.total * f), fma(b.sums, g, a.sums * f))
