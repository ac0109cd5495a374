"""The first pass: each node gets the side that its op's table says.

An add joins the residual: its sum is read next by the following norm or predictor, so it is formed
there, and only one of its operands crosses the bus at most.

PowerInfer's rule differs: there the result of a mul_mat is on the GPU if any of its operands is.
"""

from collections.abc import Mapping

from hotcold.engine.graph.graph import Graph, Node, layer_of
from hotcold.engine.graph.ops import OPS, WITH_CACHE, WITH_HEAD, WITH_NEXT, WITH_STORE
from hotcold.engine.graph.placed import CPU, GPU, SPLIT, PlacedGraph, PlacedNode, Sides
from hotcold.engine.model.model import Weight


def place(graph: Graph, sides: Sides) -> PlacedGraph:
    """Give every node its side."""
    of_results: dict[str, str] = {}
    placed = []
    for step, node in enumerate(graph.nodes):
        side, rule = _side(_decisive(graph, step), sides, of_results)
        if OPS[node.op].runs == WITH_NEXT:
            side, rule = GPU if side == SPLIT else side, rule.replace("its weight", "the next weight")
        of_results[node.output.name] = GPU if side == SPLIT else side
        placed.append(PlacedNode(node, side, rule))
    return PlacedGraph(graph.n_tokens, tuple(placed))


def _side(node: Node, sides: Sides, of_results: Mapping[str, str]) -> tuple[str, str]:
    if OPS[node.op].runs == WITH_CACHE:
        return sides.kv[layer_of(node)], f"KV cache of layer {node.layer}"
    weight = _deciding_weight(node)
    if weight is not None:
        side = sides.head if OPS[node.op].runs == WITH_HEAD else sides.weights.get(weight.name, CPU)
        return side, f"its weight {weight.name}"
    first = node.inputs[0].name
    return of_results[first], f"its first operand {first}"


def _decisive(graph: Graph, step: int) -> Node:
    """The node whose place a node shares: the next with a weight for an add, the store for a rotation."""
    node = graph.nodes[step]
    if OPS[node.op].runs == WITH_NEXT:
        return next(later for later in graph.nodes[step:] if _deciding_weight(later) is not None)
    if OPS[node.op].runs == WITH_STORE:
        return next(later for later in graph.nodes[step:] if later.op == "kv_store")
    return node


def _deciding_weight(node: Node) -> Weight | None:
    """The weight that a node goes to; the factors of a rotation are in its table and decide nothing."""
    if OPS[node.op].runs == WITH_STORE:
        return None
    return next((operand for operand in node.inputs if isinstance(operand, Weight)), None)
