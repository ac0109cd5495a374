"""From the FFN's nodes to launches: the rows that are on the device, hot ones or all.

An FFN with a row a neuron goes by a list of its rows: one token's active ones by the mask, or all of
them where there is no mask. A down matrix with a row an output is an ordinary product.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hotcold.engine.device_records import DeviceLowering
from hotcold.engine.device_store import DeviceMatrix
from hotcold.engine.device_workspace import SPARSE_TOKENS
from hotcold.engine.ffn_lowering import mlp_weights
from hotcold.engine.graph import Node, Tensor, tensors_of, weights_of
from hotcold.engine.model import Weight
from hotcold.engine.passes import FFN_OPS
from hotcold.kernels.cuda.activations import ACTIVATIONS
from hotcold.kernels.cuda.add import HAS_BIAS, HAS_RESIDUAL
from hotcold.kernels.cuda.buffers import Buffer
from hotcold.kernels.cuda.compact import compact
from hotcold.kernels.cuda.dense_ffn import ffn_hidden, hidden
from hotcold.kernels.cuda.hidden_masked import hidden_masked_mlp
from hotcold.kernels.cuda.matvec import HAS_BIAS as MATVEC_BIAS
from hotcold.kernels.cuda.matvec import HAS_RESIDUAL as MATVEC_RESIDUAL
from hotcold.kernels.cuda.matvec import RELU, mask_words
from hotcold.kernels.cuda.sparse_ffn import sparse_ffn
from hotcold.kernels.cuda.sparse_mlp import sparse_mlp
from hotcold.kernels.cuda.sum_groups import n_groups, sum_groups
from hotcold.kernels.cuda.weights import FFN_TYPES

OPS = FFN_OPS


def reading_matrices(node: Node) -> list[Weight]:
    """The matrices that a node's input is multiplied with: all but the down projection of an FFN."""
    matrices = [weight for weight in weights_of(node) if len(weight.ne) > 1]
    return matrices[:-1] if node.op in OPS else matrices


def gated(low: DeviceLowering, nodes: Sequence[Node]) -> int:
    """An FFN with a gate, and the residual behind it."""
    node = nodes[0]
    if not node.attributes.get("transposed", True):
        return _gated_by_outputs(low, nodes)
    (x, *mask), weights = tensors_of(node), weights_of(node)
    rows = [low.store.matrix(weight) for weight in weights]
    planes = [plane for matrix in rows for plane in matrix.planes]
    n, n_rows = rows[0].n, rows[0].n_rows
    activation = ACTIVATIONS[node.attributes["activation"]]
    operand = low.operand(weights[0], x)

    def launch(first: int, count: int, ids: Buffer, counted: Buffer, partial: Buffer) -> None:
        inputs = low.tokens_of(operand, first, count, n)
        work = sparse_ffn(weights[0].type, count, n_rows, n)
        low.launch(work, *planes, *inputs, ids, counted, partial, n_rows, n, activation)

    return _by_groups(low, nodes, rows[0], mask, None, launch)


def ungated(low: DeviceLowering, nodes: Sequence[Node]) -> int:
    """An FFN without a gate, its biases, and the residual behind it."""
    node, weights = nodes[0], mlp_weights(nodes[0])
    if not node.attributes.get("transposed", True):
        return _ungated_by_outputs(low, nodes)
    x, *mask = tensors_of(node)
    up, down = low.store.matrix(weights.up), low.store.matrix(weights.down)
    has_bias, n, n_rows = weights.up_bias is not None, up.n, up.n_rows
    operand, neurons = low.operand(weights.up, x), low.store.neurons(low.layers[weights.up.name])
    activation = ACTIVATIONS[node.attributes["activation"]]

    def launch(first: int, count: int, ids: Buffer, counted: Buffer, partial: Buffer) -> None:
        bias = low.store.vector(weights.up_bias) if weights.up_bias is not None else partial
        inputs = low.tokens_of(operand, first, count, n)
        work = sparse_mlp(weights.up.type, count, n_rows, n, has_bias=has_bias)
        lists = bias, neurons, ids, counted, partial
        low.launch(work, *up.planes, *down.planes, *inputs, *lists, n_rows, n, int(has_bias), activation)

    return _by_groups(low, nodes, up, mask, weights.down_bias, launch)


