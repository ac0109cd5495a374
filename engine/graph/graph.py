"""A graph of ops: which numbers are computed from which, in which order.

`Graph.add(op, *inputs, **attributes)` appends a node and gives its result, so that an architecture
reads like the model's formulas. A graph knows shapes and nothing of bytes, devices or kernels. Every
intermediate has one row a token; how many positions the KV cache holds is a matter of the run. A
finished graph is frozen, and `check` refuses one that cannot run.

The ops, their operands and results are in `ops.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

from hotcold.engine.graph.ops import OPS, OperandRule
from hotcold.engine.model.model import Weight
from hotcold.errors import HotcoldError


@dataclass(frozen=True)
class Tensor:
    """An intermediate.

    Attributes:
        shape: (n_tokens, numbers a token).
        dtype: "f32", float32; "mask", one bit a neuron; "chosen", experts with their weights: a token's int32
            numbers, then its float32 weights; "q8", rounded to int8 in blocks of 32: all numbers, then a
            scale and then a sum for each block; "packed" for quantised weights in an area of its side (see
            `pack.py`); or "none", an order without bytes.
        layer: of the model, that it is made in; None for what belongs to none.
        origin: what this is the copy of, on the other side of the bus; None for what a node computes.
    """

    name: str
    shape: tuple[int, int]
    dtype: str = "f32"
    layer: int | None = None
    origin: "Tensor | None" = None

    def variant(self, kind: str, dtype: str | None = None) -> "Tensor":
        """Another tensor of this shape and layer: of ffn_out-3 the "gpu" one is ffn_out_gpu-3."""
        ending = "" if self.layer is None else f"-{self.layer}"
        name = f"{self.name.removesuffix(ending)}_{kind}{ending}"
        return replace(self, name=name, dtype=dtype or self.dtype)


Operand = Tensor | Weight
ALL, HOT, COLD = "all", "hot", "cold"
"""Of a divided FFN's rows; where cold ones go to a device in several parts, these are "cold", "cold1" and so on."""
Found = TypeVar("Found", Tensor, Weight)


@dataclass(frozen=True)
class Node:
    """One op with its operands in order and its result; the attributes are read-only.

    Attributes:
        roles: of the inputs, as the op's table names them; none in nodes that a pass makes, such as copies.
        rows: of its weights, that it is about: "all", or the "hot" or "cold" ones of a divided FFN, or a part of these.
    """

    op: str
    name: str
    inputs: tuple[Operand, ...]
    output: Tensor
    attributes: Mapping[str, Any] = field(default_factory=dict)
    roles: tuple[str, ...] = ()
    rows: str = ALL

    @property
    def layer(self) -> int | None:
        """The layer that it belongs to, if to any."""
        return self.output.layer

    def operand(self, role: str) -> Operand | None:
        """The operand of this role; None if the node has none."""
        return next((o for r, o in zip(self.roles, self.inputs, strict=False) if r == role), None)

    def find_weight(self, role: str) -> Weight | None:
        """The weight of this role; None if the node has none."""
        operand = self.operand(role)
        return operand if isinstance(operand, Weight) else None

    def find_tensor(self, role: str) -> Tensor | None:
        """The intermediate of this role; None if the node has none."""
        operand = self.operand(role)
        return operand if isinstance(operand, Tensor) else None

    def weight(self, role: str) -> Weight:
        """The weight of this role; HotcoldError if there is none."""
        return _wanted(self, role, self.find_weight(role))

    def tensor(self, role: str) -> Tensor:
        """The intermediate of this role; HotcoldError if there is none."""
        return _wanted(self, role, self.find_tensor(role))


def _wanted(node: Node, role: str, found: Found | None) -> Found:
    if found is None:
        raise HotcoldError(f"operand {role} of node {node.name}", "missing", _takes(node.op))
    return found


def layer_of(node: Node) -> int:
    """The layer of a node that must be in one, for its cache or its neurons.

    Raises:
        HotcoldError: it is in none.
    """
    if node.layer is None:
        raise HotcoldError("node", node.name, f"{node.op} belongs to a layer", "say which, where it is added")
    return node.layer


