"""From the FFN's nodes to launches: the rows that are on the device, hot ones or all.

An FFN with a row a neuron goes by a list of its rows for one token: the active ones by the mask, or all
of them where there is no mask. A batch reads every row once, for all its tokens, and zeroes what the mask
does not list. A down matrix with a row an output is an ordinary product.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hotcold.engine.device.matrix import DeviceMatrix
from hotcold.engine.device.records import DeviceLowering, GroupSums
from hotcold.engine.graph.graph import Node, Tensor, ffn_matrices, layer_of
from hotcold.engine.model.model import Weight
from hotcold.engine.plan.device_workspace import FFN_TOKENS
from hotcold.kernels.cuda.add import HAS_BIAS, HAS_RESIDUAL, merge
from hotcold.kernels.cuda.compact import compact
from hotcold.kernels.cuda.dense_gated_ffn import gated_ffn_hidden
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.hidden_masked import hidden_masked, hidden_masked_gated
from hotcold.kernels.cuda.matmul_transposed import matmul_transposed
from hotcold.kernels.cuda.matvec import RELU
from hotcold.kernels.cuda.sparse_ffn import sparse_ffn
from hotcold.kernels.cuda.sparse_gated_ffn import sparse_gated_ffn
from hotcold.kernels.formats import ACTIVATIONS, mask_words, n_groups
from hotcold.kernels.weight_table import share_an_input


def gated(low: DeviceLowering, nodes: Sequence[Node]) -> int:
    """An FFN with a gate, and the residual behind it."""
    node = nodes[0]
    if not node.attributes.get("transposed", True):
        return _gated_by_outputs(low, nodes)
    mask, weights = node.find_tensor("mask"), ffn_matrices(node)
    gate, up, down = (low.matrix(node, weight) for weight in weights)
    of_gate, of_up, of_down = (weight.type for weight in weights)
    inputs = [low.input_of(node, weight) for weight in weights[:2]]
    activation = ACTIVATIONS[node.attributes["activation"]]
    if low.n_tokens == 1 and share_an_input((of_gate, of_up)):
        partial, words, least = _partial(low, gate), mask_words(low.model.n_ff), low.least(node)
        sizes = 1, gate.n_rows, gate.n, low.model.n_ff
        work = sparse_gated_ffn((of_gate, of_up, of_down), *sizes, has_least=bool(least[-1]))
        given = *gate.planes, *up.planes, *down.planes, *inputs[0], *_listing(low, node)
        low.launch(work, *given, partial, words, gate.n, activation, *least)
        return _sum(low, nodes, GroupSums(partial, gate.n_rows, None))

    def hidden_of(first: int, count: int, h: Buffer) -> None:
        x_of_gate, x_of_up = (low.tokens_of(x, first, count, gate.n) for x in inputs)
        ups = low.area("second", count * gate.n_rows, np.float32)
        low.product(gate, x_of_gate, h, n_tokens=count)
        low.product(up, x_of_up, ups, n_tokens=count)
        bits, words = _mask_of(low, mask, first, count)
        least = low.least(node, first, count)
        work = hidden_masked_gated(
            count, gate.n_rows, low.model.n_ff, mask is not None, has_least=bool(least[-1])
        )
        lists = bits, low.neurons(node)
        low.launch(work, h, ups, *lists, h, gate.n_rows, words, int(mask is not None), activation, *least)

    return _by_batch(low, nodes, mask, (gate, down), None, hidden_of)


def ungated(low: DeviceLowering, nodes: Sequence[Node]) -> int:
    """An FFN without a gate, its biases, and the residual behind it."""
    node, mask = nodes[0], nodes[0].find_tensor("mask")
    if not node.attributes.get("transposed", True):
        return _ungated_by_outputs(low, nodes)
    weight, bias, down_bias = node.weight("up"), node.find_weight("up_bias"), node.find_weight("down_bias")
    up, down = low.matrix(node, weight), low.matrix(node, node.weight("down"))
    x, neurons = low.input_of(node, weight), low.neurons(node)
    activation = ACTIVATIONS[node.attributes["activation"]]
    up_bias = low.store.vector(bias) if bias is not None else None
    has_bias = int(up_bias is not None)
    if low.n_tokens == 1:
        partial, words = _partial(low, up), mask_words(low.model.n_ff)
        sizes = 1, up.n_rows, up.n, low.model.n_ff
        work = sparse_ffn((weight.type, down.weight.type), *sizes, has_bias=bool(has_bias))
        lists = up_bias or partial, neurons, *_listing(low, node), partial
        low.launch(work, *up.planes, *down.planes, *x, *lists, words, up.n, has_bias, activation)
        return _sum(low, nodes, GroupSums(partial, up.n_rows, down_bias))

    def hidden_of(first: int, count: int, h: Buffer) -> None:
        low.product(up, low.tokens_of(x, first, count, up.n), h, n_tokens=count)
        bits, words = _mask_of(low, mask, first, count)
        work = hidden_masked(count, up.n_rows, low.model.n_ff, mask is not None, bool(has_bias))
        lists = up_bias or h, bits, neurons, h
        low.launch(work, h, *lists, up.n_rows, words, int(mask is not None), has_bias, activation)

    return _by_batch(low, nodes, mask, (up, down), down_bias, hidden_of)


def _partial(low: DeviceLowering, rows: DeviceMatrix) -> Buffer:
    return low.area("partial", n_groups(rows.n_rows) * rows.n, np.float32)


def _sum(low: DeviceLowering, nodes: Sequence[Node], sums: GroupSums) -> int:
    """Add the groups of one token's rows, bias and residual; or leave it to the merge, which adds more to them."""
    if low.is_merged_next(nodes[0]):
        low.unsummed[nodes[0].output.name] = sums
        return 1
    residual, output, taken = low.residual(nodes)
    low.sum_groups(sums, low.vector(output), None, low.vector(residual) if residual is not None else None)
    return taken