def _by_groups(
    low: DeviceLowering,
    nodes: Sequence[Node],
    rows: DeviceMatrix,
    mask: Sequence[Tensor],
    down_bias: Weight | None,
    launch: Callable[[int, int, Buffer, Buffer, Buffer], None],
) -> int:
    """List the rows, sum them in groups, add the groups; some tokens at a time, for the sums are large."""
    residual, output, taken = low.residual(nodes)
    n, groups = output.shape[1], n_groups(rows.n_rows)
    flags = HAS_RESIDUAL * (residual is not None) | HAS_BIAS * (down_bias is not None)
    y = low.vector(output)
    added = low.vector(residual) if residual is not None else y
    bias = low.store.vector(down_bias) if down_bias is not None else y
    for first in range(0, low.n_tokens, SPARSE_TOKENS):
        count = min(SPARSE_TOKENS, low.n_tokens - first)
        ids, counted = _list_rows(low, rows, mask, first, count)
        partial = low.area("partial", count * groups * n, np.float32)
        launch(first, count, ids, counted, partial)
        (some_y,), (some_added,) = (low.tokens_of((each,), first, count, n) for each in (y, added))
        work = sum_groups(count, rows.n_rows, n, flags)
        low.launch(work, partial, bias, some_y, some_added, some_y, groups, n, flags)
    return taken


def _list_rows(
    low: DeviceLowering, rows: DeviceMatrix, mask: Sequence[Tensor], first: int, count: int
) -> tuple[Buffer, Buffer]:
    """Rows of some tokens whose neurons the mask lists, or all rows: ids [count, n_rows], and how many."""
    layer, n_ff = low.layers[rows.weight.name], low.model.n_ff
    ids = low.area("ids", count * rows.n_rows, np.int32)
    counted = low.area("ids", count, np.int32, 4 * count * rows.n_rows)
    words = mask_words(n_ff)
    if mask:
        bits = low.view(mask[0], 4 * first * words, count * words, np.uint32)
    else:  # every token reads the same row of ones
        bits, words = low.area("all", words, np.uint32), 0
    work = compact(count, rows.n_rows, n_ff)
    total = low.area("counts", 1, np.uint32, 4 * layer)
    low.launch(work, bits, low.store.neurons(layer), ids, counted, total, rows.n_rows, words)
    return ids, counted


def _gated_by_outputs(low: DeviceLowering, nodes: Sequence[Node]) -> int:
    node = nodes[0]
    x, (gate, up, down) = tensors_of(node)[0], weights_of(node)
    n_ff, activation = gate.ne[1], ACTIVATIONS[node.attributes["activation"]]
    first = low.area("first", low.n_tokens * n_ff, np.float32)
    gates, ups = low.store.matrix(gate), low.store.matrix(up)
    if low.n_tokens == 1 and gate.type == up.type and gate.type in FFN_TYPES:
        work = ffn_hidden(gate.type, 1, n_ff, gates.n)
        inputs = low.operand(gate, x)
        low.launch(work, *gates.planes, *ups.planes, *inputs, first, n_ff, gates.n, activation)
    else:
        second = low.area("second", low.n_tokens * n_ff, np.float32)
        low.product(gates, low.operand(gate, x), first)
        low.product(ups, low.operand(up, x), second)
        count = low.n_tokens * n_ff
        low.launch(hidden(count), first, second, first, count, activation)
    return _down_by_outputs(low, nodes, down, None, first)


def _ungated_by_outputs(low: DeviceLowering, nodes: Sequence[Node]) -> int:
    node, weights = nodes[0], mlp_weights(nodes[0])
    n_ff, activation = weights.up.ne[1], node.attributes["activation"]
    first = low.area("first", low.n_tokens * n_ff, np.float32)
    has_bias, is_relu = weights.up_bias is not None, activation == "relu"
    low.product(
        low.store.matrix(weights.up),
        low.operand(weights.up, tensors_of(node)[0]),
        first,
        flags=MATVEC_BIAS * has_bias | RELU * is_relu,
        bias=low.store.vector(weights.up_bias) if weights.up_bias is not None else None,
    )
    if not is_relu:
        work = hidden_masked_mlp(low.n_tokens, n_ff, n_ff, has_mask=False, has_bias=False)
        unread = low.area("all", mask_words(n_ff), np.uint32), low.positions()
        low.launch(work, first, first, *unread, first, n_ff, 0, 0, 0, ACTIVATIONS[activation])
    return _down_by_outputs(low, nodes, weights.down, weights.down_bias, first)


def _down_by_outputs(
    low: DeviceLowering, nodes: Sequence[Node], down: Weight, bias: Weight | None, hidden_vector: Buffer
) -> int:
    """y = down hidden + bias + residual."""
    residual, output, taken = low.residual(nodes)
    operand = low.operand_at(down, f"{output.name} hidden", hidden_vector, down.ne[0])
    low.product(
        low.store.matrix(down),
        operand,
        low.vector(output),
        flags=MATVEC_BIAS * (bias is not None) | MATVEC_RESIDUAL * (residual is not None),
        bias=low.store.vector(bias) if bias is not None else None,
        residual=low.vector(residual) if residual is not None else None,
    )
    return taken
