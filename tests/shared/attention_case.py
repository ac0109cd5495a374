"""A case of attention: random queries and a cache, what the kernels give for it, and what they should."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from kv_rows import rounded, whole
from numpy.typing import NDArray
from operands import Array, Get, Put, normal

from hotcold.kernels import ref
from hotcold.kernels.cuda.attention import Rounded, Scores, arrived_bytes, attention, attention_part
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.formats import attention_sums_bytes, n_parts
from hotcold.kernels.order_of_device_sums import AttentionOrder, device_attention
from hotcold.kernels.tensor_cores import in_tiles


def close(got: Array, want: Array) -> bool:
    return bool(np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max()))


def exp(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """expf of the C library, which the emulated device calls."""
    function = ctypes.CDLL("libm.so.6").expf
    function.argtypes, function.restype = [ctypes.c_float], ctypes.c_float
    return np.array([function(v) for v in x.ravel().tolist()], np.float32).reshape(x.shape)


@dataclass(frozen=True)
class Case:
    """Random queries of tokens that follow each other, after n_past, and a cache that holds NaN after them."""

    kv_type: str
    n_past: int
    n_tokens: int
    n_head: int
    n_head_kv: int
    asked_dim: int
    n_ctx: int
    window: int = 0
    has_sinks: bool = False
    scale: float | None = None
    of_batch: "Case | None" = None

    @property
    def head_dim(self) -> int:
        """Rounded up to whole blocks of the cache's type."""
        return whole(self.kv_type, self.asked_dim)

    @property
    def n_keys(self) -> int:
        return self.n_past + self.n_tokens

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.n_head, self.n_head_kv, self.head_dim, self.n_ctx

    @property
    def q(self) -> NDArray[np.float32]:
        if self.of_batch is not None:
            return self.of_batch.q[self.n_past - self.of_batch.n_past :][: self.n_tokens]
        return 2 * normal(self.n_tokens, self.n_head, self.head_dim)

    @property
    def positions(self) -> NDArray[np.int32]:
        return np.arange(self.n_past, self.n_keys, dtype="i4")

    @property
    def sinks(self) -> NDArray[np.float32]:
        return normal(self.n_head, seed=5)

    def scores(self, sinks: Any) -> Scores:
        """As the kernels take them."""
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        return Scores(sinks, int(self.has_sinks), self.window, scale)

    def rows(self, seed: int) -> Array:
        """Of every position up to the last, whether the cache still holds it or not."""
        n = max(self.n_ctx, self.n_keys)
        return normal(self.n_head_kv, n, self.head_dim, seed=seed)

    def cache(self, seed: int) -> Array:
        """As it is stored: position p in row p modulo n_ctx, NaN where none is."""
        if self.of_batch is not None:
            return self.of_batch.cache(seed)
        rows = np.full((self.n_head_kv, self.n_ctx, self.head_dim), np.nan, np.float32)
        held = np.arange(max(0, self.n_keys - self.n_ctx), self.n_keys)
        rows[:, held % self.n_ctx] = self.rows(seed)[:, held]
        return ref.cached(self.kv_type, rows)

    def held(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of every position as the cache gives them, [n_keys, n_head_kv, head_dim]."""
        keys, values = (rounded(self.kv_type, self.rows(seed)) for seed in (2, 3))
        return keys[:, : self.n_keys].swapaxes(0, 1), values[:, : self.n_keys].swapaxes(0, 1)

    def want(self) -> NDArray[np.float64]:
        sinks = self.sinks if self.has_sinks else None
        return ref.attention(self.q, *self.held(), self.n_past, self.window, sinks, self.scale)

    def in_order(self, by_lanes: bool = False) -> NDArray[np.float32]:
        """With the sums in the order of the device, and the exponential function of the emulated one.

        Args:
            by_lanes: as without tensor cores.
        """
        sinks, scale = self.sinks if self.has_sinks else None, self.scores(None).scale
        order = AttentionOrder(exp, in_tiles(self.kv_type, self.head_dim) and not by_lanes)
        return device_attention(self.q, *self.held(), self.n_past, self.window, sinks, scale, order)


def attend(device: Device, put: Put, get: Get, case: Case, split: bool, to: Rounded | None = None) -> Array:
    """By a block for all positions, or in parts; rounded too, if there is room."""
    q, positions = put(device, case.q), put(device, case.positions)
    keys, values = put(device, case.cache(2)), put(device, case.cache(3))
    y, parts = device.empty(case.q.shape, "f4"), n_parts(case.n_ctx) + bool(case.window)
    given, scores = (q, keys, values, positions), case.scores(put(device, case.sinks))
    rounded, rounds = to or Rounded.nowhere(y), to is not None
    if not split:
        work = attention(case.kv_type, case.n_tokens, *case.sizes[:3], case.n_keys, rounds)
        sizes = y, case.n_tokens, *case.sizes
        work.launch(device, (*given, *sizes, *scores.arguments, *rounded), device.compute)
        return get(device, y)
    partial = device.empty(attention_sums_bytes(1, case.n_head, case.head_dim, 256 * parts) // 4, "f4")
    arrived = put(device, np.zeros(arrived_bytes(case.kv_type, *case.sizes[:3]) // 4, "u4"))
    work = attention_part(case.kv_type, *case.sizes[:3], parts, case.n_keys, rounds)
    places = partial, arrived, y, *case.sizes, parts
    work.launch(device, (*given, *places, *scores.arguments, *rounded), device.compute)
    assert not get(device, arrived).any()
    return get(device, y)
