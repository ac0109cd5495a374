"""The second pass: a node whose weight's rows are divided becomes two partial nodes and a merge on the GPU.

In a graph whose cold rows are sent to the device, that computes both parts.
"""

from collections.abc import Collection

from hotcold.engine.graph.graph import COLD, HOT, Node, Operand
from hotcold.engine.graph.placed import CPU, GPU, SPLIT, PlacedGraph, PlacedNode

SENT = "sent"
"""In the name of what the device makes of cold rows."""


def split(placed: PlacedGraph, streams: Collection[int] = ()) -> PlacedGraph:
    """Divide the nodes whose rows are divided; the merge keeps the node's name.

    Args:
        streams: layers whose cold rows come to the device.
    """
    nodes: list[PlacedNode] = []
    for p in placed.nodes:
        nodes += _divided(p, p.node.layer in streams) if p.side == SPLIT else [p]
    return PlacedGraph(placed.n_tokens, tuple(nodes))


def _divided(p: PlacedNode, streams: bool) -> list[PlacedNode]:
    parts = []
    cold = (GPU, SENT) if streams else (CPU, CPU)
    for (side, kind), rows in (((GPU, GPU), HOT), (cold, COLD)):
        output = p.node.output.variant(kind)
        inputs, roles = _part_operands(p.node, rows)
        node = Node(p.node.op, output.name, inputs, output, p.node.attributes, roles, rows)
        parts.append(PlacedNode(node, side, f"{rows} rows of {p.rule.removeprefix('its weight ')}"))
    merged = Node("merge", p.node.name, tuple(part.node.output for part in parts), p.node.output)
    return [*parts, PlacedNode(merged, GPU, f"its first operand {parts[0].node.name}")]


def _part_operands(node: Node, rows: str) -> tuple[tuple[Operand, ...], tuple[str, ...]]:
    """A partial node's operands and their roles; the bias of the down projection is the hot part's alone.

    An expert's belongs to the expert, wherever it is.
    """
    others = "down_bias" if rows == COLD and node.op != "expert_ffn" else ""
    kept = [i for i, role in enumerate(node.roles) if role != others]
    return tuple(node.inputs[i] for i in kept), tuple(node.roles[i] for i in kept)