def weights_of(node: Node) -> list[Weight]:
    """The operands of a node that are weights, in order."""
    return [operand for operand in node.inputs if isinstance(operand, Weight)]


def tensors_of(node: Node) -> list[Tensor]:
    """The operands of a node that are intermediates, in order."""
    return [operand for operand in node.inputs if isinstance(operand, Tensor)]


def ffn_matrices(node: Node) -> list[Weight]:
    """The matrices of an FFN's node: gate (if there is one), up and down."""
    found = (node.find_weight(role) for role in ("gate", "up", "down"))
    return [weight for weight in found if weight is not None]


def reading_matrices(node: Node) -> list[Weight]:
    """The matrices that a node's input x is multiplied with."""
    found = (node.find_weight(role) for role in (OPS[node.op].reading if node.op in OPS else ()))
    return [weight for weight in found if weight is not None]


def make_node(
    op: str,
    name: str,
    layer: int | None,
    operands: tuple[Operand | None, ...],
    n_tokens: int,
    attributes: Mapping[str, Any],
) -> Node:
    """A node of this op, its operands in the order of the op's table.

    Args:
        name: of the result.
        layer: that it belongs to.
        operands: None stands for one that the model does not have, and is left out.

    Raises:
        HotcoldError: an unknown op, or operands from which the size of the result does not follow.
    """
    if op not in OPS:
        raise HotcoldError(f"op of node {name}", op, f"known: {', '.join(OPS)}")
    given = by_role(op, operands)
    output = Tensor(name, (n_tokens, _result_size(op, given, attributes)), OPS[op].dtype, layer)
    return Node(op, name, tuple(given.values()), output, MappingProxyType(attributes), tuple(given))


def by_role(op: str, operands: Sequence[Operand | None]) -> dict[str, Operand]:
    """Operands in the order of the op's table, by their roles; those too many by numbers, for `check`."""
    rules = OPS[op].operands
    roles = [rule.role for rule in rules] + [str(i) for i in range(len(rules), len(operands))]
    return {role: o for role, o in zip(roles, operands, strict=False) if o is not None}


def _result_size(op: str, given: Mapping[str, Operand], attributes: Mapping[str, Any]) -> int:
    """Numbers a token of the result."""
    letter = OPS[op].size
    if not letter:
        return 0
    if letter.startswith("@"):
        return int(attributes[letter[1:]])
    for rule in OPS[op].operands:
        operand = given.get(rule.role)
        if operand is not None and _kind(operand) == rule.kind:
            sizes = dict(zip(rule.sizes, _ne(operand), strict=False))
            if letter in sizes:
                return sizes[letter]
    raise HotcoldError("operands of the op", op, _takes(op))


