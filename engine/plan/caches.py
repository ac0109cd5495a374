"""Where each layer's KV cache goes: beside its layer, and of several slots all of a card's, or none."""

from hotcold.engine.graph.placed import CPU, GPU
from hotcold.engine.model.model import Model
from hotcold.engine.plan.budget import mib
from hotcold.engine.plan.division import Share
from hotcold.engine.plan.footprint import (
    Obstacle,
    dense_part,
    host_layer_kv_bytes,
    kv_positions,
    layer_kv_bytes,
)
from hotcold.engine.plan.plan import CacheEntry
from hotcold.engine.plan.spending import Left
from hotcold.engine.plan.wanted import Wanted


def caches_of(
    model: Model, how: Wanted, share: Share, n_batch: int, left: Left, of_all: Obstacle | None
) -> tuple[list[CacheEntry], Left]:
    """Each layer's KV cache, which is of use beside its layer alone.

    Args:
        of_all: what keeps all of them on the CPU.
    """
    caches, positions = [], kv_positions(model, how.n_ctx, n_batch)
    for i in share.layers:
        layer, n = model.layers[i], positions[i]
        n_bytes = layer_kv_bytes(model, n, how.kv_type, how.n_slots)
        on_host = how.n_slots * host_layer_kv_bytes(model, n, how.kv_type)
        held = f"{n} positions of layer {i}" + (
            f", a window of {window}" if (window := model.window(i)) else ""
        )
        obstacle = dense_part(layer, how.sparsity).obstacle or of_all
        if obstacle is None:
            left, obstacle = left.pay(n_bytes, f"the KV cache of layer {i}")
        if obstacle is None:
            caches.append(CacheEntry(i, n, n_bytes, GPU, held, share.number))
        else:
            caches.append(CacheEntry(i, n, on_host, CPU, obstacle.reason, share.number))
    return caches, left


def obstacle_to_slots(model: Model, how: Wanted, share: Share, n_batch: int, left: Left) -> Obstacle | None:
    """What keeps the caches of several slots from a card: as many would take the place of all that comes later.

    Weights are read whole for every token, caches as far as they are filled.
    """
    positions = kv_positions(model, how.n_ctx, n_batch)
    n_bytes = sum(
        layer_kv_bytes(model, positions[i], how.kv_type, how.n_slots)
        for i in share.layers
        if dense_part(model.layers[i], how.sparsity).obstacle is None
    )
    if how.n_slots == 1 or left.ended is not None or n_bytes <= left.n_bytes:
        return None
    room = f"{mib(n_bytes)}, and {mib(left.n_bytes)} are left"
    return Obstacle(f"the KV caches of {how.n_slots} slots do not fit: {room}")
