"""A pass over one side of a placed graph: what quantised weights read is packed by a node of its own.

It stands in front of the first node that reads it, and is made when that side is lowered.

A side has one area for packed vectors. What lies there is of use to all that read it in a row: until another
vector is packed, or a node packs one of its own. The plan lists no such nodes: they move no bytes between
sides and take none of the arenas.
"""

from collections.abc import Callable
from dataclasses import replace

from gguf import GGMLQuantizationType

from hotcold.engine.graph.graph import Node, Tensor, reading_matrices
from hotcold.engine.graph.ops import FFN_OPS
from hotcold.engine.graph.placed import CPU, PlacedGraph, PlacedNode

IsQuantised = Callable[[GGMLQuantizationType], bool]


def pack(placed: PlacedGraph, side: str, is_quantised: IsQuantised) -> PlacedGraph:
    """The graph with this side's `pack` nodes.

    A node that multiplies its input by quantised weights alone reads the packed one in its place; one that
    has others too reads both.
    """
    nodes: list[PlacedNode] = []
    held: Tensor | None = None
    for p in placed.nodes:
        if p.side == side:
            x = _packed_input(p, is_quantised)
            if x is not None and x != held:
                nodes.append(PlacedNode(_pack_node(x), side, f"{p.node.name} reads it"))
                held = x
            if x is not None:
                p = replace(p, node=_reading_packed(p.node, x, is_quantised))
            if _packs_its_own(p.node, is_quantised):
                held = None
        nodes.append(p)
    return PlacedGraph(placed.n_tokens, tuple(nodes))


def _packed_input(p: PlacedNode, is_quantised: IsQuantised) -> Tensor | None:
    """What a node reads packed, if it does; what the device has rounded already it reads as it is.

    On the device the head's input is packed with the head, if it is wanted.
    """
    if not reading_matrices(p.node) or (p.side != CPU and p.node.op == "logits"):
        return None
    x = p.node.tensor("x")
    if p.side != CPU and x.dtype == "q8":
        return None
    return x if any(is_quantised(weight.type) for weight in reading_matrices(p.node)) else None


def _pack_node(x: Tensor) -> Node:
    packed = x.variant("packed", dtype="packed")
    return Node("pack", packed.name, (x,), packed, roles=("x",))


def _reading_packed(node: Node, x: Tensor, is_quantised: IsQuantised) -> Node:
    packed = x.variant("packed", dtype="packed")
    if all(is_quantised(weight.type) for weight in reading_matrices(node)):
        return replace(node, inputs=tuple(packed if operand is x else operand for operand in node.inputs))
    return replace(node, inputs=(*node.inputs, packed), roles=(*node.roles, "packed"))


def _packs_its_own(node: Node, is_quantised: IsQuantised) -> bool:
    """Whether a node packs its hidden vector: for fc2, or for a down projection with a row an output."""
    if node.op == "predictor":
        return is_quantised(node.weight("fc2").type)
    by_outputs = node.op in FFN_OPS and not node.attributes.get("transposed", True)
    return by_outputs and is_quantised(node.weight("down").type)