class Graph:
    """Nodes in the order in which they run, for a fixed number of tokens."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self.nodes: tuple[Node, ...] = ()
        self.frozen = False

    def add(
        self, op: str, *operands: Operand | None, name: str = "", layer: int | None = None, **attributes: Any
    ) -> Tensor:
        """Append a node; its result, called `name`, or `name-layer` in a layer.

        Args:
            operands: None stands for one that the model does not have, and is left out.
            name: unique in the graph or the layer; default the op and the node's number.
            layer: of the model, that the node belongs to.

        Raises:
            HotcoldError: the graph is frozen, or as `make_node`.
        """
        name = name or f"{op}-{len(self.nodes)}"
        name = name if layer is None else f"{name}-{layer}"
        if self.frozen:
            raise HotcoldError("node for a frozen graph", name, "", "build another graph")
        node = make_node(op, name, layer, operands, self.n_tokens, attributes)
        self.nodes = (*self.nodes, node)
        return node.output

    def freeze(self) -> "Graph":
        """Take no more nodes; the graph itself."""
        self.frozen = True
        return self

    def __str__(self) -> str:
        """A line a node: number, result, its numbers a token, op, operands."""
        rows = [_cells(i, node) for i, node in enumerate(self.nodes)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"graph of {self.n_tokens} token{'s' if self.n_tokens > 1 else ''}"]
        for number, result, size, op, operands in rows:
            left = f"{number:>{widths[0]}} {result:<{widths[1]}} {size:>{widths[2]}}"
            lines.append(f"{left} {op:<{widths[3]}} {operands}")
        return "\n".join(lines)


def _cells(i: int, node: Node) -> tuple[str, str, str, str, str]:
    n, dtype = node.output.shape[1], node.output.dtype
    size = {"f32": f"{n}", "mask": f"{n} bits", "chosen": f"{n} experts"}.get(dtype, "-")
    layer = "" if node.layer is None else f"blk.{node.layer}."
    operands = [operand.name.removeprefix(layer).removesuffix(".weight") for operand in node.inputs]
    return str(i), node.name, size, node.op, ", ".join(operands)


def check(graph: Graph) -> None:
    """Refuse a graph that cannot run.

    Raises:
        HotcoldError: an operand that no earlier node makes, a name given twice, operands that do not
            fit their op, a result (other than the last) that no later node reads, or no `logits` at
            the end.
    """
    made: dict[str, Tensor] = {}
    for node in graph.nodes:
        for operand in node.inputs:
            if isinstance(operand, Tensor) and made.get(operand.name) != operand:
                raise HotcoldError(
                    f"operand of node {node.name}", operand.name, "no earlier node makes it", "add its node"
                )
        if node.output.name in made:
            raise HotcoldError("name of a node", node.output.name, "two nodes have it", "rename one")
        check_operands(node)
        made[node.output.name] = node.output
    read = {operand.name for node in graph.nodes for operand in node.inputs}
    unread = [node.name for node in graph.nodes[:-1] if node.output.name not in read]
    if unread:
        raise HotcoldError("nodes of the graph", ", ".join(unread), "no later node reads their results")
    if not graph.nodes or graph.nodes[-1].op != "logits":
        raise HotcoldError("last node of the graph", graph.nodes[-1].op if graph.nodes else "none", "logits")


def check_operands(node: Node) -> None:
    """Refuse a node whose operands are not those of its op, in kind, number or size.

    Raises:
        HotcoldError: an unknown op, or operands that do not fit.
    """
    if node.op not in OPS:
        raise HotcoldError(f"op of node {node.name}", node.op, f"known: {', '.join(OPS)}")
    rules, sizes = OPS[node.op].operands, dict[str, int]()
    if not {*node.roles} <= {rule.role for rule in rules}:
        raise _misfit(node)
    for rule in rules:
        operand = node.operand(rule.role)
        if not (rule.optional if operand is None else _fits(operand, rule, sizes)):
            raise _misfit(node)


def _kind(operand: Operand) -> str:
    return "w" if isinstance(operand, Weight) else operand.dtype


def _ne(operand: Operand) -> tuple[int, ...]:
    """Sizes, numbers a row first; of an intermediate those of one token."""
    return operand.ne if isinstance(operand, Weight) else operand.shape[1:]


def _fits(operand: Operand, rule: OperandRule, sizes: dict[str, int]) -> bool:
    """Whether an operand is of the rule's kind and sizes; learns sizes not seen before."""
    ne = _ne(operand)
    if _kind(operand) != rule.kind or (rule.sizes and len(rule.sizes) != len(ne)):
        return False
    return all(sizes.setdefault(name, n) == n for name, n in zip(rule.sizes, ne, strict=False))


def _misfit(node: Node) -> HotcoldError:
    given = [
        f"{operand.name} {list(operand.ne if isinstance(operand, Weight) else operand.shape)}"
        for operand in node.inputs
    ]
    return HotcoldError(f"operands of node {node.name}", ", ".join(given), _takes(node.op))


def _takes(op: str) -> str:
    return f"{op} takes {OPS[op].text}" if op in OPS else f"{op} has no roles"


def is_cold(rows: str) -> bool:
    """Whether these are cold rows, all of them or a part."""
    return rows.startswith(COLD)
