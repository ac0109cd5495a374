"""From the device's nodes to prepared launches.

One short function a node kind. It may take nodes that follow: a product or a merge adds the residual
itself, the matrices of q, k and v, the rotations and the store to the cache are one launch.
What was fused has no bytes of its own on the device, but has its place in the plan.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hotcold.engine.device import expert_lowering as experts
from hotcold.engine.device import ffn_lowering as ffn
from hotcold.engine.device import norm_lowering as norms
from hotcold.engine.device import qkv_lowering as qkv
from hotcold.engine.device.records import DeviceLowering
from hotcold.engine.device.steps import Launches
from hotcold.engine.graph.graph import Node, layer_of, tensors_of
from hotcold.errors import HotcoldError
from hotcold.kernels.cuda import attention as attention_sizes
from hotcold.kernels.cuda.add import HAS_OTHER, HAS_RESIDUAL
from hotcold.kernels.cuda.add import add as add_work
from hotcold.kernels.cuda.add import merge as merge_work
from hotcold.kernels.cuda.attention import Rounded, Scores, arrived_bytes
from hotcold.kernels.cuda.matvec import HAS_BIAS
from hotcold.kernels.cuda.scale import scale as scale_work
from hotcold.kernels.formats import is_split

Nodes = Sequence[Node]


def mul_mat(low: DeviceLowering, nodes: Nodes) -> int:
    if qkv.is_triple(low, nodes):
        return qkv.three(low, nodes)
    node = nodes[0]
    weight, bias = node.weight("weight"), node.find_weight("bias")
    residual, output, taken = low.residual(nodes)
    flags = HAS_BIAS * (bias is not None) | HAS_RESIDUAL * (residual is not None)
    y = low.vector(output)
    low.product(
        low.store.matrix(weight),
        low.input_of(node, weight),
        y,
        flags=flags,
        bias=low.store.vector(bias) if bias is not None else y,
        residual=low.vector(residual) if residual is not None else y,
    )
    return taken


def attention(low: DeviceLowering, nodes: Nodes) -> int:
    """And the rounding of its answer, where only weights read that."""
    node, model, kv_type = nodes[0], low.model, low.plan.kv_type
    q, y, sinks = low.vector(node.tensor("q")), low.vector(node.output), node.find_weight("sinks")
    scores = Scores(
        q if sinks is None else low.store.vector(sinks),
        int(sinks is not None),
        node.attributes["window"],
        node.attributes["scale"],
        low.sequences,
    )
    rounded, taken = Rounded.nowhere(y), 1
    if model.head_dim % 32 == 0 and len(nodes) > 1 and nodes[1].op == "pack" and low.is_alone(nodes[1], node):
        rounded, taken = Rounded.to(low.packed(node.output.shape[1])), 2
    keys, values = low.store.cache(layer_of(node))
    n_rows = low.plan.caches[layer_of(node)].n_positions
    heads, rounds = (model.n_head, model.n_head_kv, model.head_dim), bool(rounded.there)
    given, of_sequences = (q, keys, values, low.places()), low.sequences.n_apart

    def launch(parts: int) -> None:
        if parts == 1:
            work = attention_sizes.attention(kv_type, low.n_tokens, *heads, n_rows, rounds, low.sequences)
            low.launch(work, *given, y, low.n_tokens, *heads, n_rows, *scores.arguments, *rounded)
            return
        sums = of_sequences * model.n_head * parts * (model.head_dim + 2)
        partial = low.area("attention", sums, np.float32)
        arrived = low.area("arrived", of_sequences * arrived_bytes(kv_type, *heads) // 4, np.uint32)
        work = attention_sizes.attention_part(kv_type, *heads, parts, n_rows, rounds, low.sequences)
        low.launch(work, *given, partial, arrived, y, *heads, n_rows, parts, *scores.arguments, *rounded)

    if is_split(low.n_tokens // of_sequences, low.plan.n_ctx):
        low.launch_by_parts(n_rows, launch)
    else:
        launch(1)
    return taken


def scale(low: DeviceLowering, nodes: Nodes) -> int:
    x, n = nodes[0].tensor("x"), low.n_tokens * nodes[0].output.shape[1]
    low.launch(scale_work(n), low.vector(x), low.vector(nodes[0].output), n, nodes[0].attributes["factor"])
    return 1


def add(low: DeviceLowering, nodes: Nodes) -> int:
    a, b = (low.vector(nodes[0].tensor(role)) for role in "ab")
    n = low.n_tokens * nodes[0].output.shape[1]
    low.launch(add_work(n), a, b, low.vector(nodes[0].output), n)
    return 1


def merge(low: DeviceLowering, nodes: Nodes) -> int:
    """Both parts' sum; the hot one's groups are added up with it where nobody has done so.

    What the CPU has made of its part is read over the bus.
    """
    hot, cold = tensors_of(nodes[0])
    residual, output, taken = low.residual(nodes)
    y, added = low.vector(output), low.vector(residual) if residual is not None else None
    if hot.name in low.unsummed:
        low.sum_groups(low.unsummed.pop(hot.name), y, low.addend(cold), added)
        return taken
    flags, n = HAS_OTHER | HAS_RESIDUAL * (residual is not None), output.shape[1]
    low.launch(
        merge_work(low.n_tokens, n, flags), low.vector(hot), y, low.addend(cold), added or y, y, n, flags
    )
    return taken


LOWER: dict[str, Callable[[DeviceLowering, Nodes], int]] = {
    "rms_norm": norms.norm,
    "rms_norm_heads": norms.rms_norm_heads,
    "layer_norm": norms.norm,
    "quantise": norms.quantise,
    "pack": norms.pack,
    "mul_mat": mul_mat,
    "rope": qkv.kv_store,
    "kv_store": qkv.kv_store,
    "attention": attention,
    "scale": scale,
    "add": add,
    "merge": merge,
    "predictor": norms.predictor,
    "dense_gated_ffn": ffn.gated,
    "sparse_gated_ffn": ffn.gated,
    "dense_ffn": ffn.ungated,
    "sparse_ffn": ffn.ungated,
    "top_k": experts.top_k,
    "expert_ffn": experts.expert_ffn,
    "mul_sigmoid": experts.mul_sigmoid,
}


def lower(nodes: Nodes, low: DeviceLowering) -> list[Launches]:
    """Nodes in order, in groups that were fused, with their launches.

    Raises:
        HotcoldError: an op that has no kernel.
        DeviceError: a launch that the device refuses.
    """
    groups = []
    while nodes:
        if nodes[0].op not in LOWER:
            raise HotcoldError(
                f"op of node {nodes[0].name}",
                nodes[0].op,
                f"kernels: {', '.join(LOWER)}",
                "keep it on the CPU",
            )
        taken = LOWER[nodes[0].op](low, nodes)
        listed = tuple(node for node in nodes[:taken] if node.op != "pack")
        if listed:  # a `pack` alone belongs to the first node that reads it
            groups.append(low.step(listed))
        nodes = nodes[taken:]
    return groups
