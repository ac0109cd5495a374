"""What a run takes in one go: the nodes of a placed graph in segments of one kind."""

from collections.abc import Iterator
from itertools import groupby

from hotcold.engine.graph.placed import CPU, GPU, PlacedGraph, PlacedNode, is_own_array


def segments(placed: PlacedGraph) -> Iterator[tuple[str, list[PlacedNode]]]:
    """Runs of nodes of one kind, in order: "cpu", "gpu", "down", "up" or "logits" (of the device)."""
    for kind, nodes in groupby(placed.nodes, _kind):
        yield kind, list(nodes)


def _kind(p: PlacedNode) -> str:
    if is_own_array(p) and (p.side == GPU or p.node.op == "copy"):
        return "logits"
    if p.node.op == "copy":
        return "down" if p.side == CPU else "up"
    return p.side
