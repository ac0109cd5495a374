"""From what stands before attention to launches: the products for q, k and v, their rotations, the store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotcold.engine.device.records import DeviceLowering
from hotcold.engine.graph.graph import Node, Tensor, layer_of
from hotcold.errors import HotcoldError
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.matvec import HAS_BIAS
from hotcold.kernels.cuda.matvec3 import CACHES, Rooms, matvec3
from hotcold.kernels.cuda.rope import rope_kv_store
from hotcold.kernels.weight_table import share_an_input

Nodes = Sequence[Node]


@dataclass(frozen=True)
class _Stored:
    """Rotations of q and k, if there are any, and the store of k and v.

    Attributes:
        taken: how many nodes these are.
        n_head: heads of q, 0 without a rotation.
        q_out: what becomes of q; k where no q is touched.
        rotation: the attributes of q's.
    """

    node: Node
    taken: int
    q: Tensor
    k: Tensor
    v: Tensor
    n_head: int
    q_out: Tensor
    rotation: Mapping[str, Any]

    def places(self, low: DeviceLowering) -> tuple[Any, ...]:
        """cos_sin, positions, keys and values."""
        return low.cos_sin(self.rotation["table"]), low.places(), *low.store.cache(layer_of(self.node))

    def sizes(self, low: DeviceLowering) -> tuple[int, int, int, int, int]:
        """head_dim, pairs of a head, whether they are interleaved, rows of the cache, slots."""
        n_rows, half = low.plan.caches[layer_of(self.node)].n_positions, self.rotation["n_rot"] // 2
        return low.model.head_dim, half, int(self.rotation["interleaved"]), n_rows, low.plan.n_slots


def _stored(nodes: Nodes) -> _Stored | None:
    """The store that these nodes begin with; None if it is something else."""
    rotations = [node for node in nodes[:2] if node.op == "rope"]
    store = next(iter(nodes[len(rotations) :]), None)
    if store is None or store.op != "kv_store" or len(rotations) not in (0, 2):
        return None
    v = store.tensor("v")
    if not rotations:  # no head of q, for which k stands in, is touched
        k = store.tensor("k")
        return _Stored(store, 1, k, k, v, 0, k, {"n_rot": 0, "interleaved": False, "table": 0})
    q, k = (node.tensor("x") for node in rotations)
    of_q = rotations[0].attributes
    return _Stored(store, 3, q, k, v, of_q["n_head"], rotations[0].output, of_q)


def is_triple(low: DeviceLowering, nodes: Nodes) -> bool:
    """Whether three products of one vector follow each other, which one launch can do for one token."""
    three = nodes[:3]
    if low.n_tokens > 1 or len(three) < 3 or {node.op for node in three} != {"mul_mat"}:
        return False
    types = [node.weight("weight").type for node in three]
    same = {node.tensor("x").name for node in three}, {node.find_weight("bias") is None for node in three}
    return share_an_input(types) and all(len(values) == 1 for values in same)


def three(low: DeviceLowering, nodes: Nodes) -> int:
    """Three products of one vector, and the store of two of them behind it where a launch can do all that."""
    products, stored = nodes[:3], _stored_with(low, nodes)
    outputs = [low.vector(node.output) for node in products]
    rooms, taken = Rooms.none(outputs[0]), 3
    if stored is not None:
        rooms, taken = _rooms(low, stored), 3 + stored.taken
        if stored.n_head:
            outputs[0] = low.vector(stored.q_out)
    _launch(low, products, outputs, rooms)
    return taken


def _stored_with(low: DeviceLowering, nodes: Nodes) -> _Stored | None:
    """What follows three products and is stored as they are made: nobody else reads k and v, or q as it was."""
    stored, kv_type = _stored(nodes[3:]), low.plan.kv_type
    if stored is None or kv_type not in CACHES or low.model.head_dim % 2:
        return None
    q, k, v = (node.output for node in nodes[:3])
    made = ((stored.q, q), (stored.k, k), (stored.v, v))[not stored.n_head :]
    is_theirs = all(a == b and low.readers[b.name] == 1 for a, b in made)
    return stored if is_theirs else None


def _rooms(low: DeviceLowering, stored: _Stored) -> Rooms:
    cos_sin, positions, *caches = stored.places(low)
    keys, values = (each.view(0, each.n_bytes, np.uint8) for each in caches)
    given = cos_sin, positions, keys, values, *stored.sizes(low)
    return Rooms(low.plan.kv_type, stored.rotation["n_rot"], given)


def _launch(low: DeviceLowering, products: Nodes, outputs: Sequence[Buffer], rooms: Rooms) -> None:
    matrices = [low.store.matrix(node.weight("weight")) for node in products]
    a, b, c = (matrix.weight.type for matrix in matrices)
    found = [node.find_weight("bias") for node in products]
    biases = [low.store.vector(bias) for bias in found if bias is not None]
    n_rows, n = tuple(matrix.n_rows for matrix in matrices), matrices[0].n
    planes = [plane for matrix in matrices for plane in matrix.planes]
    low.launch(
        matvec3((a, b, c), 1, (n_rows[0], n_rows[1], n_rows[2]), n),
        *planes,
        *low.input_of(products[0], matrices[0].weight),
        *(biases or outputs),
        *outputs,
        *n_rows,
        n,
        HAS_BIAS * bool(biases),
        *rooms.arguments,
    )


def kv_store(low: DeviceLowering, nodes: Nodes) -> int:
    """The store of k and v, with the rotations of q and k before it, which follow each other in every graph."""
    stored, model = _stored(nodes), low.model
    if stored is None:
        raise HotcoldError("node", nodes[0].name, "rope of q, rope of k and kv_store in a row")
    cos_sin, positions, keys, values = stored.places(low)
    head_dim, half, *rest = stored.sizes(low)
    sizes = low.n_tokens, stored.n_head, model.n_head_kv, head_dim
    low.launch(
        rope_kv_store(low.plan.kv_type, *sizes, 2 * half, low.plan.n_slots),
        *(low.vector(tensor) for tensor in (stored.q, stored.k, stored.v)),
        cos_sin,
        positions,
        low.vector(stored.q_out),
        keys,
        values,
        *sizes,
        half,
        *rest,
    )
    return stored.taken
