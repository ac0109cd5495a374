"""From a node to the op records that the thread team walks.

One short function a node kind; each knows its node's operands and nothing of the model around it.
"""

from collections.abc import Callable, Sequence

from hotcold.engine.graph.graph import Node, layer_of
from hotcold.engine.host.expert_lowering import expert_ffn, mul_sigmoid, top_k, will_need
from hotcold.engine.host.ffn_lowering import dense_ffn, dense_gated_ffn, sparse_ffn, sparse_gated_ffn
from hotcold.engine.host.records import Lowering, Record
from hotcold.errors import HotcoldError
from hotcold.kernels.cpu import program, sizes
from hotcold.kernels.formats import mask_bytes


def embed(low: Lowering, node: Node) -> None:
    table = node.weight("weight")
    y, stride = low.vector(node.output)
    chunks = low.token_chunks(table.ne[0])
    low.emit(program.EMBED, chunks, **low.weight(table), k=table.ne[0], y=y, y_stride=stride)


def positions(low: Lowering, node: Node) -> None:
    table = node.weight("weight")
    y, stride = low.vector(node.output)
    at = {"y": y, "y_stride": stride, "first": node.attributes["first"]}
    how = {**low.weight(table), **at, "k": table.ne[0]}
    low.emit_by_position(program.POSITIONS, low.token_chunks(table.ne[0]), **how)


def rms_norm(low: Lowering, node: Node) -> None:
    _norm(low, node, program.RMS_NORM, w=low.store.address(node.weight("weight")))


def rms_norm_heads(low: Lowering, node: Node) -> None:
    rms_norm(low, node)


def layer_norm(low: Lowering, node: Node) -> None:
    weight, bias = node.weight("weight"), node.weight("bias")
    _norm(low, node, program.LAYER_NORM, w=low.store.address(weight), w1=low.store.address(bias))


def _norm(low: Lowering, node: Node, code: int, **weights: int) -> None:
    x, n_rows = node.tensor("x"), node.attributes.get("n_head", 1)
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
        n_rows=n_rows,
        k=x.shape[1] // n_rows,
        eps=node.attributes["eps"],
    )


def pack(low: Lowering, node: Node) -> None:
    low.pack(node.tensor("x"))


def mul_mat(low: Lowering, node: Node) -> None:
    weight, y = node.weight("weight"), low.vector(node.output)
    low.matrix(weight, low.input_of(node, weight), y)
    low.bias(node.find_weight("bias"), y)


def logits(low: Lowering, node: Node) -> None:
    weight, profile = node.weight("weight"), node.find_tensor("profile")
    if profile is None:
        low.matrix(weight, low.input_of(node, weight), (0, 4 * weight.ne[1]), program.LOGITS)
        return
    z, _ = low.vector(profile)
    low.emit(program.KEEP_SOME, 1, x=z, k=profile.shape[1])
    low.matrix(weight, low.input_of(node, weight), (0, 4 * weight.ne[1]), program.SPARSE_LOGITS, z=z)


def rope(low: Lowering, node: Node) -> None:
    x = node.tensor("x")
    at, stride = low.vector(x)
    y, _ = low.vector(node.output)
    n_pairs = node.attributes["n_rot"] // 2
    low.emit_by_position(
        program.ROPE,
        low.token_chunks(x.shape[1]),
        x=at,
        x_stride=stride,
        y=y,
        y_stride=stride,
        w=low.rope_table + node.attributes["table"] * low.table_bytes,
        w_stride=8 * n_pairs,
        n_head=node.attributes["n_head"],
        head_dim=node.attributes["head_dim"],
        n_pairs=n_pairs,
        interleaved=int(node.attributes["interleaved"]),
    )


def kv_store(low: Lowering, node: Node) -> None:
    k, v = node.tensor("k"), node.tensor("v")
    cache, layer = low.kv_cache, layer_of(node)
    (x, x_stride), (z, z_stride) = low.vector(k), low.vector(v)
    low.emit_by_position(
        program.KV_STORE,
        low.token_chunks(2 * k.shape[1]),
        x=x,
        x_stride=x_stride,
        z=z,
        z_stride=z_stride,
        n_head_kv=cache.n_head_kv,
        head_dim=cache.head_dim,
        **cache.fields(layer),
    )


