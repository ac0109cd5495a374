"""A graph of ops: which numbers are computed from which, in which order.

`Graph.add(op, *inputs, **attributes)` appends a node and gives its result, so that an architecture
reads like the model's formulas. A graph knows shapes and nothing of bytes, devices or kernels. Every
intermediate has one row a token; how many positions the KV cache holds is a matter of the run. A
finished graph is frozen, and `check` refuses one that cannot run.

Ops, with n tokens:

    embed(token_embd)                          the rows of the run's token ids
    positions(position_embd; first)            rows of the run's positions, position 0 at row `first`
    rms_norm(x, weight; eps)                   x / rms(x) * weight
    layer_norm(x, weight, bias; eps)           (x - mean(x)) / deviation(x) * weight + bias
    mul_mat(weight, x, [bias])                 weight . x + bias
    rope(x, [rope_freqs]; n_head, head_dim, n_rot, interleaved)
    kv_store(k, v; layer)                      appends to the cache; gives a token of order
    attention(q, stored; layer, n_head, n_head_kv, head_dim)
    predictor(x, fc1, fc2; threshold)          mask of neurons to look at
    sparse_ffn(x, [mask], gate, up, down_t; activation)
    dense_ffn(x, gate, up, down; activation, transposed)
                                               down . (act(gate . x) * (up . x)); relu_both: relu(up . x)
    sparse_mlp(x, [mask], up, [up_bias], down_t, [down_bias]; activation)
    dense_mlp(x, up, [up_bias], down, [down_bias]; activation, transposed)
                                               down . act(up . x + up_bias) + down_bias
    add(a, b)
    logits(output, x)                          the run's own array
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from hotcold.engine.model.model import Weight
from hotcold.errors import HotcoldError


@dataclass(frozen=True)
class Tensor:
    """An intermediate: float32 ("f32"), one bit a neuron ("mask"), rounded to int8 in blocks of 32 ("q8":
    all numbers, then a scale and then a sum for each block), or an order without bytes ("none").

    Attributes:
        shape: (n_tokens, numbers a token).
    """

    name: str
    shape: tuple[int, int]
    dtype: str = "f32"


Operand = Tensor | Weight


@dataclass(frozen=True)
class Node:
    """One op with its operands in order and its result; the attributes are read-only."""

    op: str
    name: str
    inputs: tuple[Operand, ...]
    output: Tensor
    attributes: Mapping[str, Any] = field(default_factory=dict)


def weights_of(node: Node) -> list[Weight]:
    """The operands of a node that are weights, in order."""
    return [operand for operand in node.inputs if isinstance(operand, Weight)]


def tensors_of(node: Node) -> list[Tensor]:
    """The operands of a node that are intermediates, in order."""
    return [operand for operand in node.inputs if isinstance(operand, Tensor)]


def _result(op: str, inputs: tuple[Operand, ...], n_tokens: int) -> tuple[tuple[int, int], str]:
    """Shape and type of an op's result."""
    first, last = inputs[0], inputs[-1]
    if op in ("mul_mat", "logits") and isinstance(first, Weight):
        return (n_tokens, first.ne[1]), "f32"
    if op in ("embed", "positions") and isinstance(first, Weight):
        return (n_tokens, first.ne[0]), "f32"
    if op == "predictor" and isinstance(last, Weight):
        return (n_tokens, last.ne[1]), "mask"
    if op == "kv_store":
        return (n_tokens, 0), "none"
    if isinstance(first, Tensor):
        return first.shape, first.dtype
    raise HotcoldError("first operand of the op", op, "an intermediate is wanted")


class Graph:
    """Nodes in the order in which they run, for a fixed number of tokens."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self.nodes: tuple[Node, ...] = ()
        self.frozen = False

    def add(self, op: str, *operands: Operand | None, name: str = "", **attributes: Any) -> Tensor:
        """Append a node; its result.

        Args:
            operands: None stands for one that the model does not have, and is left out.
            name: of the result, unique in the graph; default the op and the node's number.

        Raises:
            HotcoldError: the graph is frozen, or an op on weights alone.
        """
        name = name or f"{op}-{len(self.nodes)}"
        if self.frozen:
            raise HotcoldError("node for a frozen graph", name, "", "build another graph")
        inputs = tuple(operand for operand in operands if operand is not None)
        shape, dtype = _result(op, inputs, self.n_tokens)
        output = Tensor(name, shape, dtype)
        self.nodes = (*self.nodes, Node(op, name, inputs, output, MappingProxyType(attributes)))
        return output

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
    size = {"f32": f"{n}", "mask": f"{n} bits"}.get(dtype, "-")
    layer = f"blk.{node.name.rpartition('-')[2]}."
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


# Operands of each op in order: f32, mask and none are intermediates, w a weight, ? an optional one.
# Letters behind a colon are sizes, numbers a row first; a letter has one value in a node.
OPERANDS = {
    "embed": "w:E,V",
    "positions": "w:E,P",
    "rms_norm": "f32:E w:E",
    "layer_norm": "f32:E w:E w:E",
    "mul_mat": "w:K,N f32:K ?w:N",
    "rope": "f32:E ?w:P",
    "kv_store": "f32:G f32:G",
    "attention": "f32:Q none:Z",
    "predictor": "f32:E w:E,R w:R,F",
    "sparse_ffn": "f32:E ?mask:F w:E,F w:E,F w:E,F",
    "dense_ffn": "f32:E w:E,F w:E,F w",
    "sparse_mlp": "f32:E ?mask:F w:E,F ?w:F w:E,F ?w:E",
    "dense_mlp": "f32:E w:E,F ?w:F w ?w:E",
    "add": "f32:E f32:E",
    "logits": "w:E,V f32:E",
}


def check_operands(node: Node) -> None:
    """Refuse a node whose operands are not those of its op, in kind, number or size.

    Raises:
        HotcoldError: an unknown op, or operands that do not fit.
    """
    if node.op not in OPERANDS:
        raise HotcoldError(f"op of node {node.name}", node.op, f"known: {', '.join(OPERANDS)}")
    sizes: dict[str, int] = {}
    left = list(node.inputs)
    for pattern in OPERANDS[node.op].split():
        if left and _fits(left[0], pattern.removeprefix("?"), sizes):
            left.pop(0)
        elif not pattern.startswith("?"):
            raise _misfit(node)
    if left:
        raise _misfit(node)


def _fits(operand: Operand, pattern: str, sizes: dict[str, int]) -> bool:
    """Whether an operand is of the pattern's kind and sizes; learns sizes not seen before."""
    kind, _, letters = pattern.partition(":")
    if kind != ("w" if isinstance(operand, Weight) else operand.dtype):
        return False
    ne = operand.ne if isinstance(operand, Weight) else operand.shape[1:]
    names = letters.split(",") if letters else []
    if names and len(names) != len(ne):
        return False
    return all(sizes.setdefault(name, n) == n for name, n in zip(names, ne, strict=False))


def _misfit(node: Node) -> HotcoldError:
    given = [
        f"{operand.name} {list(operand.ne if isinstance(operand, Weight) else operand.shape)}"
        for operand in node.inputs
    ]
    return HotcoldError(
        f"operands of node {node.name}", ", ".join(given), f"{node.op} takes {OPERANDS[node.op]}"
    )
