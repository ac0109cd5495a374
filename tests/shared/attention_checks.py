"""The CPU's attention against its oracle: a KV cache as the kernels keep it, and what they read of it."""

import numpy as np
from numpy.typing import NDArray
from oracle_checks import (
    Array,
    close,
    run,
    vectors,
)

import hotcold.kernels.cpu  # noqa: F401  sets the folder of compiled code
from hotcold.kernels import formats, order_of_sums, ref
from hotcold.kernels.cpu import program, rows, simd, sizes


class Cache:
    """One layer's keys and values as KV_STORE leaves them, with NaN or the like wherever it writes nothing."""

    def __init__(self, kv_type: int, n_head_kv: int, head_dim: int, n_ctx: int) -> None:
        self.kv_type, self.n_head_kv, self.head_dim, self.n_ctx = kv_type, n_head_kv, head_dim, n_ctx
        name = {rows.F16_ID: "f16", rows.F32_ID: "f32", rows.Q8_0_ID: "q8_0"}[kv_type]
        self.block_bytes = formats.host_kv_block_bytes(name, head_dim)
        head_bytes = formats.host_kv_bytes(name, n_ctx, head_dim)
        self.half, self.n_positions = n_head_kv * head_bytes, -(-n_ctx // 64) * 64
        self.memory = program.aligned(2 * self.half)
        self.memory[:] = 0xFF
        self.where = {"w": self.memory.ctypes.data, "w1": self.memory.ctypes.data + self.half}
        self.where |= {"w_type": kv_type, "w_stride": self.block_bytes, "w1_stride": head_bytes}

    def store(self, k: Array, v: Array, n_past: int = 0) -> None:
        """Keys and values [n_tokens, n_head_kv, head_dim] at positions from n_past on."""
        k, v = (np.ascontiguousarray(a) for a in (k, v))
        record = {
            "code": program.KV_STORE,
            "chunks": 2,
            "n_head_kv": self.n_head_kv,
            "head_dim": self.head_dim,
            "n_positions": self.n_positions,
        }
        record |= {"x": k.ctypes.data, "z": v.ctypes.data, **self.where}
        record |= dict.fromkeys(("x_stride", "z_stride"), 4 * self.n_head_kv * self.head_dim)
        run([record], len(k), N_PAST=n_past)

    def held(self) -> tuple[Array, Array]:
        """The numbers in it, float32 [positions in whole blocks, n_head_kv, head_dim] each."""
        return self._numbers(self.memory[: self.half], True), self._numbers(self.memory[self.half :], False)

    def _numbers(self, memory: NDArray[np.uint8], is_keys: bool) -> Array:
        n, wide = self.head_dim, -(-self.head_dim // 16) * 16
        blocks = memory.reshape(self.n_head_kv, -1, self.block_bytes)
        shape = (*blocks.shape[:2], wide, 64) if is_keys else (*blocks.shape[:2], 64, wide)
        if self.kv_type == rows.Q8_0_ID:
            scales = blocks[..., : 4 * n].copy().view(np.float16).astype(np.float32)
            scales = scales.reshape(*shape[:2], n // 32, 64) if is_keys else scales.reshape(*shape[:3], -1)
            scales = np.repeat(scales, 32, 2 if is_keys else 3)
            numbers = blocks[..., 4 * n :].copy().view(np.int8).reshape(shape) * scales
        else:
            kind = np.float16 if self.kv_type == rows.F16_ID else np.float32
            numbers = blocks.copy().view(kind).reshape(shape).astype(np.float32)
        if is_keys:
            numbers = numbers.swapaxes(2, 3)
        return np.ascontiguousarray(numbers.reshape(self.n_head_kv, -1, wide)[..., :n].swapaxes(0, 1))

    def attend(
        self, q: Array, n_past: int, n_threads: int = 2, window: int = 0, sinks: Array | None = None
    ) -> Array:
        """ATTENTION, and the join of its parts, of queries [n_tokens, n_head, head_dim]."""
        n_tokens, n_head, head_dim = q.shape
        q, y = np.ascontiguousarray(q), np.full(q.shape, np.nan, np.float32)
        head_sizes = (n_tokens, n_head, self.n_head_kv, head_dim, self.n_ctx)
        partial = program.aligned(64 + sizes.attention_partial_bytes(n_tokens, n_head, head_dim, self.n_ctx))
        partial[:] = 0xFF
        record = {"code": program.ATTENTION, "chunks": sizes.attention_chunks(*head_sizes), "n_head": n_head}
        record |= {"n_head_kv": self.n_head_kv, "head_dim": head_dim, "n_positions": self.n_positions}
        record |= {"scale": head_dim**-0.5, **self.where}
        record |= {"x": q.ctypes.data, "y": y.ctypes.data, "scratch": partial.ctypes.data, "k": window}
        record |= dict.fromkeys(("x_stride", "y_stride"), 4 * n_head * head_dim)
        if sinks is not None:
            record["z"] = sinks.ctypes.data
        join = record | {"code": program.ATTENTION_JOIN, "chunks": n_head}
        run([record, join], n_tokens, n_threads, N_PAST=n_past)
        return y


def wanted_bits(
    q: Array, k: Array, v: Array, n_past: int, window: int = 0, sinks: Array | None = None
) -> Array:
    """`order_of_sums.attention_in_order` as this CPU level adds."""
    fma = order_of_sums.fma if "fma" in simd.target_features() else order_of_sums.mul_add
    return order_of_sums.attention_in_order(q, k, v, n_past, window, sinks, fma)


def check_attention(
    kv_type: int, heads: tuple[int, int], head_dim: int, n_past: int, n_tokens: int, window: int = 0
) -> None:
    """Cache and attention: what is held, the distance to the oracle, and the bits of its order of sums."""
    n_head, n_head_kv = heads
    n_keys = n_past + n_tokens
    cache = Cache(kv_type, n_head_kv, head_dim, n_keys + 3)
    given = [vectors(n_keys, n_head_kv * head_dim, s).reshape(n_keys, n_head_kv, head_dim) for s in (4, 5)]
    cache.store(given[0], given[1])
    held = [numbers[:n_keys] for numbers in cache.held()]
    for numbers, x in zip(held, given, strict=True):
        if kv_type == rows.Q8_0_ID:
            bytes_, scales = ref.quantise(x)
            scales = scales.astype(np.float16).astype(np.float32)
            x = (bytes_.reshape(*scales.shape, 32) * scales[..., None]).reshape(x.shape)
        elif kv_type == rows.F16_ID:
            x = x.astype(np.float16).astype(np.float32)
        assert np.array_equal(numbers, x)
    q = vectors(n_tokens, n_head * head_dim, 6).reshape(n_tokens, n_head, head_dim)
    sinks = vectors(1, n_head, 7)[0] if window else None
    y = cache.attend(q, n_past, window=window, sinks=sinks)
    close(y, ref.attention(q, held[0], held[1], n_past, window, sinks), "attention")
    assert np.array_equal(y, wanted_bits(q, held[0], held[1], n_past, window, sinks)), "attention's bits"


def check_halves() -> None:
    """All 65536 halfs widen as NumPy does; rounding agrees near every half and at the extremes."""
    every = np.arange(65536, dtype=np.uint16)
    data, out = every.copy(), np.zeros(65536, np.float32)
    rows.widen_row(rows.F16_ID, data.ctypes.data, 65536, out.ctypes.data)
    wanted = every.view(np.float16).astype(np.float32)
    assert np.array_equal(out, wanted, equal_nan=True)
    finite = wanted[np.isfinite(wanted)]
    near = np.concatenate([np.nextafter(finite, np.float32(s)) for s in (-np.inf, np.inf)])
    between = (finite + np.roll(finite, 1)) / 2
    tail = np.array([65519.9, 65520, 1e10, -1e10, np.inf, -np.inf, 1e-8, 2.0**-25, np.nan], np.float32)
    x = np.concatenate([finite, near, between, tail]).astype(np.float32)
    x = np.resize(x, (-(-len(x) // 1024), 1, 1024))
    cache = Cache(rows.F16_ID, 1, 1024, len(x))
    cache.store(x, x)
    with np.errstate(over="ignore"):
        wanted = x.astype(np.float16).astype(np.float32)
    for held in cache.held():
        assert np.array_equal(held[: len(x)], wanted, equal_nan=True)
