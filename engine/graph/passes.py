"""Passes from a graph to a placed one: place, split, quantise, copies, offsets. Each is a function, each
result prints.

    place     a node runs where its weight is (for rope, kv_store and attention: where the KV cache of
              their layer is), an add where the next weight is, any other where its first operand is
    split     a node whose weight's rows are divided becomes two partial nodes and a merge on the GPU
    quantise  what an FFN on the CPU reads from the GPU is rounded there, if its weights want it rounded,
              and what an FFN on the GPU reads together with attention
    copies    what a node reads from the other side arrives by one copy node, however many operands
    offsets   each side's intermediates get bytes of that side's arena, from lifetimes

An add joins the residual: its sum is read next by the following norm or predictor, so it is formed
there, and only one of its operands crosses the bus at most.

PowerInfer's rule differs: there the result of a mul_mat is on the GPU if any of its operands is.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, zip_longest
from types import MappingProxyType
from typing import Any

from hotcold.engine.graph.arena import Arena, Entry, Span, aligned, arrange, tensor_bytes
from hotcold.engine.graph.graph import (
    ALL,
    COLD,
    HOT,
    Graph,
    Node,
    Operand,
    Tensor,
    ffn_matrices,
    layer_of,
    tensors_of,
)
from hotcold.engine.model.model import Weight
from hotcold.kernels.formats import QUANTISED

CPU, GPU, SPLIT = "cpu", "gpu", "split"
SIDES = (GPU, CPU)
FFN_OPS = ("dense_ffn", "sparse_ffn", "dense_mlp", "sparse_mlp")
FUSED = {"add": ("mul_mat", "merge", *FFN_OPS), "quantise": ("rms_norm", "layer_norm")}
"""What the device does in one go: an op, and those right before it that take it along."""
PART_ALIGNMENT = 16  # of what lies side by side, so that kernels can read vectors of four


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
    for step, node in enumerate(graph.nodes):
        side, rule = _side(_decisive(graph, step), homes, sides)
        side = GPU if side == SPLIT and node.op == "add" else side
        rule = rule.replace("its weight", "the next weight") if node.op == "add" else rule
        sides[node.output.name] = GPU if side == SPLIT else side
        placed.append(PlacedNode(node, side, rule))
    return PlacedGraph(graph.n_tokens, tuple(placed))


def _side(node: Node, homes: Homes, sides: Mapping[str, str]) -> tuple[str, str]:
    if node.op in ("kv_store", "attention"):
        return homes.kv[layer_of(node)], f"KV cache of layer {node.layer}"
    weight = _deciding_weight(node)
    if weight is not None:
        home = homes.head if node.op == "logits" else homes.weights.get(weight.name, CPU)
        return home, f"its weight {weight.name}"
    first = node.inputs[0].name
    return sides[first], f"its first operand {first}"


def _decisive(graph: Graph, step: int) -> Node:
    """The node whose place a node shares: the next with a weight for an add, the store for a rotation."""
    node = graph.nodes[step]
    if node.op == "add":
        return next(later for later in graph.nodes[step:] if _deciding_weight(later) is not None)
    if node.op == "rope":
        return next(later for later in graph.nodes[step:] if later.op == "kv_store")
    return node


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
    for side, rows in ((GPU, HOT), (CPU, COLD)):
        output = p.node.output.variant(side)
        inputs, roles = _part_operands(p.node, rows)
        node = Node(p.node.op, output.name, inputs, output, p.node.attributes, roles, rows)
        parts.append(PlacedNode(node, side, f"{rows} rows of {p.rule.removeprefix('its weight ')}"))
    merged = Node("merge", p.node.name, tuple(part.node.output for part in parts), p.node.output)
    return [*parts, PlacedNode(merged, GPU, f"its first operand {parts[0].node.name}")]


def _part_operands(node: Node, rows: str) -> tuple[tuple[Operand, ...], tuple[str, ...]]:
    """A partial node's operands and their roles; the bias of the down projection is the hot part's alone."""
    kept = [i for i, role in enumerate(node.roles) if rows == HOT or role != "down_bias"]
    return tuple(node.inputs[i] for i in kept), tuple(node.roles[i] for i in kept)


def quantise(placed: PlacedGraph) -> PlacedGraph:
    """Round to int8 on the GPU what an FFN's CPU part reads; its GPU part then reads the same numbers.

    Where attention multiplies the same norm, it takes the rounded numbers too.
    """
    nodes: list[PlacedNode] = []
    sides: dict[str, str] = {}
    shared = {p.node.tensor("x").name for p in placed.nodes if _is_rounding_product(p)}
    for p in placed.nodes:
        if _wants_rounded(p, shared) and sides[p.node.tensor("x").name] == GPU:
            p = _with_rounded_input(p, nodes, sides)
        nodes.append(p)
        sides[p.node.output.name] = p.side
    return PlacedGraph(placed.n_tokens, _rounded_once(nodes))


def _is_rounding_product(p: PlacedNode) -> bool:
    """Whether a node is a product on the GPU that takes int8."""
    return p.node.op == "mul_mat" and p.side == GPU and p.node.weight("weight").type in QUANTISED


def _wants_rounded(p: PlacedNode, shared: Collection[str]) -> bool:
    """Whether a node is an FFN, or its part, of which the CPU runs something, or that shares its input, on
    weights of whole blocks."""
    if p.node.op not in FFN_OPS:
        return False
    if p.side == GPU and p.node.rows == ALL and p.node.tensor("x").name not in shared:
        return False
    return all(weight.type in QUANTISED for weight in reading_matrices(p.node))


def _rounded_once(nodes: list[PlacedNode]) -> tuple[PlacedNode, ...]:
    """Move each rounding right behind what it rounds, if all other readers are products that take int8."""
    for p in [p for p in nodes if p.node.op == "quantise"]:
        (x,) = tensors_of(p.node)
        others = [other for other in nodes if other is not p and x in tensors_of(other.node)]
        if not others or not all(map(_is_rounding_product, others)):
            continue
        nodes.remove(p)
        nodes.insert(next(i for i, other in enumerate(nodes) if other.node.output == x) + 1, p)
        nodes[:] = [_reading(other, x, p.node.output) if other in others else other for other in nodes]
    return tuple(nodes)


def _reading(p: PlacedNode, old: Tensor, new: Tensor) -> PlacedNode:
    inputs = tuple(new if operand == old else operand for operand in p.node.inputs)
    return replace(p, node=replace(p.node, inputs=inputs))


def reading_matrices(node: Node) -> list[Weight]:
    """The matrices that a product's or an FFN's input is multiplied with: all but the down projection."""
    return [node.weight("weight")] if node.op == "mul_mat" else ffn_matrices(node)[:-1]


def _with_rounded_input(p: PlacedNode, nodes: list[PlacedNode], sides: dict[str, str]) -> PlacedNode:
    x = p.node.tensor("x")
    rounded = x.variant("q8", dtype="q8")
    if rounded.name not in sides:
        nodes.append(
            PlacedNode(Node("quantise", rounded.name, (x,), rounded), GPU, f"{p.node.name} reads it")
        )
        sides[rounded.name] = GPU
    return _reading(p, x, rounded)


def copies(placed: PlacedGraph) -> PlacedGraph:
    """Let operands cross the bus: one copy before the first node of the other side that reads them.

    What the cold rows of a layer need is copied before its hot rows begin, so that both sides can work
    at the same time. Logits end on the host, where the run's own array is.
    """
    crossing = _Crossing()
    for p, following in zip_longest(placed.nodes, placed.nodes[1:]):
        if p.node.rows == HOT:
            crossing.operands(following)
        crossing.append(replace(p, node=replace(p.node, inputs=crossing.operands(p))))
        if p.node.op == "logits" and p.side == GPU:
            output = _across(p.node.output, CPU)
            attributes = MappingProxyType({"own_array": True})
            node = Node("copy", output.name, (p.node.output,), output, attributes)
            crossing.nodes.append(PlacedNode(node, CPU, "logits go to the run's own array"))
    return PlacedGraph(placed.n_tokens, tuple(crossing.nodes))


def _across(tensor: Tensor, side: str) -> Tensor:
    """A result's copy on the other side."""
    return replace(tensor, name=f"{tensor.name}@{side}", origin=tensor)


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
        """A node's operands on its own side, copied there, all at once, if they are not."""
        missing = [t for t in tensors_of(p.node) if self._is_away(t, p.side)]
        wanted = [t for t in dict.fromkeys(missing) if (t.name, p.side) not in self.copied]
        if wanted:
            self._copy(wanted, p)
        return tuple(
            self.copied[operand.name, p.side] if operand in missing else operand for operand in p.node.inputs
        )

    def _is_away(self, tensor: Tensor, side: str) -> bool:
        return tensor.dtype != "none" and self.sides[tensor.name] != side

    def _copy(self, wanted: list[Tensor], p: PlacedNode) -> None:
        """Append a copy node; masks go first, since their rows are the shortest."""
        wanted = sorted(wanted, key=lambda tensor: tensor.dtype != "mask")
        parts = tuple(_across(tensor, p.side) for tensor in wanted)
        several = len(parts) > 1
        name = f"{p.node.output.variant('in').name}@{p.side}" if several else parts[0].name
        attributes = MappingProxyType({"parts": parts} if several else {})
        node = Node("copy", name, tuple(wanted), parts[0], attributes)
        self.nodes.append(PlacedNode(node, p.side, f"{p.node.name} on the {p.side.upper()} reads it"))
        for tensor, part in zip(wanted, parts, strict=True):
            self.copied[tensor.name, p.side] = part
            self.sides[part.name] = p.side


