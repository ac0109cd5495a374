"""From norms, roundings and the predictor, which stand together, to launches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hotcold.engine.device.records import DeviceLowering, Input
from hotcold.engine.graph.arena import aligned
from hotcold.engine.graph.graph import Node, tensors_of
from hotcold.kernels.cuda.layer_norm import layer_norm, layer_norm_quantised
from hotcold.kernels.cuda.matvec import RELU, matvec_mask
from hotcold.kernels.cuda.rms_norm import rms_norm, rms_norm_quantised
from hotcold.kernels.cuda.work import Work
from hotcold.kernels.formats import quantised_bytes
from hotcold.kernels.weight_table import QUANTISED

Nodes = Sequence[Node]


@dataclass(frozen=True)
class _Norm:
    """A norm's kernels, and its weights by role."""

    plain: Callable[[int, int], Work]
    rounded: Callable[[int, int, bool], Work]
    roles: tuple[str, ...]


NORMS = {
    "rms_norm": _Norm(rms_norm, rms_norm_quantised, ("weight",)),
    "layer_norm": _Norm(layer_norm, layer_norm_quantised, ("weight", "bias")),
}


def norm(low: DeviceLowering, nodes: Nodes) -> int:
    """A norm, and its rounding with it where nobody reads it as it is."""
    node, kernels = nodes[0], NORMS[nodes[0].op]
    if _is_rounded_next(low, nodes):
        _rounded_norm(low, nodes, None)
        return 2
    n, eps = node.output.shape[1], node.attributes["eps"]
    low.launch(kernels.plain(low.n_tokens, n), *_operands(low, node), low.vector(node.output), n, eps)
    return 1


def _operands(low: DeviceLowering, node: Node) -> tuple[object, ...]:
    weights = (low.store.vector(node.weight(role)) for role in NORMS[node.op].roles)
    return low.vector(node.tensor("x")), *weights


def _is_rounded_next(low: DeviceLowering, nodes: Nodes) -> bool:
    """Whether nothing but a rounding, which follows, reads a norm."""
    return len(nodes) > 1 and nodes[1].op in ("quantise", "pack") and low.is_alone(nodes[1], nodes[0])


def _rounded_norm(low: DeviceLowering, nodes: Nodes, x_to: Input | None) -> None:
    """A norm and its rounding; with them the rounding of what it reads, if there is somewhere to put it."""
    node, rounding = nodes[:2]
    n = node.output.shape[1]
    to = low.packed(n) if rounding.op == "pack" else low.rounded(rounding.output)
    work = NORMS[node.op].rounded(low.n_tokens, n, x_to is not None)
    rest = n, node.attributes["eps"], int(x_to is not None)
    low.launch(work, *_operands(low, node), *to, *(x_to or to), *rest)


def rms_norm_heads(low: DeviceLowering, nodes: Nodes) -> int:
    """A head is a row as good as any."""
    x, weight = nodes[0].tensor("x"), nodes[0].weight("weight")
    n_rows, eps = low.n_tokens * nodes[0].attributes["n_head"], nodes[0].attributes["eps"]
    operands = low.vector(x), low.store.vector(weight), low.vector(nodes[0].output)
    low.launch(rms_norm(n_rows, weight.ne[0]), *operands, weight.ne[0], eps)
    return 1


def quantise(low: DeviceLowering, nodes: Nodes) -> int:
    (x,) = tensors_of(nodes[0])
    low.quantise(low.vector(x), low.rounded(nodes[0].output), x.shape[1])
    return 1


def pack(low: DeviceLowering, nodes: Nodes) -> int:
    """Round what some weights read; by the norm behind a predictor, where both read it."""
    if _is_for_a_predictor_and_its_norm(low, nodes):
        return _predictor_behind_its_norm(low, nodes)
    x = nodes[0].tensor("x")
    low.quantise(low.vector(x), low.packed(x.shape[1]), x.shape[1])
    return 1


def predictor(low: DeviceLowering, nodes: Nodes) -> int:
    _predictor(low, nodes[0], low.input_of(nodes[0], nodes[0].weight("fc1")), None)
    return 1


def _predictor(low: DeviceLowering, node: Node, x: Input, hidden_to: Input | None) -> None:
    """The mask of what is listed.

    Args:
        hidden_to: where fc1's result is rounded to, if fc2 wants it rounded; None for the usual place.
    """
    fc1, fc2 = node.weight("fc1"), node.weight("fc2")
    rank, n_ff = fc1.ne[1], fc2.ne[1]
    hidden = low.area("hidden", low.n_tokens * rank, np.float32)
    low.product(low.store.matrix(fc1), x, hidden, flags=RELU)
    low.launch(
        matvec_mask(fc2.type, low.n_tokens, n_ff, rank),
        *low.store.matrix(fc2).planes,
        *low.hidden_input(fc2, hidden, hidden_to),
        low.mask(node.output),
        n_ff,
        rank,
        node.attributes["threshold"],
    )


def _is_for_a_predictor_and_its_norm(low: DeviceLowering, nodes: Nodes) -> bool:
    """Whether the norm's kernel may go first and round x with its own output: of a single token, if there is room."""
    if low.n_tokens > 1 or len(nodes) < 4 or nodes[1].op != "predictor" or nodes[2].op not in NORMS:
        return False
    packed, node, its_norm = nodes[:3]
    is_its = node.tensor("x") == packed.output and its_norm.tensor("x") == packed.tensor("x")
    return is_its and _is_rounded_next(low, nodes[2:]) and _has_room(low, node)


def _hidden_place(node: Node) -> int:
    """Where a predictor's fc1's result is rounded to, behind its x."""
    return aligned(quantised_bytes(1, node.weight("fc1").ne[0]))


def _has_room(low: DeviceLowering, node: Node) -> bool:
    area = low.store.areas.get("partial")
    wanted = _hidden_place(node) + quantised_bytes(1, node.weight("fc1").ne[1])
    return area is not None and wanted <= area.n_bytes


def _predictor_behind_its_norm(low: DeviceLowering, nodes: Nodes) -> int:
    """Norm, then predictor.

    The norm's output keeps the area of rounded vectors until the FFN, so what the predictor's matrices read goes where
    the FFN's sums will be.
    """
    node, (n, rank) = nodes[1], nodes[1].weight("fc1").ne
    x = low.packed(n, "partial")
    _rounded_norm(low, nodes[2:], x)
    rounds = node.weight("fc2").type in QUANTISED
    _predictor(low, node, x, low.packed(rank, "partial", _hidden_place(node)) if rounds else None)
    return 4
