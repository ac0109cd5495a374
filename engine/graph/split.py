"""The second pass: a node whose weight's rows are divided becomes two partial nodes and a merge on the GPU."""

from hotcold.engine.graph.graph import COLD, HOT, Node, Operand
from hotcold.engine.graph.placed import CPU, GPU, SPLIT, PlacedGraph, PlacedNode


def split(placed: PlacedGraph) -> PlacedGraph:
    """Divide the nodes whose rows are divided; the merge keeps the node's name."""
    nodes: list[PlacedNode] = []
    for p in placed.nodes:
        nodes += _divided(p) if p.side == SPLIT else [p]
    return PlacedGraph(placed.n_tokens, tuple(nodes))


def _divided(p: PlacedNode) -> list[PlacedNode]:
    parts = []
    for side, rows in ((GPU, HOT), (CPU, COLD)):
        output = p.node.output.variant(side)
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
