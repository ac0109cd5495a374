"""Passes from a graph to a placed one: place, split, copies, offsets. Each is a function, each result prints.

    place     a node runs where its weight is (for kv_store and attention: where their KV cache is),
              else where its first operand is
    split     a node whose weight's rows are divided becomes two partial nodes and a merge on the GPU
    copies    an operand on the other side arrives by a copy node
    offsets   each side's intermediates get bytes of that side's arena, from lifetimes

PowerInfer's rule differs: there the result of a mul_mat is on the GPU if any of its operands is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

from hotcold.engine.graph import Graph, Node, Operand, Tensor
from hotcold.engine.memory import Arena, Span, aligned, arrange, tensor_bytes
from hotcold.engine.model import Weight

CPU, GPU, SPLIT = "cpu", "gpu", "split"
SIDES = (GPU, CPU)


@dataclass(frozen=True)
class Homes:
    """Where weights and KV caches are.

    Attributes:
        weights: by name; what is not named is on the CPU. `gate` of a split FFN stands for its rows.
        kv: a side for each layer. head: of the output weight, which may be the embedding's again.
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    kv: tuple[str, ...] = ()
    head: str = CPU


@dataclass(frozen=True)
class PlacedNode:
    """A node, the side it runs on ("cpu", "gpu", or "split" before the pass of that name), and why."""

    node: Node
    side: str
    rule: str