def _by_batch(
    low: DeviceLowering,
    nodes: Sequence[Node],
    mask: Tensor | None,
    first_and_down: tuple[DeviceMatrix, DeviceMatrix],
    down_bias: Weight | None,
    hidden_of: Callable[[int, int, Buffer], None],
) -> int:
    """Hidden vectors of some tokens at a time, their products with the down rows, bias and residual.

    Args:
        hidden_of: appends what leaves count tokens' hidden vectors, from `first` on, in the buffer.
    """
    rows, down = first_and_down
    residual, output, taken = low.residual(nodes)
    n, y = output.shape[1], low.vector(output)
    flags = HAS_RESIDUAL * (residual is not None) | HAS_BIAS * (down_bias is not None)
    bias = low.store.vector(down_bias) if down_bias is not None else y
    added = low.vector(residual) if residual is not None else y
    for first in range(0, low.n_tokens, FFN_TOKENS):
        count = min(FFN_TOKENS, low.n_tokens - first)
        lists = low.positions(), low.positions()  # unread where all rows count
        if mask is not None:  # the products read every row; the lists say in which groups down sums
            lists = _list_rows(low, nodes[0], rows, first, count)
        h = low.area("first", count * rows.n_rows, np.float32)
        hidden_of(first, count, h)
        (some_y,), (some_added,) = (low.tokens_of((each,), first, count, n) for each in (y, added))
        work = matmul_transposed(down.weight.type, count, rows.n_rows, n, mask is not None)
        groups = n_groups(rows.n_rows), int(mask is not None)
        low.launch(work, *down.planes, h, *lists, some_y, rows.n_rows, n, count, *groups)
        if flags:
            low.launch(merge(count, n, flags), some_y, bias, some_y, some_added, some_y, n, flags)
    return taken


def _mask_of(low: DeviceLowering, mask: Tensor | None, first: int, count: int) -> tuple[Buffer, int]:
    """Masks of some tokens, and the words from one to the next; without one all read the same row of ones."""
    words = mask_words(low.model.n_ff)
    if mask is not None:
        return low.view(mask, 4 * first * words, count * words, np.uint32), words
    return low.area("all", words, np.uint32), 0


