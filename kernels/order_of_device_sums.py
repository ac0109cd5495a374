"""NumPy oracles of the order in which the device's kernels add: float32 throughout, so they give the kernels' bits.

The order is that of a token alone and of a token in a batch: of `matvec` and its kin and of `matmul`, of the sparse
FFNs and of `matmul_transposed`, of attention by one block and by many. `order_of_sums.py` has the CPU's, which is
another.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.kernels.order_of_sums import LOWEST, fma, folded
from hotcold.kernels.ref import BLOCK, F32, quantise, seen_positions

Type = GGMLQuantizationType
CHAINS = 32
"""As many as a warp has lanes."""
EIGHT, SIXTEEN = 8, 16
CHAINS_OF_HALVES = 8
IN_ORDER_OF_MMA = (
    tuple(8 * lane + word + i for word in (0, 2) for lane in range(4) for i in (0, 1)),
    tuple(8 * lane + word + i for word in (4, 6) for lane in range(4) for i in (0, 1)),
)
"""Numbers of a piece of 32 halves that the first mma multiplies, and the second."""

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
    """w . x of float rows, and of halves without tensor cores, in 32 chains.

    Eight i adds to chain i mod 32, number after number by fma; the last eight may have fewer.

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


def split_to_f16(x: F32) -> tuple[np.float32, tuple[F32, ...]]:
    """32 numbers as scale * (high + low), both of F16.

    The scale is the power of two that makes the largest of them 2^14 to 2^15, and 2^-126 at least.
    """
    _, exponent = np.frexp(np.abs(x).max())  # the largest is below 2^exponent
    scale = np.ldexp(np.float32(1), max(int(exponent) - 15, -126)) if x.any() else np.float32(2.0**-126)
    return scale, in_halves(x / scale)


def split_to_bf16(x: F32) -> tuple[np.float32, tuple[F32, ...]]:
    """Numbers as the sum of three BF16, each what is left cut to eight bits; and 1."""
    terms: list[F32] = []
    for _ in range(3):
        terms.append((np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))
        x = x - terms[-1]
    return np.float32(1), tuple(terms)


