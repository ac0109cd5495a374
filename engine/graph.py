"""A graph of ops: which numbers are computed from which, in which order.

`Graph.add(op, *inputs, **attributes)` appends a node and gives its result, so that an architecture
reads like the model's formulas. A graph knows shapes and nothing of bytes, devices or kernels. Every
intermediate has one row a token; how many positions the KV cache holds is a matter of the run.

Ops, with n tokens:

    embed(token_embd)                          the rows of the run's token ids
    rms_norm(x, weight; eps)                   x / rms(x) * weight
    mul_mat(weight, x)                         weight . x
    rope(x, [rope_freqs]; n_head, head_dim, n_rot, interleaved)
    kv_store(k, v; layer)                      appends to the cache; gives a token of order
    attention(q, stored; layer, n_head, n_head_kv, head_dim)
    predictor(x, fc1, fc2; threshold)          mask of neurons to look at
    sparse_ffn(x, [mask], gate, up, down_t; activation)
    dense_ffn(x, gate, up, down; activation, transposed)
    add(a, b)
    logits(output, x)                          the run's own array
"""

from dataclasses import dataclass, field
from typing import Any

from hotcold.engine.model import Weight
from hotcold.errors import HotcoldError


@dataclass(frozen=True)
class Tensor:
    """An intermediate: float32 ("f32"), one bit a neuron ("mask"), or an order without bytes ("none").

    Attributes:
        shape: (n_tokens, numbers a token).
    """

    name: str
    shape: tuple[int, int]
    dtype: str = "f32"


Operand = Tensor | Weight


@dataclass(frozen=True)
class Node:
    """One op with its operands in order and its result."""

    op: str
    name: str
    inputs: tuple[Operand, ...]
    output: Tensor
    attributes: dict[str, Any] = field(default_factory=dict)


def _result(op: str, inputs: tuple[Operand, ...], n_tokens: int) -> tuple[tuple[int, int], str]:
    """Shape and type of an op's result."""
    first, last = inputs[0], inputs[-1]
    if op in ("mul_mat", "logits") and isinstance(first, Weight):
        return (n_tokens, first.ne[1]), "f32"
    if op == "embed" and isinstance(first, Weight):
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

    def add(self, op: str, *inputs: Operand, name: str = "", **attributes: Any) -> Tensor:
        """Append a node; its result.

        Args:
            name: of the result, unique in the graph; default the op and the node's number.
        """
        name = name or f"{op}-{len(self.nodes)}"
        shape, dtype = _result(op, inputs, self.n_tokens)
        output = Tensor(name, shape, dtype)
        self.nodes = (*self.nodes, Node(op, name, inputs, output, attributes))
        return output

    def __str__(self) -> str:
        lines = [f"graph of {self.n_tokens} token{'s' if self.n_tokens > 1 else ''}"]
        for i, node in enumerate(self.nodes):
            shape = " x ".join(str(n) for n in node.output.shape)
            operands = ", ".join(operand.name for operand in node.inputs)
            lines.append(f"{i:4} {node.output.name:<16} {shape:>12} {node.op:<10} {operands}")
        return "\n".join(lines)


def check(graph: Graph) -> None:
    """Refuse a graph that cannot run.

    Raises:
        HotcoldError: an operand that no earlier node makes, a name given twice, a result (other than
            the last) that no later node reads, or no `logits` at the end.
    """
    made: set[str] = set()
    for node in graph.nodes:
        for operand in node.inputs:
            if isinstance(operand, Tensor) and operand.name not in made:
                raise HotcoldError(
                    f"operand of node {node.name}", operand.name, "no earlier node makes it", "add its node"
                )
        if node.output.name in made:
            raise HotcoldError("name of a node", node.output.name, "two nodes have it", "rename one")
        made.add(node.output.name)
    read = {operand.name for node in graph.nodes for operand in node.inputs}
    unread = [node.name for node in graph.nodes[:-1] if node.output.name not in read]
    if unread:
        raise HotcoldError("nodes of the graph", ", ".join(unread), "no later node reads their results")
    if not graph.nodes or graph.nodes[-1].op != "logits":
        raise HotcoldError("last node of the graph", graph.nodes[-1].op if graph.nodes else "none", "logits")
