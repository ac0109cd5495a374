"""NumPy oracles of the order in which the device's kernels add: float32 throughout, so they give the kernels' bits.

The order is that of a token alone and of a token in a batch: of `matvec` and its kin and of `matmul`, of the sparse
FFNs and of `matmul_transposed`, of attention by one block and by many. `order_of_sums.py` has the CPU's, which is
another.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.kernels.order_of_sums import LOWEST, fma, folded
from hotcold.kernels.ref import BLOCK, F32, quantise, seen_positions

Type = GGMLQuantizationType
CHAINS = 32
"""As many as a warp has lanes."""
EIGHT, SIXTEEN = 8, 16

QUARTERS = frozenset({Type.Q2_K, Type.Q3_K, Type.Q6_K, Type.TQ2_0})
"""Types of which four sixteens with one between them lie in the same bytes, and are a piece."""
PAIRS = frozenset({Type.Q4_K})
"""Types of which two blocks of 32 are a piece; of all others one is."""
HALVES = frozenset({Type.IQ1_M, Type.IQ2_XS, Type.IQ2_S})
"""Types whose two sixteens of a block are added one by one, for each has a scale; of QUARTERS all are."""


def in_lanes(chains: F32) -> F32:
    """The sum over the first axis in order, from 0 on."""
    total = np.zeros(chains.shape[1:], np.float32)
    for chain in chains:
        total = total + chain
    return total


def pieces(weight_type: Type, n: int) -> Iterator[list[tuple[int, ...]]]:
    """The pieces of a row of n weights: of each the sixteens whose integers are summed before they are scaled."""
    if weight_type in QUARTERS:
        for piece in range(n // SIXTEEN // 4):
            yield [(piece // 2 * 8 + piece % 2 + 2 * k,) for k in range(4)]
        return
    blocks = 2 if weight_type in PAIRS else 1
    for piece in range(n // BLOCK // blocks):
        units = [2 * b for b in range(piece * blocks, (piece + 1) * blocks)]
        if weight_type in HALVES:
            yield [(each,) for unit in units for each in (unit, unit + 1)]
        else:
            yield [(unit, unit + 1) for unit in units]


def device_dots_of_blocks(
    weight_type: Type, numbers: NDArray[np.int32], scales: F32, minima: F32 | None, x: F32
) -> F32:
    """w . x of quantised rows whose sixteens hold scale * number - minimum.

    Piece p adds to chain p mod 32, sum after sum of its integers times those of the rounded input, each exact:

        a = fma(float(sum), scale * d, a)       and, with a minimum,
        a = fma(-minimum, d * float(sum of x), a),

    d being the scale of the input; at last the chains are added in their order.

    Args:
        numbers: [n_rows, n_sixteens, 16]. scales, minima: [n_rows, n_sixteens]. x: [k].

    Returns:
        float32 [n_rows].
    """
    q, d = quantise(x)
    units = q.reshape(-1, SIXTEEN).astype(np.int32)
    products, of_x = (numbers * units).sum(-1, dtype=np.int32), units.sum(-1, dtype=np.int32)
    chains = np.zeros((CHAINS, len(numbers)), np.float32)
    for p, piece in enumerate(pieces(weight_type, len(x))):
        chain = chains[p % CHAINS]
        for term in piece:
            first, some = term[0], list(term)
            of_input = d[first // 2]
            chain[:] = fma(products[:, some].sum(-1).astype(np.float32), scales[:, first] * of_input, chain)
            if minima is not None:
                least = of_input * of_x[some].sum().astype(np.float32)
                chain[:] = fma(-minima[:, first], np.broadcast_to(least, chain.shape), chain)
    return in_lanes(chains)


def device_dots_of_floats(w: F32, x: F32) -> F32:
    """w . x of float rows: eight i adds to chain i mod 32, number after number by fma; the last may have fewer.

    Args:
        w: [n_rows, k]. x: [k].

    Returns:
        float32 [n_rows].
    """
    chains = np.zeros((CHAINS, len(w)), np.float32)
    for i in range(len(x)):
        chain = chains[i // EIGHT % CHAINS]
        chain[:] = fma(w[:, i], x[i : i + 1], chain)
    return in_lanes(chains)


def device_rows(hidden: F32, w: F32, listed: Sequence[int], n_groups: int) -> F32:
    """hidden . w of an FFN's down rows, of those that are listed.

    The list is cut into n_groups groups of equally many rows, the last of fewer; in each they add in ascending order
    by fma, from 0 on, and then the groups are added in order. A zero adds nothing.

    Args:
        hidden: [n_rows]. w: [n_rows, k]. listed: rows, ascending.

    Returns:
        float32 [k].
    """
    size = -(-len(listed) // n_groups)
    groups = np.zeros((n_groups, w.shape[1]), np.float32)
    for i, row in enumerate(listed):
        if hidden[row] != 0:
            groups[i // size] = fma(hidden[row : row + 1], w[row], groups[i // size])
    return in_lanes(groups)


PART, LANES, THREADS = 256, 4, 256
"""Positions of a part of a context; lanes that multiply a key together; threads of a block."""


def exp_of_float64(x: F32) -> F32:
    """e^x, rounded once. A device's own expf may differ in the last bit."""
    return np.exp(x.astype(np.float64)).astype(np.float32)


