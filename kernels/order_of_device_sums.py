"""NumPy oracles of the order in which the device's kernels add: float32 throughout, so they give the kernels' bits.

The order is that of a token alone and of a token in a batch: of `matvec` and its kin and of `matmul`, of the sparse
FFNs and of `matmul_transposed`. `order_of_sums.py` has the CPU's, which is another.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.kernels.order_of_sums import fma
from hotcold.kernels.ref import BLOCK, F32, quantise

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