def device_dots_of_halves(weight_type: Type, w: F32, x: F32) -> F32:
    """w . x of F16 or BF16 rows by tensor cores.

    Pieces of 32 weights; piece p adds to chain p mod 8 by a = fma(products, scale, a). Of each term of the input they
    are two mma, of the numbers `IN_ORDER_OF_MMA`, the second of which adds to the first; terms are added as first +
    second, or first + (second + third). At last the chains are added in their order, and a row ends in zeros.

    An mma is that of the emulated device: sixteen exact products added in float64 in ascending order, rounded once.
    How a card adds them is not published. There this oracle is as near as any other order of float32.

    Args:
        weight_type: F16 or BF16.
        w: [n_rows, k]. x: [k].

    Returns:
        float32 [n_rows].
    """
    split = split_to_f16 if weight_type == Type.F16 else split_to_bf16
    past = -len(x) % BLOCK
    w, x = np.pad(w, ((0, 0), (0, past))), np.pad(x, (0, past))
    chains = np.zeros((CHAINS_OF_HALVES, len(w)), np.float32)
    for p in range(len(x) // BLOCK):
        piece = slice(BLOCK * p, BLOCK * (p + 1))
        scale, terms = split(x[piece])
        *larger, products = (_products(w[:, piece], term) for term in terms)
        for of_term in reversed(larger):
            products = of_term + products
        chain = chains[p % CHAINS_OF_HALVES]
        chain[:] = fma(products, np.broadcast_to(scale, products.shape), chain)
    return in_lanes(chains)


def _products(w: F32, x: F32) -> F32:
    """The sum of those of 32 weights and halves, by two mma."""
    products = np.zeros(len(w), np.float32)
    for numbers in map(list, IN_ORDER_OF_MMA):
        products = add_products(products, w[:, numbers], x[numbers])
    return products


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
WARPS, CHUNK, ONE = 8, 32, np.float32(2**14)
"""Of attention by tensor cores: warps of a block; numbers of a row that are read at once; a weight of 1."""


def exp_of_float64(x: F32) -> F32:
    """e^x, rounded once. A device's own expf may differ in the last bit."""
    return np.exp(x.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True)
class AttentionOrder:
    """Which of the device's two ways of attention.

    Attributes:
        exp: e^x.
        tiles: by tensor cores, of a cache whose numbers are F16. The bits are those of the emulated device: in which
            order a card's own add sixteen products, and how they round, is not published.
    """

    exp: Callable[[F32], F32] = exp_of_float64
    tiles: bool = False


BY_LANES = AttentionOrder()


def device_attention(
    q: F32,
    k: F32,
    v: F32,
    n_past: int,
    window: int,
    sinks: F32 | None,
    scale: float,
    order: AttentionOrder = BY_LANES,
) -> F32:
    """`ref.attention` in float32, in the order of sums that the device's kernels have.

    Parts of 256 positions, from the first on, soften by themselves, as `_of_part` and, by tensor cores,
    `_of_part_in_tiles` have it. A query's parts are joined in order: with w = exp(top of the part - new top)
    and u = exp(old top - new top)

        sum = fma(sum of the part, w, sum * u),    and the total likewise.

    Args:
        q: [n_tokens, n_head, head_dim]. k, v: [n_keys, n_head_kv, head_dim]. sinks: [n_head].
        window: 0 sees all.
    """
    n_tokens, n_head, head_dim = q.shape
    n_keys, group = len(k), n_head // k.shape[1]
    seen = seen_positions(n_past, n_tokens, n_keys, window)
    x, y, exp = q * np.float32(scale), np.empty_like(q), order.exp
    of_part = _of_part_in_tiles if order.tiles else _of_part
    for token, head in np.ndindex(n_tokens, n_head):
        keys, values = k[:, head // group], v[:, head // group]
        all_before = (np.array([LOWEST], np.float32), np.zeros(1, np.float32), np.zeros(head_dim, np.float32))
        for first in range(0, n_keys, PART):
            part = slice(first, first + PART)
            if seen[token, part].any():
                next_one = of_part(x[token, head], keys[part], values[part], seen[token, part], exp)
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
    """Maximum [1], total [1] and sums of values of one query; x [head_dim], keys [positions, head_dim].

    A score is four chains of fma: chain c has eights c, c + 4 and so on of the head; they are added as a tree. Weight i
    goes to lane i mod 32 of the total, whose lanes are added as a tree. With as many columns as four a thread leave
    groups of threads, position i adds to the sums of values of group i mod n_groups, by fma; groups are added in order.
    """
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


def in_halves(x: F32) -> tuple[F32, F32]:
    """Each number rounded to F16, and what is missing rounded to F16."""
    high = x.astype(np.float16).astype(np.float32)
    return high, (x - high).astype(np.float16).astype(np.float32)


def add_products(c: F32, a: F32, b: F32) -> F32:
    """c + sum of a b over the last axis, as the emulated device's mma adds them: exact products, rounded once.

    Args:
        a, b: [..., 16], numbers of F16 or BF16. c: [...].
    """
    total = c.astype(np.float64)
    for k in range(a.shape[-1]):
        total = total + a[..., k].astype(np.float64) * b[..., k].astype(np.float64)
    return total.astype(np.float32)


def _of_part_in_tiles(
    x: F32, keys: F32, values: F32, seen: NDArray[np.bool_], exp: Callable[[F32], F32]
) -> tuple[F32, F32, F32]:
    """As `_of_part`, by tensor cores.

    x is taken in units of a power of two, its largest number between 2^14 and 2^15, and as two halves. Of 32
    numbers the first product of 16 has those whose place in their eight is below 4, two of each eight and
    then the other two, and the next product has the rest; high halves go before low ones, into one float. A
    warp has 32 positions: two lots of eight neighbouring pairs. Of its total a pair and that of the other lot
    add up in order, the eight as a tree, and the warps in order. Weights, in units of 2^-14 and as two
    halves, multiply values sixteen by sixteen positions. With as many chunks of 32 columns leave groups of
    warps, sixteen i goes to group i mod n_groups; groups are added in order.
    """
    n, n_chunks = len(x), -(-len(x) // CHUNK)
    exponent = max(int(np.abs(x).max().view(np.int32)) >> 23, 15) - 127
    unit = np.float32(2.0 ** (exponent - 14))
    halves = in_halves(np.pad(x * np.float32(2.0 ** (14 - exponent)), (0, n_chunks * CHUNK - n)))
    scores, wide = np.zeros(PART, np.float32), np.zeros((PART, n_chunks * CHUNK), np.float32)
    wide[: len(keys), :n] = keys
    eights = np.arange(0, CHUNK, EIGHT)[:, None]
    for first in range(0, n_chunks * CHUNK, CHUNK):
        for step in (0, 4):
            places = [(first + eights + step + pair + np.arange(2)).ravel() for pair in (0, 2)]
            some = np.concatenate(places)
            for half in halves:
                scores = add_products(scores, wide[:, some], half[some])
    scores = scores * unit
    is_seen = np.pad(seen, (0, PART - len(seen)))
    top = scores[is_seen].max(keepdims=True)
    weights = np.zeros(PART, np.float32)
    weights[is_seen] = exp(scores[is_seen] - top)
    pairs = weights.reshape(WARPS, 2, EIGHT, 2)
    lanes = ((pairs[:, 0, :, 0] + pairs[:, 0, :, 1]) + pairs[:, 1, :, 0]) + pairs[:, 1, :, 1]
    n_groups, read = WARPS // n_chunks, np.zeros((PART, n), np.float32)
    read[: len(seen)][seen] = values[seen]
    groups, (high, low) = np.zeros((n_groups, n), np.float32), in_halves(weights * ONE)
    for i in range(PART // SIXTEEN):
        some = np.arange(i * SIXTEEN, (i + 1) * SIXTEEN)
        for half in (high, low):
            groups[i % n_groups] = add_products(groups[i % n_groups], read[some].T, half[some])
    return top, in_lanes(folded(lanes.T)[:, None]), in_lanes(groups) / ONE