@dataclass(frozen=True)
class PlacedGraph:
    """Placed nodes in the order in which they run."""

    n_tokens: int
    nodes: tuple[PlacedNode, ...]

    def __str__(self) -> str:
        """A line a node: step, side, result, op, operands, rule."""
        rows = [
            (str(i), p.side, p.node.name, p.node.op, ", ".join(o.name for o in p.node.inputs), p.rule)
            for i, p in enumerate(self.nodes)
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
        lines = [f"placed graph of {self.n_tokens} token{'s' if self.n_tokens > 1 else ''}"]
        for row in rows:
            lines.append(
                " ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            )
        return "\n".join(lines)


def place(graph: Graph, homes: Homes) -> PlacedGraph:
    """Give every node its side."""
    sides: dict[str, str] = {}
    placed = []
    for node in graph.nodes:
        side, rule = _side(node, homes, sides)
        sides[node.output.name] = GPU if side == SPLIT else side
        placed.append(PlacedNode(node, side, rule))
    return PlacedGraph(graph.n_tokens, tuple(placed))


def _side(node: Node, homes: Homes, sides: Mapping[str, str]) -> tuple[str, str]:
    if node.op in ("kv_store", "attention"):
        return homes.kv[node.attributes["layer"]], f"KV cache of layer {node.attributes['layer']}"
    weight = _deciding_weight(node)
    if weight is not None:
        home = homes.head if node.op == "logits" else homes.weights.get(weight.name, CPU)
        return home, f"its weight {weight.name}"
    first = node.inputs[0].name
    return sides[first], f"its first operand {first}"


def _deciding_weight(node: Node) -> Weight | None:
    """The weight that a node goes to; the factors of a rotation are in its table and decide nothing."""
    if node.op == "rope":
        return None
    return next((operand for operand in node.inputs if isinstance(operand, Weight)), None)


def split(placed: PlacedGraph) -> PlacedGraph:
    """Divide the nodes whose rows are divided; the merge keeps the node's name."""
    nodes: list[PlacedNode] = []
    for p in placed.nodes:
        nodes += _divided(p) if p.side == SPLIT else [p]
    return PlacedGraph(placed.n_tokens, tuple(nodes))


def _divided(p: PlacedNode) -> list[PlacedNode]:
    parts = []
    for side, rows in ((GPU, "hot"), (CPU, "cold")):
        output = replace(p.node.output, name=_named(p.node.name, side))
        attributes = MappingProxyType({**p.node.attributes, "rows": rows})
        node = Node(p.node.op, output.name, _inputs(p.node, rows), output, attributes)
        parts.append(PlacedNode(node, side, f"{rows} rows of {p.rule.removeprefix('its weight ')}"))
    merged = Node("merge", p.node.name, tuple(part.node.output for part in parts), p.node.output)
    return [*parts, PlacedNode(merged, GPU, f"its first operand {parts[0].node.name}")]


def _inputs(node: Node, rows: str) -> tuple[Operand, ...]:
    """A partial node's operands; the bias of the down projection, the last one, is the hot part's alone."""
    last = node.inputs[-1]
    has_bias = isinstance(last, Weight) and len(last.ne) == 1
    return node.inputs[:-1] if rows == "cold" and has_bias else node.inputs


def _named(name: str, side: str) -> str:
    """ffn_out-3 as ffn_out_gpu-3."""
    stem, dash, layer = name.rpartition("-")
    return f"{stem}_{side}-{layer}" if dash else f"{name}_{side}"


def copies(placed: PlacedGraph) -> PlacedGraph:
    """Let operands cross the bus: a copy before the first node of the other side that reads it.

    What the cold rows of a layer need is copied before its hot rows begin, so that both sides can work
    at the same time. Logits end on the host, where the run's own array is.
    """
    crossing = _Crossing()
    for p, following in zip_longest(placed.nodes, placed.nodes[1:]):
        if p.node.attributes.get("rows") == "hot":
            crossing.operands(following)
        crossing.append(replace(p, node=replace(p.node, inputs=crossing.operands(p))))
        if p.node.op == "logits" and p.side == GPU:
            _copy(crossing.nodes, p.node.output, CPU, "logits go to the run's own array", own_array=True)
    return PlacedGraph(placed.n_tokens, tuple(crossing.nodes))


class _Crossing:
    """Nodes so far, the side of each result, and what has been copied to which side."""

    def __init__(self) -> None:
        self.nodes: list[PlacedNode] = []
        self.sides: dict[str, str] = {}
        self.copied: dict[tuple[str, str], Tensor] = {}

    def append(self, p: PlacedNode) -> None:
        """Add a node whose operands are on its side."""
        self.nodes.append(p)
        self.sides[p.node.output.name] = p.side

    def operands(self, p: PlacedNode) -> tuple[Operand, ...]:
        """A node's operands on its own side, copied there if they are not."""
        return tuple(self._operand(operand, p) for operand in p.node.inputs)

    def _operand(self, operand: Operand, p: PlacedNode) -> Operand:
        if not isinstance(operand, Tensor) or operand.dtype == "none" or self.sides[operand.name] == p.side:
            return operand
        key = operand.name, p.side
        if key not in self.copied:
            rule = f"{p.node.name} on the {p.side.upper()} reads it"
            self.copied[key] = _copy(self.nodes, operand, p.side, rule)
        return self.copied[key]


def _copy(nodes: list[PlacedNode], operand: Tensor, side: str, rule: str, **attributes: Any) -> Tensor:
    """Append a copy node; its result."""
    output = replace(operand, name=f"{operand.name}@{side}")
    node = Node("copy", output.name, (operand,), output, MappingProxyType(attributes))
    nodes.append(PlacedNode(node, side, rule))
    return output


def is_own_array(p: PlacedNode) -> bool:
    """Whether a node's result lies outside the arenas: the run's logits."""
    return p.node.op == "logits" or bool(p.node.attributes.get("own_array"))


def placed_lifetimes(placed: PlacedGraph) -> dict[str, tuple[int, int]]:
    """First and last step of every result, on whichever side."""
    spans: dict[str, tuple[int, int]] = {}
    for step, p in enumerate(placed.nodes):
        spans[p.node.output.name] = (step, step)
        for operand in p.node.inputs:
            if isinstance(operand, Tensor):
                spans[operand.name] = (spans[operand.name][0], step)
    return spans


def offsets(placed: PlacedGraph) -> dict[str, Arena]:
    """An arena for each side."""
    spans = placed_lifetimes(placed)
    wanted: dict[str, list[Span]] = {side: [] for side in SIDES}
    for p in placed.nodes:
        if not is_own_array(p):
            output = p.node.output
            wanted[p.side].append(Span(output.name, aligned(tensor_bytes(output)), *spans[output.name]))
    return {side: arrange(each, len(placed.nodes)) for side, each in wanted.items()}


def run_passes(graph: Graph, homes: Homes) -> tuple[PlacedGraph, dict[str, Arena]]:
    """All passes in order: the placed graph, and each side's arena."""
    placed = copies(split(place(graph, homes)))
    return placed, offsets(placed)


def bus(placed: PlacedGraph) -> dict[str, Any]:
    """Bytes and copies over the bus, by the side where they arrive."""
    moved = [(p.side, tensor_bytes(p.node.output)) for p in placed.nodes if p.node.op == "copy"]
    return {
        side: {"copies": sum(to == side for to, _ in moved), "bytes": sum(n for to, n in moved if to == side)}
        for side in SIDES
    }
