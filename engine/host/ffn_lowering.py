"""From the FFN's nodes to op records: all rows of its matrices, those of a list, or the cold ones alone.

One token goes through its rows in one pass, by a list of them where not all are wanted; a batch by the
bits of a mask. Both exclude hot rows, whose numbers the CPU never reads.
"""

from hotcold.engine.graph.graph import COLD, Node, ffn_matrices, layer_of
from hotcold.engine.host.cold_rows import ColdRows
from hotcold.engine.host.records import Lowering, Record
from hotcold.engine.host.workspace import ffn_pieces
from hotcold.engine.model.model import Weight
from hotcold.errors import HotcoldError
from hotcold.kernels.cpu import program, sizes
from hotcold.kernels.formats import ACTIVATIONS, mask_bytes


def _cold(low: Lowering, node: Node) -> ColdRows | None:
    """The rows that the node is about, where they are the cold ones; None for all of them."""
    return low.cold[layer_of(node)] if node.rows == COLD else None


def _listed(low: Lowering, node: Node) -> Record:
    """Fields of the list of rows that one token reads; none for all rows.

    A predictor on the CPU lists its rows itself. Where it is on the device its mask has crossed the bus,
    and is listed here, without the rows that the device has.
    """
    mask, cold = node.find_tensor("mask"), _cold(low, node)
    if mask is None:
        return cold.list_fields if cold else {}
    count = low.areas["listed"]
    where = {"listed": count + 8, "n_listed": count}
    if mask.origin is not None:
        n_ff, x = mask.shape[1], cold.bits.ctypes.data if cold else 0
        low.emit(program.LIST_ROWS, 1, z=low.tensors[mask.name], x=x, n_rows=n_ff, **where)
    return where


