"""What a run takes in one go: the nodes of a placed graph in segments of one kind."""

from collections.abc import Iterator
from itertools import groupby

from hotcold.engine.graph.placed import CPU, PlacedGraph, PlacedNode, is_own_array


def segments(placed: PlacedGraph) -> Iterator[tuple[str, list[PlacedNode]]]:
    """Runs of nodes of one kind, in order: "cpu", a card's side, "down", "up" or "logits" (of a card)."""
    for kind, nodes in groupby(placed.nodes, _kind):
        yield kind, list(nodes)


def _kind(p: PlacedNode) -> str:
    if is_own_array(p) and (p.side != CPU or p.node.op == "copy"):
        return "logits"
    if p.node.op == "copy":
        return "down" if p.side == CPU else "up"
    return p.side
