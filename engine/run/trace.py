"""What HOTCOLD_DEBUG=2 prints: each node as it has run, its time, its bandwidth and its device."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.graph import Node, ffn_matrices, weights_of
from hotcold.engine.graph.placed import CPU, GPU
from hotcold.engine.host.records import Record
from hotcold.engine.host.steps import Context, Step, Walk
from hotcold.engine.run.executor import Executor
from hotcold.kernels.cpu.team import Program


@dataclass(frozen=True)
class Taken:
    """A node that has run.

    Attributes:
        step: its place in the placed graph.
        node: it.
        n_tokens: that its graph takes.
        seconds: of all that ran together.
        counted: the neurons it listed and found firing in each layer, int64 [n_layer, 2].
        side: "cpu", or the card's, of copies both ways.
        together: the nodes that ran together, it among them.
    """

    step: int
    node: Node
    n_tokens: int
    seconds: float
    counted: NDArray[np.int64]
    side: str
    together: tuple[Node, ...]


Trace = Callable[[Taken], None]
"""Hears of each node as it has run."""


def weight_bytes(node: Node, n_tokens: int, counted: NDArray[np.int64]) -> int:
    """Bytes of weights that the node read; 0 where that is not known: rows shared among a batch's tokens."""
    if node.op in ("embed", "positions"):
        return n_tokens * node.weight("weight").row_bytes
    if node.op in ("sparse_gated_ffn", "sparse_ffn"):
        first, *others = (weight.row_bytes for weight in ffn_matrices(node))
        listed, firing = (int(n) for n in counted.sum(axis=0))
        return listed * first + firing * sum(others) if n_tokens == 1 else 0
    if node.op == "expert_ffn":
        return _expert_bytes(node, counted) if n_tokens == 1 else 0
    return sum(weight.n_bytes for weight in weights_of(node))


def _expert_bytes(node: Node, counted: NDArray[np.int64]) -> int:
    """Of one token's experts; where rows are skipped all gates, and the rows of neurons that fired."""
    gate, up, down = ffn_matrices(node)
    listed, firing = (int(n) for n in counted.sum(axis=0))
    read = firing if node.attributes["skip"] else listed
    n_bytes = listed * gate.row_bytes + read * up.row_bytes
    if node.attributes["transposed"]:
        return n_bytes + read * down.row_bytes
    return n_bytes + listed * down.n_bytes // gate.n_rows


def line(taken: Taken) -> str:
    """One node: step, device, name, op, microseconds, GB/s (a dash where no weights are read, or unknown).

    Of nodes that ran together the first has the time and the bandwidth of all, and the others name it.
    """
    node, first, seconds = taken.node, taken.together[0], taken.seconds
    head = f"{taken.step:>5} {taken.side} {node.name:<20} {node.op:<16} "
    if node is not first:
        return f"{head}with {first.name}"
    n_bytes = sum(weight_bytes(each, taken.n_tokens, taken.counted) for each in taken.together)
    rate = f"{n_bytes / seconds / 1e9:8.2f} GB/s" if n_bytes and seconds > 0 else f"{'-':>8}"
    return f"{head}{seconds * 1e6:>9.1f} us {rate}"


def print_node(taken: Taken) -> None:
    """Print `line` on stderr."""
    print(line(taken), file=sys.stderr)


class Tracing:
    """Takes an executor's steps one by one, and waits for each.

    The CPU's nodes too, by the same records in the same order.
    """

    def __init__(self, executor: Executor, trace: Trace) -> None:
        self._executor, self._trace = executor, trace
        self._programs: dict[tuple[int, str], Program] = {}

    def __call__(self, steps: Sequence[Step], context: Context) -> None:
        """Take them."""
        placed = self._executor.run_steps.last.placed
        numbers = {p.node.name: i for i, p in enumerate(placed.nodes)}
        for step in steps:
            if isinstance(step, Walk):
                for node, records in step.lowered:
                    self._walk(node, records, numbers[node.name], placed.n_tokens, context)
            else:
                self._take(step, numbers, placed.n_tokens, context)

    def _take(self, step: Step, numbers: dict[str, int], n_tokens: int, context: Context) -> None:
        """A step of the device."""
        started = time.perf_counter()
        step.run(context)
        for device in self._executor.devices:
            device.compute.synchronize()
            device.crossing.synchronize()
        seconds = time.perf_counter() - started
        none = np.zeros_like(self._executor.counts[:, 0])
        for node in step.nodes:
            side = self._executor.run_steps.last.placed.nodes[numbers[node.name]].side
            side = GPU if side == CPU else side  # a copy that comes from there
            self._trace(Taken(numbers[node.name], node, n_tokens, seconds, none, side, step.nodes))

    def _walk(self, node: Node, records: list[Record], number: int, n_tokens: int, context: Context) -> None:
        """A node of the CPU."""
        key, counts = (n_tokens, node.name), self._executor.counts
        if key not in self._programs:
            self._programs[key] = self._executor.host.program(records)
        counted, started = counts.sum(axis=1), time.perf_counter()
        context.team.walk(self._programs[key])
        seconds = time.perf_counter() - started
        found = counts.sum(axis=1) - counted
        self._trace(Taken(number, node, n_tokens, seconds, found, CPU, (node,)))