def _bits(low: Lowering, node: Node) -> Record:
    """Fields of the mask of rows that a batch's tokens read; none for all rows."""
    mask, cold = node.find_tensor("mask"), _cold(low, node)
    if mask is None:
        return {"z": cold.bits.ctypes.data, "z_stride": 0} if cold else {}
    n_ff = mask.shape[1]
    bits = {"z": low.tensors[mask.name], "z_stride": mask_bytes(n_ff)}
    if cold:  # the mask of a split FFN is the CPU's own copy, so it may be changed in place
        own = {"y": bits["z"], "y_stride": bits["z_stride"], "x": cold.bits.ctypes.data}
        low.emit(program.AND_BITS, low.token_chunks(n_ff // 32), **bits, **own, n_rows=n_ff)
    return bits


def _rows_of(low: Lowering, weight: Weight, x: tuple[int, int], y: tuple[int, int], bits: Record) -> None:
    """y = weight . x in the rows of the mask and 0 in the others, or in all rows."""
    if bits:
        _row_op(low, program.GATE_ROWS, weight, x, y, bits)
    else:
        low.matrix(weight, x, y)


def dense_gated_ffn(low: Lowering, node: Node) -> None:
    gate, up, down = ffn_matrices(node)
    transposed = down.ne[0] == gate.ne[0] and node.attributes["transposed"]
    activation = node.attributes["activation"]
    if low.one_token and transposed and activation not in ("silu", "gelu"):
        _gated_pieces(low, node, skip=False)
        return
    n_ff, bits = gate.ne[1], _bits(low, node)
    first, second = (low.areas["first"], 4 * n_ff), (low.areas["second"], 4 * n_ff)
    if low.one_token and not bits:
        _gated(low, node)
    else:
        _rows_of(low, gate, low.input_of(node, gate), first, bits)
        _rows_of(low, up, low.input_of(node, up), second, bits)
        at = {"x": first[0], "z": second[0], "y": first[0]}
        strides = dict.fromkeys(("x_stride", "z_stride", "y_stride"), 4 * n_ff)
        low.emit(
            program.ACT_MUL,
            low.token_chunks(n_ff),
            **at,
            **strides,
            k=n_ff,
            activation=ACTIVATIONS[activation],
        )
    if transposed:
        _down_rows(low, node, down, first)
    else:
        low.matrix(down, low.hidden_input(down, first), low.vector(node.output))


def _gated(low: Lowering, node: Node) -> None:
    """first = act(gate x) * (up x) for one token."""
    gate, up, _ = ffn_matrices(node)
    x, z = low.input_of(node, gate)[0], low.input_of(node, up)[0]
    bytes_a_row = sum(sizes.row_bytes(int(w.type), w.ne[0]) for w in (gate, up))
    low.emit(
        program.GATED,
        program.row_chunks(gate.ne[1], bytes_a_row),
        **low.weight(gate),
        **low.weight(up, "w1"),
        x=x,
        z=z,
        y=low.areas["first"],
        scratch=low.areas["second"],
        n_rows=gate.ne[1],
        k=gate.ne[0],
        activation=ACTIVATIONS[node.attributes["activation"]],
    )


def _down_rows(low: Lowering, node: Node, down_t: Weight, hidden: tuple[int, int]) -> None:
    """y = hidden . down_t for every token, rows with a zero coefficient skipped."""
    y, stride = low.vector(node.output)
    at = {"x": hidden[0], "x_stride": hidden[1], "y": y, "y_stride": stride}
    k, n_ff = down_t.ne
    chunks = max(1, k // 256)
    low.emit(
        program.DOWN_ROWS, chunks, **low.weight(down_t), **at, n_rows=n_ff, k=k, n_parts=ffn_pieces(node)
    )


def _gated_pieces(low: Lowering, node: Node, skip: bool) -> None:
    """`_pieces` of an FFN with a gate."""
    gate, up, down_t = ffn_matrices(node)
    x, z = low.input_of(node, gate)[0], low.input_of(node, up)[0]
    activation = ACTIVATIONS[node.attributes["activation"]]
    own = {**low.weight(up, "w1"), "x": x, "z": z, "activation": activation, **low.thresholds(node)}
    _pieces(low, node, gate, down_t, own, skip)


def _pieces(low: Lowering, node: Node, first: Weight, down_t: Weight, own: Record, skip: bool) -> None:
    """The fused pass of one token, and the sum of its partial vectors.

    Args:
        first: the matrix that decides which neurons fire.
        own: fields of this kind of FFN.
    """
    k, n_ff = first.ne
    partial, stride, n_pieces = low.areas["first"], 4 * k, ffn_pieces(node)
    listed = _listed(low, node)
    low.emit(
        program.SPARSE_FFN,
        n_pieces,
        **low.weight(first),
        **low.weight(down_t, "w2"),
        **own,
        n_rows=n_ff,
        k=k,
        scratch=partial,
        scratch_stride=stride,
        **listed,
        skip=int(skip),
        counts=low.layer_counts(layer_of(node)),
    )
    y, _ = low.vector(node.output)
    chunks = max(1, min(n_pieces, k // 256))
    low.emit(program.REDUCE, chunks, x=partial, x_stride=stride, n_parts=n_pieces, k=k, y=y)


def sparse_gated_ffn(low: Lowering, node: Node) -> None:
    gate, up, down_t = ffn_matrices(node)
    if low.one_token:
        _gated_pieces(low, node, skip=True)
        return
    n_ff, counts, bits = gate.ne[1], low.layer_counts(layer_of(node)), _bits(low, node)
    gates, hidden = (low.areas["first"], 4 * n_ff), (low.areas["second"], 4 * n_ff)
    counted = bits | {"counts": counts} if bits else {}
    _rows_of(low, gate, low.input_of(node, gate), gates, counted)
    rule = {"activation": ACTIVATIONS[node.attributes["activation"]]}
    if least := low.thresholds(node):
        at = {"x": gates[0], "x_stride": gates[1], "y": gates[0], "y_stride": gates[1]}
        own = at | least | rule | {"n_rows": n_ff}
        low.emit_by_position(program.THRESHOLD, low.token_chunks(n_ff), **own)
    wanted = {"z": gates[0], "z_stride": gates[1], "counts": counts, "all_listed": int(not bits)} | rule
    _row_op(low, program.UP_ROWS, up, low.input_of(node, up), hidden, wanted)
    _down_rows(low, node, down_t, hidden)


def _row_op(
    low: Lowering, code: int, weight: Weight, x: tuple[int, int], y: tuple[int, int], which: Record
) -> None:
    k, n_rows = weight.ne
    chunks = program.row_chunks(n_rows, sizes.row_bytes(int(weight.type), k))
    at = {"x": x[0], "x_stride": x[1], "y": y[0], "y_stride": y[1]}
    low.emit(code, chunks, **low.weight(weight), **at, **which, n_rows=n_rows, k=k)


def dense_ffn(low: Lowering, node: Node) -> None:
    up, down = node.weight("up"), node.weight("down")
    up_bias, n_ff = node.find_weight("up_bias"), up.ne[1]
    transposed, activation = node.attributes["transposed"], node.attributes["activation"]
    if low.one_token and transposed and activation == "relu":
        _ffn_pieces(low, node, skip=False)
        return
    hidden, bits = (low.areas["first"], 4 * n_ff), _bits(low, node)
    _rows_of(low, up, low.input_of(node, up), hidden, bits)
    if activation == "relu":
        _fire(low, node, hidden, bits, 0)
    elif bits and up_bias is not None:  # a row that is not read would become gelu(bias)
        raise HotcoldError("split FFN", f"{activation} with biases", "only relu splits", "lower the budget")
    else:
        low.bias(up_bias, hidden)
        at = {"x": hidden[0], "x_stride": hidden[1], "y": hidden[0], "y_stride": hidden[1]}
        low.emit(program.GELU, low.token_chunks(n_ff), **at, k=n_ff)
    if transposed:
        _down_rows(low, node, down, hidden)
    else:
        low.matrix(down, low.hidden_input(down, hidden), low.vector(node.output))
    low.bias(node.find_weight("down_bias"), low.vector(node.output))


def _fire(low: Lowering, node: Node, hidden: tuple[int, int], bits: Record, counts: int) -> None:
    """hidden = relu(hidden + bias) in the rows of the mask, 0 in the others."""
    n_ff = node.weight("up").ne[1]
    low.emit(
        program.FIRE_ROWS,
        program.row_chunks(n_ff, 4 * low.n_tokens),
        **bits,
        x=hidden[0],
        x_stride=hidden[1],
        y=hidden[0],
        y_stride=hidden[1],
        w=_up_bias(low, node),
        n_rows=n_ff,
        counts=counts,
        all_listed=int(not bits),
    )


def _up_bias(low: Lowering, node: Node) -> int:
    """Address of the bias of up; 0 if there is none."""
    bias = node.find_weight("up_bias")
    return 0 if bias is None else low.store.address(bias)


def _ffn_pieces(low: Lowering, node: Node, skip: bool) -> None:
    """`_pieces` of an FFN without a gate, and its last bias."""
    up = node.weight("up")
    own = {"x": low.input_of(node, up)[0], "z": _up_bias(low, node)}
    _pieces(low, node, up, node.weight("down"), own, skip)
    low.bias(node.find_weight("down_bias"), low.vector(node.output))


def sparse_ffn(low: Lowering, node: Node) -> None:
    up = node.weight("up")
    if low.one_token:
        _ffn_pieces(low, node, skip=True)
        return
    n_ff, counts, bits = up.ne[1], low.layer_counts(layer_of(node)), _bits(low, node)
    hidden = (low.areas["first"], 4 * n_ff)
    counted = bits | {"counts": counts} if bits else {}
    _rows_of(low, up, low.input_of(node, up), hidden, counted)
    _fire(low, node, hidden, bits, counts)
    _down_rows(low, node, node.weight("down"), hidden)
    low.bias(node.find_weight("down_bias"), low.vector(node.output))
