"""The third pass: what an FFN on the CPU reads from the GPU is rounded there, if its weights want it rounded.

So is what an FFN on the GPU reads together with attention.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from hotcold.engine.graph.graph import ALL, Node, Tensor, reading_matrices, tensors_of
from hotcold.engine.graph.ops import FFN_OPS
from hotcold.engine.graph.placed import GPU, PlacedGraph, PlacedNode
from hotcold.kernels.weight_table import QUANTISED


def quantise(placed: PlacedGraph) -> PlacedGraph:
    """Round to int8 on the GPU what an FFN's CPU part reads; its GPU part then reads the same numbers.

    Where attention multiplies the same norm, it takes the rounded numbers too: they are made right behind
    the norm, else in front of the first FFN part that reads them.
    """
    readers = _readers(placed)
    at_once = {x for x, r in readers.items() if r.others and all(map(_is_rounding_product, r.others))}
    nodes: list[PlacedNode] = []
    for p in placed.nodes:
        rounded = [x for x in tensors_of(p.node) if x in at_once or (x in readers and p in readers[x].parts)]
        nodes += [_rounding(x, p) for x in rounded if x not in at_once and p is readers[x].parts[0]]
        nodes.append(_reading_rounded(p, rounded))
        if p.node.output in at_once:
            nodes.append(_rounding(p.node.output, readers[p.node.output].parts[0]))
    return PlacedGraph(placed.n_tokens, tuple(nodes))


@dataclass
class _Readers:
    """Who reads a result of the GPU that is to be rounded: the parts of FFNs that want it so, and others."""

    parts: list[PlacedNode] = field(default_factory=list)
    others: list[PlacedNode] = field(default_factory=list)


def _readers(placed: PlacedGraph) -> dict[Tensor, _Readers]:
    """The readers of each result that is to be rounded."""
    sides = {p.node.output.name: p.side for p in placed.nodes}
    shared = {p.node.tensor("x").name for p in placed.nodes if _is_rounding_product(p)}
    parts = [p for p in placed.nodes if _wants_rounded(p, shared) and sides[p.node.tensor("x").name] == GPU]
    wanting, readers = {p.node.name for p in parts}, {p.node.tensor("x"): _Readers() for p in parts}
    for p in placed.nodes:
        for x in readers.keys() & set(tensors_of(p.node)):
            (readers[x].parts if p.node.name in wanting else readers[x].others).append(p)
    return readers


def _is_rounding_product(p: PlacedNode) -> bool:
    """Whether a node is a product on the GPU that takes int8."""
    return p.node.op == "mul_mat" and p.side == GPU and p.node.weight("weight").type in QUANTISED


def _wants_rounded(p: PlacedNode, shared: Collection[str]) -> bool:
    """Whether a node is an FFN, or its part, on weights of whole blocks, that wants its input rounded.

    The CPU runs something of it, or it shares its input.
    """
    if p.node.op not in (*FFN_OPS, "expert_ffn"):
        return False
    if p.side == GPU and p.node.rows == ALL and p.node.tensor("x").name not in shared:
        return False
    return all(weight.type in QUANTISED for weight in reading_matrices(p.node))


def _rounding(x: Tensor, reader: PlacedNode) -> PlacedNode:
    """The node that rounds x, for its first reader's sake."""
    rounded = x.variant("q8", dtype="q8")
    return PlacedNode(Node("quantise", rounded.name, (x,), rounded), GPU, f"{reader.node.name} reads it")


def _reading_rounded(p: PlacedNode, rounded: Collection[Tensor]) -> PlacedNode:
    """The node with these operands rounded."""
    inputs = tuple(
        operand.variant("q8", dtype="q8") if isinstance(operand, Tensor) and operand in rounded else operand
        for operand in p.node.inputs
    )
    return replace(p, node=replace(p.node, inputs=inputs))
