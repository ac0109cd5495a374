"""Where the numbers of a model lie while it runs: the host's side.

Weights stay in the mapped file. The KV cache and the arenas of intermediates are the only memory that
the host side allocates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.model.model import Model, Weight
from hotcold.engine.plan.footprint import layer_kv_bytes
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.cpu import program, rows

KV_TYPE_IDS = {"f16": rows.F16_ID, "f32": rows.F32_ID}


class HostStore:
    """Views of the map, one a weight; never copies."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._views: dict[str, NDArray[np.uint8]] = {}

    def rows(self, weight: Weight) -> NDArray[np.uint8]:
        """The weight's rows, uint8 [n_rows, bytes a row], read only."""
        if weight.name not in self._views:
            self._views[weight.name] = self._file.data(weight.name)
        return self._views[weight.name][weight.first_row : weight.first_row + weight.n_rows]

    def address(self, weight: Weight) -> int:
        """Address of the weight's first row."""
        return int(self.rows(weight).__array_interface__["data"][0])


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, [2, n_layer, n_head_kv, n_ctx, head_dim] of one float type.

    The memory becomes resident as positions are written.
    """

    n_layer: int
    n_head_kv: int
    n_ctx: int
    head_dim: int
    type_id: int
    memory: NDArray[np.uint8]

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer's keys, and of its values."""
        return self.memory.nbytes // (2 * self.n_layer)

    def keys(self, layer: int) -> int:
        """Address of a layer's keys."""
        return self.memory.ctypes.data + layer * self.layer_bytes

    def values(self, layer: int) -> int:
        """Address of a layer's values."""
        return self.memory.ctypes.data + (self.n_layer + layer) * self.layer_bytes


def allocate_kv_cache(model: Model, n_ctx: int, kv_type: str) -> KVCache:
    """An empty cache of n_ctx positions in "f16" or "f32"."""
    memory = program.aligned(model.n_layer * layer_kv_bytes(model, n_ctx, kv_type))
    return KVCache(model.n_layer, model.n_head_kv, n_ctx, model.head_dim, KV_TYPE_IDS[kv_type], memory)
