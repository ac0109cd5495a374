"""The last pass but one: what a node reads from the other side arrives by one copy node, however many operands.

From one card to another it goes by way of the CPU: two copies. What the CPU made, and a card reads once and for all, is
not copied: the host's arena is page-locked, and a kernel reads it where it lies.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

from hotcold.engine.graph.arena import bytes_together
from hotcold.engine.graph.graph import HOT, Node, Operand, Tensor, tensors_of
from hotcold.engine.graph.placed import (
    BOTH_SIDES,
    CPU,
    GPU,
    PlacedGraph,
    PlacedNode,
    results,
    sides_of_results,
)

READS_ONCE = frozenset({"merge"})
"""Ops whose kernels read each number of an operand once, a warp the neighbouring ones.

Not `add`, which may be one launch with a product, whose warps read a number each.
"""


def copies(placed: PlacedGraph) -> PlacedGraph:
    """Let operands cross the bus: one copy before the first node of the other side that reads them.

    What the cold rows of a layer need is copied before its hot rows begin, so that both sides can work
    at the same time. Logits end on the host, where the run's own array is.
    """
    crossing = _Crossing(_stay(placed))
    for p, following in zip_longest(placed.nodes, placed.nodes[1:]):
        if p.node.rows == HOT:
            crossing.operands(following)
        crossing.append(replace(p, node=replace(p.node, inputs=crossing.operands(p))))
        if p.node.op == "logits" and p.side != CPU:
            output = _across(p.node.output, CPU)
            attributes = MappingProxyType({"own_array": True})
            node = Node("copy", output.name, (p.node.output,), output, attributes)
            crossing.nodes.append(PlacedNode(node, CPU, "logits go to the run's own array"))
    return PlacedGraph(placed.n_tokens, tuple(crossing.nodes))


def _stay(placed: PlacedGraph) -> set[str]:
    """What the CPU makes and one node of a card reads, once: it stays where it is."""
    made_on = sides_of_results(placed)
    readers = Counter(tensor.name for p in placed.nodes for tensor in tensors_of(p.node))
    return {
        tensor.name
        for p in placed.nodes
        if p.side != CPU and p.node.op in READS_ONCE
        for tensor in tensors_of(p.node)
        if made_on[tensor.name] == CPU and readers[tensor.name] == 1
    }


def read_in_place(placed: PlacedGraph) -> Iterator[tuple[int, Tensor]]:
    """Behind this pass: the steps of cards that read what lies in the host's arena, and what they read there."""
    made_on = sides_of_results(placed)
    for step, p in enumerate(placed.nodes):
        if p.side != CPU and p.node.op != "copy":
            operands = (tensor for tensor in tensors_of(p.node) if tensor.dtype != "none")
            yield from ((step, tensor) for tensor in operands if made_on[tensor.name] == CPU)


def _across(tensor: Tensor, side: str) -> Tensor:
    """A result's copy on the other side."""
    return replace(tensor, name=f"{tensor.name}@{side}", origin=tensor)


class _Crossing:
    """Nodes so far, the side of each result, what has been copied to which side, and what is not to be."""

    def __init__(self, stay: set[str]) -> None:
        self.stay = stay
        self.nodes: list[PlacedNode] = []
        self.sides: dict[str, str] = {}
        self.copied: dict[tuple[str, str], Tensor] = {}

    def append(self, p: PlacedNode) -> None:
        """Add a node whose operands are on its side."""
        self.nodes.append(p)
        self.sides[p.node.output.name] = p.side

    def operands(self, p: PlacedNode) -> tuple[Operand, ...]:
        """A node's operands on its own side, copied there, all at once, if they are not."""
        missing = [t for t in tensors_of(p.node) if self._is_away(t, p.side)]
        wanted = [t for t in dict.fromkeys(missing) if (t.name, p.side) not in self.copied]
        if p.side != CPU:
            for tensor in [t for t in wanted if self.sides[t.name] != CPU]:
                self._from_card_to_card(tensor, p)
                wanted.remove(tensor)
        if wanted:
            self._copy(wanted, p)
        return tuple(
            self.copied[operand.name, p.side] if operand in missing else operand for operand in p.node.inputs
        )

    def _is_away(self, tensor: Tensor, side: str) -> bool:
        return tensor.dtype != "none" and self.sides[tensor.name] != side and tensor.name not in self.stay

    def _from_card_to_card(self, tensor: Tensor, p: PlacedNode) -> None:
        """Down to the CPU, if it is not there, and up from it."""
        if (tensor.name, CPU) not in self.copied:
            self._copy([tensor], replace(p, side=CPU), f"on its way to the {p.side.upper()}")
        on_cpu, there = self.copied[tensor.name, CPU], _across(tensor, p.side)
        node = Node("copy", there.name, (on_cpu,), there, MappingProxyType({}))
        self.nodes.append(PlacedNode(node, p.side, f"{p.node.name} on the {p.side.upper()} reads it"))
        self.copied[tensor.name, p.side] = there
        self.sides[there.name] = p.side

    def _copy(self, wanted: list[Tensor], p: PlacedNode, rule: str = "") -> None:
        """Append a copy node; masks go first, since their rows are the shortest."""
        wanted = sorted(wanted, key=lambda tensor: tensor.dtype != "mask")
        parts = tuple(_across(tensor, p.side) for tensor in wanted)
        several = len(parts) > 1
        name = f"{p.node.output.variant('in').name}@{p.side}" if several else parts[0].name
        attributes = MappingProxyType({"parts": parts} if several else {})
        node = Node("copy", name, tuple(wanted), parts[0], attributes)
        self.nodes.append(PlacedNode(node, p.side, rule or f"{p.node.name} on the {p.side.upper()} reads it"))
        for tensor, part in zip(wanted, parts, strict=True):
            self.copied[tensor.name, p.side] = part
            self.sides[part.name] = p.side


def bus(placed: PlacedGraph) -> dict[str, Any]:
    """Bytes and copies over the bus, by the side where they arrive, and bytes that kernels read over it.

    All cards are one. What is read in place is among the bytes that arrive.
    """
    in_place = sum(bytes_together((tensor,)) for _, tensor in read_in_place(placed))
    moved = [
        (CPU if p.side == CPU else GPU, bytes_together(results(p.node)))
        for p in placed.nodes
        if p.node.op == "copy"
    ]
    found = {
        side: {"copies": sum(to == side for to, _ in moved), "bytes": sum(n for to, n in moved if to == side)}
        for side in BOTH_SIDES
    }
    found[GPU]["bytes"] += in_place
    return found | {"in_place": in_place}
