"""Where the numbers of a model lie while it runs: the host's side.

Weights stay in the mapped file. The KV cache and the arenas of intermediates are the only memory that
the host side allocates.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.model.model import Weight
from hotcold.engine.plan.footprint import host_layer_kv_bytes
from hotcold.engine.plan.plan import Plan
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.cpu import program
from hotcold.kernels.formats import HOST_KV_POSITIONS, KV_TYPES, host_kv_block_bytes, host_kv_bytes


class HostStore:
    """Views of the map, one a weight; never copies."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._views: dict[str, NDArray[np.uint8]] = {}
        self._experts: dict[tuple[str, bool], NDArray[np.int64]] = {}

    def rows(self, weight: Weight) -> NDArray[np.uint8]:
        """The weight's rows, uint8 [n_rows, bytes a row], read only."""
        if weight.name not in self._views:
            self._views[weight.name] = self._file.data(weight.name)
        whole = self._views[weight.name]
        if weight.row_bytes == whole.shape[1]:
            return whole[weight.first_row : weight.first_row + weight.n_rows]
        first = weight.first_row * weight.row_bytes  # a part with rows of another length
        return whole.reshape(-1)[first : first + weight.n_bytes].reshape(weight.n_rows, -1)

    def expert_rows(self, weight: Weight, e: int) -> NDArray[np.uint8]:
        """One expert's rows of a weight that has those of all, uint8 [n_rows, bytes a row], read only."""
        if weight.stacked:
            return self._file.data(weight.stacked[e])
        n = weight.n_rows // weight.ne[-1]
        return self.rows(weight)[e * n : (e + 1) * n]

    def address(self, weight: Weight) -> int:
        """Address of the weight's first row."""
        return self._first_byte(self.rows(weight))

    def experts(self, weight: Weight, some: NDArray[np.int64] | None = None) -> int:
        """Address of the addresses of each expert's first row, int64 [n_expert]; 0 for others than some, if given."""
        key = weight.name, some is None
        if key not in self._experts:
            addresses = np.array(self._expert_addresses(weight), np.int64)
            if some is not None:
                addresses[np.setdiff1d(np.arange(addresses.size), some)] = 0
            self._experts[key] = addresses
        return int(self._experts[key].ctypes.data)

    def _expert_addresses(self, weight: Weight) -> list[int]:
        if weight.stacked:
            return [self._first_byte(self._file.data(name)) for name in weight.stacked]
        n_expert, base = weight.ne[2], self.address(weight)
        return [base + e * (weight.n_bytes // n_expert) for e in range(n_expert)]

    @staticmethod
    def _first_byte(rows: NDArray[np.uint8]) -> int:
        return int(rows.__array_interface__["data"][0])


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, [2, n_head_kv] of each, every head laid out as `kv_cache` says.

    Each of several sequences has such caches, one behind the other.

    The memory becomes resident as positions are written.

    Attributes:
        n_positions: that each layer holds.
        starts: where each layer's memory begins, and the end, in the first sequence's caches.
    """

    n_ctx: int
    n_head_kv: int
    head_dim: int
    kv_type: str
    n_positions: tuple[int, ...]
    starts: tuple[int, ...]
    memory: NDArray[np.uint8]

    @property
    def slot_bytes(self) -> int:
        """From one sequence's caches to the next one's."""
        return self.starts[-1]

    def fields(self, layer: int) -> dict[str, int]:
        """Record fields that say where a layer's keys and values lie, those of the first sequence."""
        first, last = self.starts[layer : layer + 2]
        keys = self.memory.ctypes.data + first
        return {
            "w": keys,
            "w1": keys + (last - first) // 2,
            "w_type": int(KV_TYPES[self.kv_type]),
            "w_stride": host_kv_block_bytes(self.kv_type, self.head_dim),
            "w1_stride": host_kv_bytes(self.kv_type, self.n_positions[layer], self.head_dim),
            "n_positions": -(-self.n_positions[layer] // HOST_KV_POSITIONS) * HOST_KV_POSITIONS,
        }

    def blocks(self, n: int, slot: int = 0) -> list[NDArray[np.uint8]]:
        """What a slot's caches hold of the first n positions, a view a layer: uint8 [2, n_head_kv, blocks, bytes]."""
        found = []
        for layer, n_positions in enumerate(self.n_positions):
            first, last = (slot * self.slot_bytes + start for start in self.starts[layer : layer + 2])
            shape = (2, self.n_head_kv, -1, host_kv_block_bytes(self.kv_type, self.head_dim))
            held = -(-min(n, n_positions) // HOST_KV_POSITIONS)
            found.append(self.memory[first:last].reshape(shape)[:, :, :held])
        return found

    def overflow(self, n_keys: int | None = None, slot: int = 0) -> int | None:
        """The first layer with a key or value that "f16" or "q8_0" cannot hold; None without.

        Args:
            n_keys: keys of so many positions of one slot alone; None: keys and values of all.
        """
        if self.kv_type == "f32":
            return None
        slots = range(self.memory.size // self.slot_bytes) if n_keys is None else (slot,)

        def halves(layer: int) -> list[NDArray[Any]]:
            return [half for each in slots for half in self._halves(layer, each, n_keys)]

        return first_infinite(range(len(self.n_positions)), halves)

    def _halves(self, layer: int, slot: int, n_keys: int | None) -> list[NDArray[Any]]:
        """What of a layer's memory is float16: the numbers, or in q8_0 the scales in front of them."""
        first, last = (slot * self.slot_bytes + start for start in self.starts[layer : layer + 2])
        shape = (2, self.n_head_kv, -1, host_kv_block_bytes(self.kv_type, self.head_dim))
        blocks, n = self.memory[first:last].reshape(shape), HOST_KV_POSITIONS * self.head_dim
        if self.kv_type == "q8_0":
            n //= 32
            blocks = blocks[..., : 2 * n]
        if n_keys is None:
            return [blocks]
        keys = blocks[0, ..., : 2 * n].view(np.uint16)
        by_number = keys.reshape(*keys.shape[:-1], -1, HOST_KV_POSITIONS)
        whole, rest = divmod(n_keys, HOST_KV_POSITIONS)
        return [by_number[:, :whole], by_number[:, whole : whole + 1, :, :rest]]


def first_infinite(
    layers: Iterable[int], half_floats: Callable[[int], Iterable[NDArray[np.generic]]]
) -> int | None:
    """The first layer with an infinity, which is what a number above 65504 becomes; None without.

    Args:
        half_floats: of a layer, arrays of float16 as whatever bytes they are.
    """
    for layer in layers:
        for each in half_floats(layer):
            if ((np.ascontiguousarray(each).view(np.uint16) & 0x7FFF) == 0x7C00).any():
                return layer
    return None


def allocate_kv_cache(plan: Plan) -> KVCache:
    """An empty cache of all layers, wherever the plan has them."""
    model, held = plan.model, tuple(cache.n_positions for cache in plan.caches)
    sizes = (host_layer_kv_bytes(model, n, plan.kv_type) for n in held)
    starts = tuple(accumulate(sizes, initial=0))
    memory = program.aligned(starts[-1] * plan.n_slots)
    return KVCache(plan.n_ctx, model.n_head_kv, model.head_dim, plan.kv_type, held, starts, memory)
