"""What HOTCOLD_DEBUG=2 prints: each node as it has run, its time, its bandwidth and its device."""

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.graph import Node, ffn_matrices, weights_of

Trace = Callable[[int, Node, int, float, NDArray[np.int64], str, tuple[Node, ...]], None]
"""Hears step, node, tokens that its graph takes, seconds, the neurons it listed and found firing in each
layer (int64 [n_layer, 2]), its side, "cpu" or "gpu", and the nodes that ran together, it among them; the
seconds are theirs."""


def weight_bytes(node: Node, n_tokens: int, counted: NDArray[np.int64]) -> int:
    """Bytes of weights that the node read; 0 where that is not known: rows shared among a batch's tokens."""
    if node.op in ("embed", "positions"):
        return n_tokens * node.weight("weight").row_bytes
    if node.op in ("sparse_ffn", "sparse_mlp"):
        first, *others = (weight.row_bytes for weight in ffn_matrices(node))
        listed, firing = (int(n) for n in counted.sum(axis=0))
        return listed * first + firing * sum(others) if n_tokens == 1 else 0
    return sum(weight.n_bytes for weight in weights_of(node))


def line(
    step: int,
    node: Node,
    n_tokens: int,
    seconds: float,
    counted: NDArray[np.int64],
    side: str,
    together: tuple[Node, ...],
) -> str:
    """One node: step, device, name, op, microseconds, GB/s (a dash where no weights are read, or unknown).

    Of nodes that ran together the first has the time and the bandwidth of all, and the others name it.
    """
    head = f"{step:>5} {side} {node.name:<20} {node.op:<10} "
    if node is not together[0]:
        return f"{head}with {together[0].name}"
    n_bytes = sum(weight_bytes(each, n_tokens, counted) for each in together)
    rate = f"{n_bytes / seconds / 1e9:8.2f} GB/s" if n_bytes and seconds > 0 else f"{'-':>8}"
    return f"{head}{seconds * 1e6:>9.1f} us {rate}"


def print_node(
    step: int,
    node: Node,
    n_tokens: int,
    seconds: float,
    counted: NDArray[np.int64],
    side: str,
    together: tuple[Node, ...],
) -> None:
    """Print `line` on stderr."""
    print(line(step, node, n_tokens, seconds, counted, side, together), file=sys.stderr)
