"""From planned nodes to the op records that the thread team walks.

One short function a node kind; each knows its node's operands and nothing of the model around it. A
graph of one token and a graph of a batch lower to different ops: rows stream through dot products for
one token, and are used for several tokens at a time in a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hotcold.engine.graph import Graph, Node, Tensor, tensors_of, weights_of
from hotcold.engine.model import Weight
from hotcold.engine.stores import HostStore, KVCache
from hotcold.errors import HotcoldError
from hotcold.kernels.cpu import pack, program, rows

Record = dict[str, Any]

ACTIVATIONS = {
    "relu": program.RELU_ACTIVATION,
    "silu": program.SILU_ACTIVATION,
    "relu_both": program.RELU_BOTH_ACTIVATION,
}
TOKENS_A_SHARE = 32  # prompt tokens of one head that a thread attends to at once


@dataclass
class Lowering:
    """Addresses of everything that records name, and the records so far.

    Attributes:
        tensors: address of each intermediate by name. areas: address of each workspace area.
        rope_table: address of (cos, sin) float32 [n_ctx, n_pairs, 2].
        counts: address of int64 [n_layer, MAX_CHUNKS, 2], listed and live neurons.
        packed: the tensor that the packed area holds.
    """

    n_tokens: int
    store: HostStore
    kv_cache: KVCache
    tensors: dict[str, int]
    areas: dict[str, int]
    rope_table: int
    counts: int
    packed: str | None = None
    n_ffn: int = 0
    records: list[Record] = field(default_factory=list)

    @property
    def one_token(self) -> bool:
        """Whether this is the decode graph."""
        return self.n_tokens == 1

    def emit(self, code: int, chunks: int, **fields: Any) -> None:
        """Append one record."""
        self.records.append({"code": code, "chunks": chunks, **fields})

    def next_counts(self) -> int:
        """Address of the next layer's counts."""
        self.n_ffn += 1
        return self.counts + (self.n_ffn - 1) * program.MAX_CHUNKS * 16

    def token_chunks(self, n: int) -> int:
        """Chunks of an op that shares out tokens of n numbers each."""
        return max(1, min(self.n_tokens, 4 * n * self.n_tokens // program.CHUNK_BYTES, program.MAX_CHUNKS))

    def vector(self, tensor: Tensor) -> tuple[int, int]:
        """Address and row stride of an intermediate's float32."""
        return self.tensors[tensor.name], 4 * tensor.shape[1]

    def operand(self, weight: Weight, name: str, address: int, n: int) -> tuple[int, int]:
        """The activations as this weight wants them: float32, or packed before their first use.

        Args:
            name: what identifies the vector, so that it is packed once for all its consumers.
            address, n: its float32 [n_tokens, n].

        Returns:
            address and row stride.
        """
        if not rows.is_quantised(int(weight.type)):
            return address, 4 * n
        to, stride = self.areas["packed"], pack.packed_bytes(n)
        if self.packed != name:
            chunks = self.token_chunks(n)
            self.emit(program.PACK, chunks, x=address, x_stride=4 * n, k=n, y=to, y_stride=stride)
            self.packed = name
        return to, stride

    def tensor_operand(self, weight: Weight, tensor: Tensor) -> tuple[int, int]:
        """`operand` of an intermediate."""
        return self.operand(weight, tensor.name, self.tensors[tensor.name], tensor.shape[1])

    def weight(self, weight: Weight, name: str = "w") -> Record:
        """Record fields that say where a matrix lies."""
        stride = rows.row_bytes(int(weight.type), weight.ne[0])
        return {name: self.store.address(weight), f"{name}_type": int(weight.type), f"{name}_stride": stride}

    def matrix(self, weight: Weight, x: tuple[int, int], y: tuple[int, int], code: int | None = None) -> None:
        """Append y = weight . x for every token."""
        k, n_rows = weight.ne
        if code is None:
            code = program.MAT_VEC if self.one_token else program.MUL_MAT
        chunks = program.row_chunks(n_rows, rows.row_bytes(int(weight.type), k))
        if code == program.MUL_MAT:
            chunks = program.panel_chunks(n_rows)
        at = {"x": x[0], "x_stride": x[1], "y": y[0], "y_stride": y[1]}
        self.emit(code, chunks, **self.weight(weight), n_rows=n_rows, k=k, **at)

    def bias(self, bias: Weight | None, y: tuple[int, int]) -> None:
        """Append y += bias for every token, if there is one."""
        if bias is not None:
            at = {"x": y[0], "x_stride": y[1], "y": y[0], "y_stride": y[1], "z": self.store.address(bias)}
            self.emit(program.ADD, self.token_chunks(bias.ne[0]), **at, k=bias.ne[0])


def embed(low: Lowering, node: Node) -> None:
    (table,) = weights_of(node)
    y, stride = low.vector(node.output)
    chunks = low.token_chunks(table.ne[0])
    low.emit(program.EMBED, chunks, **low.weight(table), k=table.ne[0], y=y, y_stride=stride)


def positions(low: Lowering, node: Node) -> None:
    (table,) = weights_of(node)
    y, stride = low.vector(node.output)
    at = {"y": y, "y_stride": stride, "p0": node.attributes["first"]}
    low.emit(program.POSITIONS, low.token_chunks(table.ne[0]), **low.weight(table), **at, k=table.ne[0])


def rms_norm(low: Lowering, node: Node) -> None:
    (weight,) = weights_of(node)
    _norm(low, node, program.RMS_NORM, w=low.store.address(weight))


def layer_norm(low: Lowering, node: Node) -> None:
    weight, bias = weights_of(node)
    _norm(low, node, program.LAYER_NORM, w=low.store.address(weight), w1=low.store.address(bias))


def _norm(low: Lowering, node: Node, code: int, **weights: int) -> None:
    (x,) = tensors_of(node)
    at, stride = low.vector(x)
    y, _ = low.vector(node.output)
    low.emit(
        code,
        low.token_chunks(x.shape[1]),
        **weights,
        x=at,
        x_stride=stride,
        y=y,
        y_stride=stride,
        k=x.shape[1],
        f0=node.attributes["eps"],
    )


def mul_mat(low: Lowering, node: Node) -> None:
    (x,), (weight, *bias) = tensors_of(node), weights_of(node)
    y = low.vector(node.output)
    low.matrix(weight, low.tensor_operand(weight, x), y)
    low.bias(bias[0] if bias else None, y)


def logits(low: Lowering, node: Node) -> None:
    (x,), (weight,) = tensors_of(node), weights_of(node)
    low.matrix(weight, low.tensor_operand(weight, x), (0, 4 * weight.ne[1]), program.LOGITS)


def rope(low: Lowering, node: Node) -> None:
    x = tensors_of(node)[0]
    at, stride = low.vector(x)
    y, _ = low.vector(node.output)
    n_pairs = node.attributes["n_rot"] // 2
    low.emit(
        program.ROPE,
        low.token_chunks(x.shape[1]),
        x=at,
        x_stride=stride,
        y=y,
        y_stride=stride,
        w=low.rope_table,
        w_stride=8 * n_pairs,
        p0=node.attributes["n_head"],
        p1=node.attributes["head_dim"],
        p2=n_pairs,
        p3=int(node.attributes["interleaved"]),
    )


def kv_store(low: Lowering, node: Node) -> None:
    k, v = tensors_of(node)
    cache, layer = low.kv_cache, node.attributes["layer"]
    (x, x_stride), (z, z_stride) = low.vector(k), low.vector(v)
    low.emit(
        program.KV_STORE,
        low.token_chunks(2 * k.shape[1]),
        x=x,
        x_stride=x_stride,
        z=z,
        z_stride=z_stride,
        w=cache.keys(layer),
        w1=cache.values(layer),
        w_type=cache.type_id,
        p0=cache.n_head_kv,
        p1=cache.head_dim,
        p2=cache.n_ctx,
    )


def attention(low: Lowering, node: Node) -> None:
    q, _ = tensors_of(node)  # the second only orders it after kv_store
    cache, layer = low.kv_cache, node.attributes["layer"]
    n_head, head_dim = node.attributes["n_head"], node.attributes["head_dim"]
    (x, x_stride), (y, y_stride) = low.vector(q), low.vector(node.output)
    low.emit(
        program.ATTENTION,
        n_head * -(-low.n_tokens // TOKENS_A_SHARE),
        x=x,
        x_stride=x_stride,
        y=y,
        y_stride=y_stride,
        w=cache.keys(layer),
        w1=cache.values(layer),
        w_type=cache.type_id,
        p0=n_head,
        p1=cache.n_head_kv,
        p2=head_dim,
        p3=cache.n_ctx,
        f0=head_dim**-0.5,
    )


def add(low: Lowering, node: Node) -> None:
    a, b = tensors_of(node)
    (x, stride), (z, _), (y, _) = low.vector(a), low.vector(b), low.vector(node.output)
    at = {"x": x, "x_stride": stride, "z": z, "z_stride": stride, "y": y, "y_stride": stride}
    low.emit(program.ADD, low.token_chunks(a.shape[1]), **at, k=a.shape[1])


def predictor(low: Lowering, node: Node) -> None:
    (a,), (fc1, fc2) = tensors_of(node), weights_of(node)
    rank, n_ff = fc1.ne[1], fc2.ne[1]
    hidden, outputs = low.areas["first"], low.areas["second"]
    low.matrix(fc1, low.tensor_operand(fc1, a), (hidden, 4 * rank))
    at = {"x": hidden, "x_stride": 4 * rank, "y": hidden, "y_stride": 4 * rank}
    low.emit(program.RELU, low.token_chunks(rank), **at, k=rank)
    x = low.operand(fc2, f"{node.output.name} hidden", hidden, rank)
    low.matrix(fc2, x, (outputs, 4 * n_ff))
    count = low.areas["listed"]
    low.emit(
        program.MASK,
        low.token_chunks(n_ff),
        x=outputs,
        x_stride=4 * n_ff,
        n_rows=n_ff,
        y=low.tensors[node.output.name],
        y_stride=mask_bytes(n_ff),
        **({"p0": count + 8, "p1": count} if low.one_token else {}),
        f0=node.attributes["threshold"],
    )


def mask_bytes(n_ff: int) -> int:
    """Bytes of one token's mask: a bit a neuron, in words of 64."""
    return -(-n_ff // 64) * 8


def dense_ffn(low: Lowering, node: Node) -> None:
    (n,), (gate, up, down) = tensors_of(node), weights_of(node)
    transposed = down.ne[0] == gate.ne[0] and node.attributes["transposed"]
    activation = node.attributes["activation"]
    if low.one_token and transposed and activation != "silu":
        _gated_pieces(low, node, skip=False, listed=False)
        return
    n_ff = gate.ne[1]
    first, second = (low.areas["first"], 4 * n_ff), (low.areas["second"], 4 * n_ff)
    if low.one_token:
        _gated(low, n, gate, up, activation)
    else:
        low.matrix(gate, low.tensor_operand(gate, n), first)
        low.matrix(up, low.tensor_operand(up, n), second)
        at = {"x": first[0], "z": second[0], "y": first[0]}
        strides = dict.fromkeys(("x_stride", "z_stride", "y_stride"), 4 * n_ff)
        low.emit(program.ACT_MUL, low.token_chunks(n_ff), **at, **strides, k=n_ff, p0=ACTIVATIONS[activation])
    if transposed:
        _down_rows(low, node, down, first)
    else:
        low.matrix(
            down, low.operand(down, f"{node.output.name} hidden", *_flat(first)), low.vector(node.output)
        )


def _flat(area: tuple[int, int]) -> tuple[int, int]:
    """Address and length in numbers of an area with this row stride."""
    return area[0], area[1] // 4


def _gated(low: Lowering, n: Tensor, gate: Weight, up: Weight, activation: str) -> None:
    """first = act(gate n) * (up n) for one token."""
    x, z = low.tensor_operand(gate, n)[0], low.tensor_operand(up, n)[0]
    bytes_a_row = sum(rows.row_bytes(int(w.type), w.ne[0]) for w in (gate, up))
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
        p0=ACTIVATIONS[activation],
    )


def _down_rows(low: Lowering, node: Node, down_t: Weight, hidden: tuple[int, int]) -> None:
    """y = hidden . down_t for every token, rows with a zero coefficient skipped."""
    y, stride = low.vector(node.output)
    at = {"x": hidden[0], "x_stride": hidden[1], "y": y, "y_stride": stride}
    k, n_ff = down_t.ne
    low.emit(program.DOWN_ROWS, max(1, k // 64), **low.weight(down_t), **at, n_rows=n_ff, k=k)


def _gated_pieces(low: Lowering, node: Node, skip: bool, listed: bool) -> None:
    """`_pieces` of an FFN with a gate."""
    n, (gate, up, down_t) = tensors_of(node)[0], weights_of(node)
    x, z = low.tensor_operand(gate, n)[0], low.tensor_operand(up, n)[0]
    own = {**low.weight(up, "w1"), "x": x, "z": z, "p3": ACTIVATIONS[node.attributes["activation"]]}
    _pieces(low, node, gate, down_t, own, skip, listed)


def _pieces(
    low: Lowering, node: Node, first: Weight, down_t: Weight, own: Record, skip: bool, listed: bool
) -> None:
    """The fused pass of one token, and the sum of its partial vectors.

    Args:
        first: the matrix that decides which neurons fire. own: fields of this kind of FFN.
    """
    k, n_ff = first.ne
    partial, stride = low.areas["first"], 4 * k
    count = low.areas["listed"]
    low.emit(
        program.SPARSE_FFN,
        program.PIECES,
        **low.weight(first),
        **low.weight(down_t, "w2"),
        **own,
        n_rows=n_ff,
        k=k,
        scratch=partial,
        scratch_stride=stride,
        **({"p0": count + 8, "p1": count} if listed else {}),
        p2=int(skip),
        counts=low.next_counts(),
    )
    y, _ = low.vector(node.output)
    chunks = max(1, min(program.PIECES, k // 256))
    low.emit(program.REDUCE, chunks, x=partial, x_stride=stride, p0=program.PIECES, k=k, y=y)


def sparse_ffn(low: Lowering, node: Node) -> None:
    n, *mask = tensors_of(node)
    gate, up, down_t = weights_of(node)
    if low.one_token:
        _gated_pieces(low, node, skip=True, listed=bool(mask))
        return
    n_ff, counts = gate.ne[1], low.next_counts()
    gates, hidden = (low.areas["first"], 4 * n_ff), (low.areas["second"], 4 * n_ff)
    if mask:
        bits = {"z": low.tensors[mask[0].name], "z_stride": mask_bytes(n_ff), "counts": counts}
        _row_op(low, program.GATE_ROWS, gate, low.tensor_operand(gate, n), gates, bits)
    else:
        low.matrix(gate, low.tensor_operand(gate, n), gates)
    positive = {"z": gates[0], "z_stride": gates[1], "counts": counts, "p0": int(not mask)}
    positive |= {"p3": ACTIVATIONS[node.attributes["activation"]]}
    _row_op(low, program.UP_ROWS, up, low.tensor_operand(up, n), hidden, positive)
    _down_rows(low, node, down_t, hidden)


def _row_op(
    low: Lowering, code: int, weight: Weight, x: tuple[int, int], y: tuple[int, int], which: Record
) -> None:
    k, n_rows = weight.ne
    chunks = program.row_chunks(n_rows, rows.row_bytes(int(weight.type), k))
    at = {"x": x[0], "x_stride": x[1], "y": y[0], "y_stride": y[1]}
    low.emit(code, chunks, **low.weight(weight), **at, **which, n_rows=n_rows, k=k)


@dataclass(frozen=True)
class _Mlp:
    """Weights of an FFN without a gate."""

    up: Weight
    up_bias: Weight | None
    down: Weight
    down_bias: Weight | None


def _mlp_weights(node: Node) -> _Mlp:
    up, *others = weights_of(node)
    up_bias = others.pop(0) if len(others[0].ne) == 1 else None
    return _Mlp(up, up_bias, others[0], others[1] if len(others) > 1 else None)


def dense_mlp(low: Lowering, node: Node) -> None:
    (n,), weights = tensors_of(node), _mlp_weights(node)
    up, down, n_ff = weights.up, weights.down, weights.up.ne[1]
    transposed, activation = node.attributes["transposed"], node.attributes["activation"]
    if low.one_token and transposed and activation == "relu":
        _mlp_pieces(low, node, weights, skip=False, listed=False)
        return
    hidden = (low.areas["first"], 4 * n_ff)
    low.matrix(up, low.tensor_operand(up, n), hidden)
    low.bias(weights.up_bias, hidden)
    at = {"x": hidden[0], "x_stride": hidden[1], "y": hidden[0], "y_stride": hidden[1]}
    code = {"relu": program.RELU, "gelu": program.GELU}[activation]
    low.emit(code, low.token_chunks(n_ff), **at, k=n_ff)
    if transposed:
        _down_rows(low, node, down, hidden)
    else:
        x = low.operand(down, f"{node.output.name} hidden", *_flat(hidden))
        low.matrix(down, x, low.vector(node.output))
    low.bias(weights.down_bias, low.vector(node.output))


def _mlp_pieces(low: Lowering, node: Node, weights: _Mlp, skip: bool, listed: bool) -> None:
    """`_pieces` of an FFN without a gate, and its last bias."""
    bias = 0 if weights.up_bias is None else low.store.address(weights.up_bias)
    own = {"x": low.tensor_operand(weights.up, tensors_of(node)[0])[0], "z": bias}
    _pieces(low, node, weights.up, weights.down, own, skip, listed)
    low.bias(weights.down_bias, low.vector(node.output))


def sparse_mlp(low: Lowering, node: Node) -> None:
    (n, *mask), weights = tensors_of(node), _mlp_weights(node)
    if low.one_token:
        _mlp_pieces(low, node, weights, skip=True, listed=bool(mask))
        return
    n_ff, counts = weights.up.ne[1], low.next_counts()
    hidden = (low.areas["first"], 4 * n_ff)
    bits: Record = {}
    if mask:
        bits = {"z": low.tensors[mask[0].name], "z_stride": mask_bytes(n_ff)}
        where = {**bits, "counts": counts}
        _row_op(low, program.GATE_ROWS, weights.up, low.tensor_operand(weights.up, n), hidden, where)
    else:
        low.matrix(weights.up, low.tensor_operand(weights.up, n), hidden)
    low.emit(
        program.FIRE_ROWS,
        program.row_chunks(n_ff, 4 * low.n_tokens),
        **bits,
        x=hidden[0],
        x_stride=hidden[1],
        y=hidden[0],
        y_stride=hidden[1],
        w=0 if weights.up_bias is None else low.store.address(weights.up_bias),
        n_rows=n_ff,
        counts=counts,
        p0=int(not mask),
    )
    _down_rows(low, node, weights.down, hidden)
    low.bias(weights.down_bias, low.vector(node.output))


LOWER: dict[str, Callable[[Lowering, Node], None]] = {
    function.__name__: function
    for function in (
        embed,
        positions,
        rms_norm,
        layer_norm,
        mul_mat,
        rope,
        kv_store,
        attention,
        add,
        predictor,
        dense_ffn,
        sparse_ffn,
        dense_mlp,
        sparse_mlp,
        logits,
    )
}


def lower(graph: Graph, low: Lowering) -> list[tuple[Node, list[Record]]]:
    """Every node with its records, in order; a vector that several nodes read packed belongs to the first.

    Raises:
        HotcoldError: an op that has no lowering.
    """
    lowered = []
    for node in graph.nodes:
        if node.op not in LOWER:
            raise HotcoldError(f"op of node {node.name}", node.op, f"known are {', '.join(LOWER)}")
        before = len(low.records)
        LOWER[node.op](low, node)
        lowered.append((node, low.records[before:]))
    return lowered
