"""The second pass: a node whose weight's rows are divided becomes two partial nodes and a merge on the GPU.

In a graph whose cold rows are sent to the device, that computes both parts, or several.
"""

from collections.abc import Mapping
from types import MappingProxyType

from hotcold.engine.graph.graph import COLD, HOT, Node, Operand, is_cold, layer_of
from hotcold.engine.graph.placed import CPU, GPU, SPLIT, PlacedGraph, PlacedNode

NONE: Mapping[int, tuple[str, ...]] = MappingProxyType({})
SENT = "sent"
"""In the name of what the device makes of cold rows."""


def split(placed: PlacedGraph, streams: Mapping[int, tuple[str, ...]] = NONE) -> PlacedGraph:
    """Divide the nodes whose rows are divided; the last merge keeps the node's name.

    Args:
        streams: of layers whose cold rows come to the device, which rows the parts are about.
    """
    nodes: list[PlacedNode] = []
    for p in placed.nodes:
        nodes += _divided(p, streams.get(layer_of(p.node))) if p.side == SPLIT else [p]
    return PlacedGraph(placed.n_tokens, tuple(nodes))


def _divided(p: PlacedNode, streamed: tuple[str, ...] | None) -> list[PlacedNode]:
    """The parts in their order, and behind each but the first its sum with those before."""
    nodes, total = list[PlacedNode](), None
    all_rows = streamed or (HOT, COLD)
    for i, rows in enumerate(all_rows):
        kind = GPU if rows == HOT else CPU if streamed is None else rows.replace(COLD, SENT)
        output = p.node.output.variant(kind)
        inputs, roles = _part_operands(p.node, rows)
        node = Node(p.node.op, output.name, inputs, output, p.node.attributes, roles, rows)
        side = CPU if kind == CPU else GPU
        nodes.append(PlacedNode(node, side, f"{rows} rows of {p.rule.removeprefix('its weight ')}"))
        if total is not None:
            both = p.node.output if i == len(all_rows) - 1 else p.node.output.variant(f"sum{i}")
            merge = Node("merge", both.name, (total, output), both)
            nodes.append(PlacedNode(merge, GPU, f"its first operand {total.name}"))
            output = both
        total = output
    return nodes


def _part_operands(node: Node, rows: str) -> tuple[tuple[Operand, ...], tuple[str, ...]]:
    """A partial node's operands and their roles; the bias of the down projection is the hot part's alone.

    An expert's belongs to the expert, wherever it is.
    """
    others = "down_bias" if is_cold(rows) and node.op != "expert_ffn" else ""
    kept = [i for i, role in enumerate(node.roles) if role != others]
    return tuple(node.inputs[i] for i in kept), tuple(node.roles[i] for i in kept)