def attention(low: Lowering, node: Node) -> None:
    q, sinks = node.tensor("q"), node.find_weight("sinks")
    cache, layer = low.kv_cache, layer_of(node)
    n_head, head_dim = node.attributes["n_head"], node.attributes["head_dim"]
    (x, x_stride), (y, y_stride) = low.vector(q), low.vector(node.output)
    fields = {
        "x": x,
        "x_stride": x_stride,
        "y": y,
        "y_stride": y_stride,
        "scratch": low.areas["first"],
        "n_head": n_head,
        "n_head_kv": cache.n_head_kv,
        "head_dim": head_dim,
        "scale": node.attributes["scale"],
        "k": node.attributes["window"],
        "z": 0 if sinks is None else low.store.address(sinks),
        **cache.fields(layer),
    }
    shape = (n_head, cache.n_head_kv, head_dim, cache.n_ctx)
    joins = sizes.attention_parts(cache.n_ctx) > 1
    if not low.apart:
        low.emit(program.ATTENTION, sizes.attention_chunks(low.n_tokens, *shape), **fields)
        if joins:
            low.emit(program.ATTENTION_JOIN, n_head, **fields)
        return
    # as many sequences at a time as there is room for the sums of their parts
    room = min(low.n_tokens, sizes.SPLIT_TOKENS)
    fields["scratch_stride"] = sizes.attention_partial_bytes(1, n_head, head_dim, cache.n_ctx)
    for t in range(0, low.n_apart, room):
        n, at = min(room, low.n_apart - t), {"x": x + t * x_stride, "y": y + t * y_stride}
        at["apart"] = low.apart + t * 8 * program.N_PARAMETERS
        codes = {program.ATTENTION: sizes.attention_chunks(1, *shape), program.ATTENTION_JOIN: n_head}
        for code, of_one in list(codes.items())[: 1 + joins]:
            low.emit(code, n * of_one, n_rows=of_one, **(fields | at))


def scale(low: Lowering, node: Node) -> None:
    x = node.tensor("x")
    (at, stride), (y, _) = low.vector(x), low.vector(node.output)
    at_x = {"x": at, "x_stride": stride, "y": y, "y_stride": stride}
    low.emit(
        program.SCALE, low.token_chunks(x.shape[1]), **at_x, k=x.shape[1], factor=node.attributes["factor"]
    )


def add(low: Lowering, node: Node) -> None:
    a, b = node.tensor("a"), node.tensor("b")
    (x, stride), (z, _), (y, _) = low.vector(a), low.vector(b), low.vector(node.output)
    at = {"x": x, "x_stride": stride, "z": z, "z_stride": stride, "y": y, "y_stride": stride}
    low.emit(program.ADD, low.token_chunks(a.shape[1]), **at, k=a.shape[1])


def predictor(low: Lowering, node: Node) -> None:
    fc1, fc2 = node.weight("fc1"), node.weight("fc2")
    rank, n_ff = fc1.ne[1], fc2.ne[1]
    hidden, outputs, bits = low.areas["first"], low.areas["second"], low.tensors[node.output.name]
    threshold = node.attributes["threshold"]
    low.matrix(fc1, low.input_of(node, fc1), (hidden, 4 * rank))
    at = {"x": hidden, "x_stride": 4 * rank, "y": hidden, "y_stride": 4 * rank}
    low.emit(program.RELU, low.token_chunks(rank), **at, k=rank)
    x = low.hidden_input(fc2, (hidden, 4 * rank))
    if not low.one_token:
        low.matrix(fc2, x, (bits, mask_bytes(n_ff)), program.MASK_ROWS, threshold=threshold)
        return
    low.matrix(fc2, x, (outputs, 4 * n_ff))
    count = low.areas["listed"]
    listed = {"listed": count + 8, "n_listed": count}
    low.emit(program.MASK, 1, x=outputs, n_rows=n_ff, y=bits, **listed, threshold=threshold)


LOWER: dict[str, Callable[[Lowering, Node], None]] = {
    function.__name__: function
    for function in (
        embed,
        positions,
        rms_norm,
        rms_norm_heads,
        layer_norm,
        pack,
        mul_mat,
        rope,
        kv_store,
        attention,
        scale,
        add,
        predictor,
        dense_gated_ffn,
        sparse_gated_ffn,
        dense_ffn,
        sparse_ffn,
        top_k,
        expert_ffn,
        mul_sigmoid,
        logits,
    )
}


def lower(nodes: Sequence[Node], low: Lowering) -> list[tuple[Node, list[Record]]]:
    """Nodes in order with their records; those of a `pack` belong to the first node that reads it.

    Where experts may have to be read from disk the system hears of them as soon as the router has chosen, which is
    before attention in SmallThinker; or, if a device chose, before they are read.

    Raises:
        HotcoldError: an op that has no lowering.
    """
    lowered, begin = [], len(low.records)
    mixtures = [node for node in nodes if node.op == "expert_ffn"] if low.reads_disk else []
    unheard = {node.tensor("chosen").name: node for node in mixtures}
    for node in nodes:
        if node.op not in LOWER:
            raise HotcoldError(f"op of node {node.name}", node.op, f"known are {', '.join(LOWER)}")
        if node.op == "expert_ffn" and node.tensor("chosen").name in unheard:
            will_need(low, node)
        LOWER[node.op](low, node)
        if node.op == "top_k" and (reader := unheard.pop(node.output.name, None)):
            will_need(low, reader)
        if node.op != "pack":
            lowered.append((node, low.records[begin:]))
            begin = len(low.records)
    return lowered