def _list_rows(
    low: DeviceLowering, node: Node, rows: DeviceMatrix, first: int, count: int
) -> tuple[Buffer, Buffer]:
    """Rows of some tokens whose neurons the mask lists: ids [count, n_rows], and how many."""
    ids = low.area("ids", count * rows.n_rows, np.int32)
    counted = low.area("ids", count, np.int32, 4 * count * rows.n_rows)
    bits, held, total = _listing(low, node, first, count)
    work, words = compact(count, rows.n_rows, low.model.n_ff), mask_words(low.model.n_ff)
    low.launch(work, bits, held, ids, counted, total, rows.n_rows, words)
    return ids, counted


def _listing(
    low: DeviceLowering, node: Node, first: int = 0, count: int = 1
) -> tuple[Buffer, Buffer, Buffer]:
    """What kernels find some tokens' rows by: masks, bits of the neurons that are there, and who counts them."""
    total = low.area("counts", 1, np.uint32, 4 * layer_of(node))
    return _mask_of(low, node.find_tensor("mask"), first, count)[0], low.held(node), total


def _gated_by_outputs(low: DeviceLowering, nodes: Sequence[Node]) -> int:
    node = nodes[0]
    gate, up, down = ffn_matrices(node)
    n_ff, activation = gate.ne[1], ACTIVATIONS[node.attributes["activation"]]
    first = low.area("first", low.n_tokens * n_ff, np.float32)
    gates, ups = low.store.matrix(gate), low.store.matrix(up)
    if low.n_tokens == 1 and share_an_input((gate.type, up.type)):
        work = gated_ffn_hidden((gate.type, up.type), 1, n_ff, gates.n)
        inputs = low.input_of(node, gate)
        low.launch(work, *gates.planes, *ups.planes, *inputs, first, n_ff, gates.n, activation)
    else:
        second = low.area("second", low.n_tokens * n_ff, np.float32)
        low.product(gates, low.input_of(node, gate), first)
        low.product(ups, low.input_of(node, up), second)
        work = hidden_masked_gated(low.n_tokens, n_ff, n_ff, has_mask=False)
        low.launch(work, first, second, *_unread(low, n_ff), first, n_ff, 0, 0, activation, *low.least(node))
    return _down_by_outputs(low, nodes, down, None, first)


def _ungated_by_outputs(low: DeviceLowering, nodes: Sequence[Node]) -> int:
    node, up, bias = nodes[0], nodes[0].weight("up"), nodes[0].find_weight("up_bias")
    n_ff, activation = up.n_rows, node.attributes["activation"]
    first = low.area("first", low.n_tokens * n_ff, np.float32)
    is_relu = activation == "relu"
    low.product(
        low.store.matrix(up),
        low.input_of(node, up),
        first,
        flags=HAS_BIAS * (bias is not None) | RELU * is_relu,
        bias=low.store.vector(bias) if bias is not None else None,
    )
    if not is_relu:
        work = hidden_masked(low.n_tokens, n_ff, n_ff, has_mask=False, has_bias=False)
        low.launch(work, first, first, *_unread(low, n_ff), first, n_ff, 0, 0, 0, ACTIVATIONS[activation])
    return _down_by_outputs(low, nodes, node.weight("down"), node.find_weight("down_bias"), first)


def _unread(low: DeviceLowering, n_ff: int) -> tuple[Buffer, Buffer]:
    """What stands in for a mask and for the numbers of rows."""
    return low.area("all", mask_words(n_ff), np.uint32), low.positions()


def _down_by_outputs(
    low: DeviceLowering, nodes: Sequence[Node], down: Weight, bias: Weight | None, hidden_vector: Buffer
) -> int:
    """y = down hidden + bias + residual."""
    residual, output, taken = low.residual(nodes)
    x = low.hidden_input(down, hidden_vector)
    low.product(
        low.store.matrix(down),
        x,
        low.vector(output),
        flags=HAS_BIAS * (bias is not None) | HAS_RESIDUAL * (residual is not None),
        bias=low.store.vector(bias) if bias is not None else None,
        residual=low.vector(residual) if residual is not None else None,
    )
    return taken
