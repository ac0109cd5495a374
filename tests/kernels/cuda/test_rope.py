"""RoPE with the KV store, against its oracle."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from kv_rows import rounded, whole
from operands import Array, Get, Put, normal

from hotcold.kernels import ref
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.rope import rope_kv_store
from hotcold.kernels.formats import KV_TYPES, cos_sin_table, kv_block

pytestmark = pytest.mark.pairwise


@dataclass(frozen=True)
class Stored:
    """What `rope_kv_store` is given, and what it makes of it."""

    q: Array
    k: Array
    v: Array
    q_out: Array
    keys: Array
    values: Array


def store(
    device: Device,
    put: Put,
    get: Get,
    kv_type: str,
    positions: Sequence[int],
    sizes: tuple[int, int, int, int],
    interleaved: bool,
    in_place: bool,
    n_rows: int = 4096,
) -> Stored:
    """Into a cache of so many positions that holds NaN."""
    (n_head, n_head_kv, head_dim, n_rot), n_tokens, n_ctx = sizes, len(positions), 4096
    q, k, v = (
        normal(n_tokens, n, head_dim, seed=n + i) for i, n in enumerate((n_head, n_head_kv, n_head_kv))
    )
    table = cos_sin_table(n_ctx, ref.rope_frequencies(n_rot, 10000.0)) if n_rot else np.zeros((1, 2), "f4")
    shape = n_head_kv, n_rows, head_dim
    empty = ref.cached(kv_type, np.full(shape, np.nan, np.float32))
    given, keys, values = put(device, q), put(device, empty), put(device, empty)
    q_out = given if in_place else device.empty(q.shape, "f4")
    arguments = (
        *(given, put(device, k), put(device, v), put(device, table), put(device, np.array(positions, "i4"))),
        *(
            q_out,
            keys,
            values,
            n_tokens,
            n_head,
            n_head_kv,
            head_dim,
            n_rot // 2,
            int(interleaved),
            n_rows,
            1,
        ),
    )
    work = rope_kv_store(kv_type, n_tokens, n_head, n_head_kv, head_dim, n_rot)
    work.launch(device, arguments, device.compute)
    caches = (ref.cache_numbers(get(device, buffer), shape) for buffer in (keys, values))
    return Stored(q, k, v, get(device, q_out), *caches)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 2, 2), (5, 1, 48, 32), (4, 2, 64, 64), (71, 1, 12, 12), (3, 3, 7, 0)]
)
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_rope_kv_store(
    device: Device,
    put: Put,
    get: Get,
    kv_type: str,
    sizes: tuple[int, int, int, int],
    interleaved: bool,
    in_place: bool,
) -> None:
    positions, n_rot, head_dim = [0, 7, 4095], sizes[3], whole(kv_type, sizes[2])
    out = store(device, put, get, kv_type, positions, (*sizes[:2], head_dim, n_rot), interleaved, in_place)
    frequencies = ref.rope_frequencies(n_rot, 10000.0) if n_rot else np.empty(0)
    q, k = (ref.rope(x, np.array(positions), frequencies, interleaved) for x in (out.q, out.k))
    # half a unit of the last place; of a block's scale half a step, and the rounding of its scale
    relative, step = {"f32": (0.0, 0.0), "f16": (2.0**-11, 0.0), "q8_0": (2.0**-11, 0.5 / 127)}[kv_type]
    keys, values = (cache[:, positions].swapaxes(0, 1) for cache in (out.keys, out.values))
    blocks = np.abs(k).reshape(-1, kv_block(kv_type)).max(1, keepdims=True)
    largest = np.broadcast_to(blocks, (len(blocks), kv_block(kv_type))).reshape(k.shape)
    assert (np.abs(out.q_out - q) <= 1e-6 * np.abs(q).max()).all()
    assert (np.abs(keys - k) <= 1e-6 * np.abs(k).max() + relative * np.abs(k) + step * largest).all()
    assert (values == rounded(kv_type, out.v)).all()
    assert (out.q_out[..., n_rot:] == out.q[..., n_rot:]).all()
    if kv_type != "q8_0":  # whose blocks share their scale with numbers that turn
        assert (keys[..., n_rot:] == rounded(kv_type, out.k)[..., n_rot:]).all()
    others = np.setdiff1d(np.arange(4096), positions)
    assert np.isnan(out.keys[:, others]).all() and np.isnan(out.values[:, others]).all()


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_positions_beyond_the_rows_go_round(device: Device, put: Put, get: Get, kv_type: str) -> None:
    """A window's cache: position p lies in row p modulo the rows."""
    head_dim = whole(kv_type, 12)
    out = store(device, put, get, kv_type, [39, 40, 43], (2, 1, head_dim, 0), False, True, n_rows=10)
    assert (out.keys[:, [9, 0, 3]].swapaxes(0, 1) == rounded(kv_type, out.k)).all()
    assert (out.values[:, [9, 0, 3]].swapaxes(0, 1) == rounded(kv_type, out.v)).all()
    others = np.setdiff1d(np.arange(10), [9, 0, 3])
    assert np.isnan(out.keys[:, others]).all() and np.isnan(out.values[:, others]).all()