def results(node: Node) -> tuple[Tensor, ...]:
    """What a node makes: its output, or all parts of what a copy carries."""
    parts: tuple[Tensor, ...] = node.attributes.get("parts", (node.output,))
    return parts


def is_own_array(p: PlacedNode) -> bool:
    """Whether a node's result lies outside the arenas: the run's logits."""
    return p.node.op == "logits" or bool(p.node.attributes.get("own_array"))


def placed_lifetimes(placed: PlacedGraph) -> dict[str, tuple[int, int]]:
    """First and last step of every result, on whichever side.

    What is copied up stays until the CPU's next node: the host waits for its copies only then. What the
    device reads for a node stays until the next one is done, where they are one launch.
    """
    spans: dict[str, tuple[int, int]] = {}
    for step, p in enumerate(placed.nodes):
        spans |= {result.name: (step, step) for result in results(p.node)}
        last = _last_read(placed, step)
        for operand in tensors_of(p.node):
            spans[operand.name] = (spans[operand.name][0], max(spans[operand.name][1], last))
    return spans


def _last_read(placed: PlacedGraph, step: int) -> int:
    """The step at which a node's operands are read for the last time on its behalf."""
    p, following = placed.nodes[step], placed.nodes[step + 1 : step + 2]
    if p.node.op == "copy" and p.side == GPU:
        return _next_on_the_cpu(placed, step)
    if p.side == GPU and following and p.node.op in FUSED.get(following[0].node.op, ()):
        return step + 1  # one launch does both, so what comes out may not take the operand's bytes
    return step