def device_attention(
    q: F32,
    k: F32,
    v: F32,
    n_past: int,
    window: int,
    sinks: F32 | None,
    scale: float,
    exp: Callable[[F32], F32] = exp_of_float64,
) -> F32:
    """`ref.attention` in float32, in the order of sums that the device's kernels have.

    Parts of 256 positions, from the first on, soften by themselves. A score is four chains of fma: chain c has eights
    c, c + 4 and so on of the head; they are added as a tree. Weight i of a part goes to lane i mod 32 of the total,
    whose lanes are added as a tree. With as many columns as four a thread leave groups of threads, position i of a
    part adds to the sums of values of group i mod n_groups, by fma; groups are added in order. A query's parts are
    joined in order: with w = exp(top of the part - new top) and u = exp(old top - new top)

        sum = fma(sum of the part, w, sum * u),    and the total likewise.

    Args:
        q: [n_tokens, n_head, head_dim]. k, v: [n_keys, n_head_kv, head_dim]. sinks: [n_head].
        window: 0 sees all.
    """
    n_tokens, n_head, head_dim = q.shape
    n_keys, group = len(k), n_head // k.shape[1]
    seen = seen_positions(n_past, n_tokens, n_keys, window)
    x, y = q * np.float32(scale), np.empty_like(q)
    for token, head in np.ndindex(n_tokens, n_head):
        keys, values = k[:, head // group], v[:, head // group]
        all_before = (np.array([LOWEST], np.float32), np.zeros(1, np.float32), np.zeros(head_dim, np.float32))
        for first in range(0, n_keys, PART):
            part = slice(first, first + PART)
            if seen[token, part].any():
                next_one = _of_part(x[token, head], keys[part], values[part], seen[token, part], exp)
                all_before = _joined(all_before, next_one, exp)
        top, total, sums = all_before
        if sinks is not None:
            larger = np.maximum(top, sinks[head])
            factor = exp(top - larger)
            total, sums = fma(total, factor, exp(sinks[head] - larger)), sums * factor
        y[token, head] = sums / total
    return y


def _joined(
    a: tuple[F32, F32, F32], b: tuple[F32, F32, F32], exp: Callable[[F32], F32]
) -> tuple[F32, F32, F32]:
    larger = np.maximum(a[0], b[0])
    of_a, of_b = exp(a[0] - larger), exp(b[0] - larger)
    return larger, fma(b[1], of_b, a[1] * of_a), fma(b[2], of_b, a[2] * of_a)


def _of_part(
    x: F32, keys: F32, values: F32, seen: NDArray[np.bool_], exp: Callable[[F32], F32]
) -> tuple[F32, F32, F32]:
    """Maximum [1], total [1] and sums of values of one query; x [head_dim], keys [positions, head_dim]."""
    n, chains = len(x), np.zeros((LANES, len(keys)), np.float32)
    for d in range(n):
        lane = chains[d // EIGHT % LANES]
        lane[:] = fma(keys[:, d], x[d : d + 1], lane)
    scores = folded(chains)
    top = scores[seen].max(keepdims=True)
    weights = np.zeros(PART, np.float32)
    weights[: len(seen)][seen] = exp(scores[seen] - top)
    lanes = np.zeros(CHAINS, np.float32)
    for i in range(0, PART, CHAINS):
        lanes = lanes + weights[i : i + CHAINS]
    n_groups = THREADS // -(-n // 4)
    groups = np.zeros((n_groups, n), np.float32)
    for i in np.flatnonzero(seen).tolist():
        groups[i % n_groups] = fma(weights[i : i + 1], values[i], groups[i % n_groups])
    sums = groups[0]
    for other in groups[1:]:
        sums = sums + other
    return top, folded(lanes[:, None]), sums
