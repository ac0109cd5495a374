"""A KV cache's two layouts, and the way from one to the other: the same numbers, bit for bit.

The host has blocks of 64 positions (`cpu/kv_cache.py`), the device rows [n_head_kv, n_rows, head_dim] (`ref.cached`).
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.kernels.formats import HOST_KV_NUMBERS, HOST_KV_POSITIONS, host_kv_block_bytes, kv_block

Shape = tuple[int, int, int]
"""Of a layer's keys, and of its values, on the device: n_head_kv, n_rows, head_dim."""
Stored = tuple[NDArray[Any], NDArray[Any]]
"""A layer's keys and its values, each as `ref.cached` has them, in a row; what lies behind them is not looked at."""


def blocks_of_rows(kv_type: str, shape: Shape, stored: Stored, n: int) -> NDArray[np.uint8]:
    """The first n rows as the host has them: uint8 [2, n_head_kv, blocks, bytes], 0 where no row is."""
    (n_head_kv, _, head_dim), n_blocks = shape, -(-n // HOST_KV_POSITIONS)
    blocks = np.zeros((2, n_head_kv, n_blocks, host_kv_block_bytes(kv_type, head_dim)), np.uint8)
    for rows, places in _places(kv_type, shape, stored, blocks):
        whole = np.zeros((n_head_kv, n_blocks * HOST_KV_POSITIONS, rows.shape[2]), rows.dtype)
        whole[:, :n] = rows[:, :n]
        places[...] = whole.reshape(places.shape)
    return blocks


def fill_rows(kv_type: str, shape: Shape, stored: Stored, n: int, blocks: NDArray[np.uint8]) -> None:
    """Put what the host's blocks have of the first n rows into `stored`; see `blocks_of_rows`."""
    for rows, places in _places(kv_type, shape, stored, blocks):
        rows[:, :n] = places.reshape(shape[0], -1, rows.shape[2])[:, :n]


def _places(
    kv_type: str, shape: Shape, stored: Stored, blocks: NDArray[np.uint8]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Views of the same numbers in both: [n_head_kv, n_rows, n] and [n_head_kv, blocks, positions, n]."""
    whole = -(-shape[2] // HOST_KV_NUMBERS) * HOST_KV_NUMBERS
    for half, each in enumerate(stored):
        at = 0
        for rows in _parts(kv_type, shape, each):
            n = rows.shape[2] if kv_type == "q8_0" else whole
            n_bytes = HOST_KV_POSITIONS * n * rows.dtype.itemsize
            place = blocks[half, :, :, at : at + n_bytes].view(rows.dtype)
            if half == 0:  # keys: of each number a vector of positions
                place = place.reshape(*place.shape[:2], n, HOST_KV_POSITIONS).swapaxes(2, 3)
            else:
                place = place.reshape(*place.shape[:2], HOST_KV_POSITIONS, n)
            yield rows, place[..., : rows.shape[2]]
            at += n_bytes


def _parts(kv_type: str, shape: Shape, stored: NDArray[Any]) -> list[NDArray[Any]]:
    """What the device stores of keys, or of values, in the host's order: of q8_0 scales, then bytes."""
    n, block = math.prod(shape), kv_block(kv_type)
    if kv_type != "q8_0":
        return [stored[:n].reshape(shape)]
    scales = stored[n : n + n // block * 2].view(np.float16)
    return [scales.reshape(*shape[:2], shape[2] // block), stored[:n].reshape(shape)]