def _next_on_the_cpu(placed: PlacedGraph, step: int) -> int:
    """The next step at which the CPU computes, else the last."""
    later = (i for i in range(step, len(placed.nodes)) if placed.nodes[i].side == CPU)
    return next((i for i in later if placed.nodes[i].node.op != "copy"), len(placed.nodes) - 1)


def offsets(placed: PlacedGraph) -> dict[str, Arena]:
    """An arena for each side. What crosses in one copy lies side by side, on both sides."""
    spans = placed_lifetimes(placed)
    wanted: dict[str, list[Span]] = {side: [] for side in SIDES}
    together = _together(placed)
    members: dict[str, tuple[Tensor, ...]] = {}
    for p in placed.nodes:
        for result in results(p.node):
            group = together.get(result.name, (result,))
            if is_own_array(p) or group[0].name in members:
                continue
            members[group[0].name] = group
            lives = [spans[member.name] for member in group]
            first, last = min(first for first, _ in lives), max(last for _, last in lives)
            wanted[p.side].append(Span(group[0].name, aligned(bytes_together(group)), first, last))
    return {side: _apart(arrange(each, len(placed.nodes)), members, spans) for side, each in wanted.items()}


def _together(placed: PlacedGraph) -> dict[str, tuple[Tensor, ...]]:
    """For what crosses the bus with others: all of them, in the order of the copy."""
    groups: dict[str, tuple[Tensor, ...]] = {}
    for p in placed.nodes:
        if "parts" in p.node.attributes:
            for group in (tuple(tensors_of(p.node)), results(p.node)):
                groups |= {member.name: group for member in group}
    return groups


def bytes_together(tensors: tuple[Tensor, ...]) -> int:
    """Bytes of intermediates that lie side by side, each but the last padded to 16."""
    return places_together(tensors)[-1] + tensor_bytes(tensors[-1])


def places_together(tensors: tuple[Tensor, ...]) -> list[int]:
    """Where each of them begins."""
    padded = [-(-tensor_bytes(tensor) // PART_ALIGNMENT) * PART_ALIGNMENT for tensor in tensors[:-1]]
    return list(accumulate(padded, initial=0))


def _apart(
    arena: Arena, members: Mapping[str, tuple[Tensor, ...]], spans: Mapping[str, tuple[int, int]]
) -> Arena:
    """The arena with an entry for each of what lies side by side."""
    entries: list[Entry] = []
    for entry in arena.entries:
        group = members[entry.name]
        places = [*places_together(group), entry.n_bytes]
        reused_by = tuple(member.name for name in entry.reused_by for member in members[name])
        for member, start, end in zip(group, places, places[1:], strict=False):
            first, last = spans[member.name]
            entries.append(Entry(member.name, entry.offset + start, end - start, first, last, reused_by))
    return replace(arena, entries=tuple(entries))


def run_passes(graph: Graph, homes: Homes) -> tuple[PlacedGraph, dict[str, Arena]]:
    """All passes in order: the placed graph, and each side's arena."""
    placed = copies(quantise(split(place(graph, homes))))
    return placed, offsets(placed)


def bus(placed: PlacedGraph) -> dict[str, Any]:
    """Bytes and copies over the bus, by the side where they arrive."""
    moved = [(p.side, bytes_together(results(p.node))) for p in placed.nodes if p.node.op == "copy"]
    return {
        side: {"copies": sum(to == side for to, _ in moved), "bytes": sum(n for to, n in moved if to == side)}
        for side in SIDES
    }
