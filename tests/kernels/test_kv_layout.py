"""A cache's two layouts: what the CPU's kernel stores is what the device's rows become, and back."""

import numpy as np
import pytest

from hotcold.kernels import ref
from hotcold.kernels.cpu import kv_cache, program
from hotcold.kernels.formats import KV_TYPES, host_kv_block_bytes, kv_block
from hotcold.kernels.kv_layout import blocks_of_rows, fill_rows

HEADS = [(kv_type, n) for kv_type in KV_TYPES for n in (16, 20, 32, 96) if not n % kv_block(kv_type)]


@pytest.mark.parametrize(("kv_type", "head_dim"), HEADS)
@pytest.mark.parametrize(("n", "n_rows"), [(1, 3), (64, 64), (70, 100), (128, 130)])
def test_rows_become_what_the_host_stores(kv_type: str, head_dim: int, n: int, n_rows: int) -> None:
    shape, n_blocks = (2, n_rows, head_dim), -(-n // 64)
    numbers = np.random.default_rng(n).normal(size=(2, *shape)).astype(np.float32)
    block_bytes = host_kv_block_bytes(kv_type, head_dim)
    memory = program.aligned(2 * 2 * n_blocks * block_bytes)
    memory[:] = 0
    wanted = memory.reshape(2, 2, n_blocks, block_bytes)
    for head in range(2):
        keys, values = (wanted[half, head].ctypes.data for half in (0, 1))
        for position in range(n):
            key, value = (numbers[half, head, position].ctypes.data for half in (0, 1))
            kv_cache.store_head(
                int(KV_TYPES[kv_type]), key, value, head_dim, position, keys, values, block_bytes
            )
    stored = ref.cached(kv_type, numbers[0]).ravel(), ref.cached(kv_type, numbers[1]).ravel()
    blocks = blocks_of_rows(kv_type, shape, stored, n)
    assert np.array_equal(blocks, wanted)
    back = np.zeros_like(stored[0]), np.zeros_like(stored[1])
    fill_rows(kv_type, shape, back, n, blocks)
    for one, other in zip(stored, back, strict=True):
        held, found = (ref.cache_numbers(each, shape) for each in (one, other))
        assert np.array_equal(found[:, :n], held[:, :n]) and not found[:, n:].any()
