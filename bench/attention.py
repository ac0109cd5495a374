"""Attention over a cache of random numbers, for bench/ops.py, and the peak of multiply-adds."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from hotcold.kernels.cpu import program, rows, simd, sizes
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.team import Program, Team
from hotcold.kernels.formats import HOST_KV_POSITIONS, host_kv_block_bytes, host_kv_bytes

TYPE_IDS = {"f16": rows.F16_ID, "f32": rows.F32_ID, "q8_0": rows.Q8_0_ID}
SHAPES = ((9, 3, 64), (32, 8, 128), (8, 8, 64), (8, 1, 128), (24, 8, 96))  # query heads, heads, numbers
RING = 192 << 20  # bytes of all layers' keys and values, beyond any cache
CHUNK = 512
HeadShape = tuple[int, int, int]


class Layers:
    """Attention of n_tokens that end at n_keys positions, in as many layers as n_bytes hold; at least one."""

    def __init__(self, kv_type: str, shape: HeadShape, n_tokens: int, n_keys: int, n_bytes: int) -> None:
        n_head, n_head_kv, head_dim = shape
        head = host_kv_bytes(kv_type, n_keys, head_dim)
        self.n_layer = max(1, n_bytes // (2 * n_head_kv * head))
        self.memory = self._numbers(kv_type, 2 * self.n_layer * n_head_kv * head)
        self.q, self.y = (
            program.aligned(4 * n_tokens * n_head * head_dim).view(np.float32) for _ in range(2)
        )
        self.q[:] = np.random.default_rng(0).standard_normal(self.q.size)
        self.partial = program.aligned(64 + sizes.attention_partial_bytes(n_tokens, n_head, head_dim, n_keys))
        fields = {
            "n_head": n_head,
            "n_head_kv": n_head_kv,
            "head_dim": head_dim,
            "n_positions": -(-n_keys // HOST_KV_POSITIONS) * HOST_KV_POSITIONS,
            "scale": head_dim**-0.5,
            "x": self.q.ctypes.data,
            "y": self.y.ctypes.data,
            "x_stride": 4 * n_head * head_dim,
            "y_stride": 4 * n_head * head_dim,
            "scratch": self.partial.ctypes.data,
            "w_type": TYPE_IDS[kv_type],
            "w_stride": host_kv_block_bytes(kv_type, head_dim),
            "w1_stride": head,
        }
        chunks = sizes.attention_chunks(n_tokens, n_head, n_head_kv, head_dim, n_keys)
        ops = []
        for layer in range(self.n_layer):
            keys = self.memory.ctypes.data + 2 * layer * n_head_kv * head
            both = {"w": keys, "w1": keys + n_head_kv * head}
            ops.append({"code": program.ATTENTION, "chunks": chunks, **fields, **both})
            ops.append({"code": program.ATTENTION_JOIN, "chunks": n_head, **fields, **both})
        self.job = Program(ops)
        self.job.run[program.N_TOKENS], self.job.run[program.N_PAST] = n_tokens, n_keys - n_tokens

    @staticmethod
    def _numbers(kv_type: str, n_bytes: int) -> NDArray[np.uint8]:
        memory = program.aligned(n_bytes)
        if kv_type == "q8_0":
            memory[:] = 0x11  # scales of 0.0006; the numbers do not matter
        else:
            kind = np.dtype("f2" if kv_type == "f16" else "f4")
            some = np.random.default_rng(0).standard_normal(1 << 16).astype(kind)
            memory.view(kind)[:] = np.resize(some, n_bytes // kind.itemsize)
        return memory

    def run(self, team: Team) -> int:
        """Once through all layers; the bytes of keys and values."""
        team.walk(self.job)
        return self.memory.size


def gflop(shape: HeadShape, n_tokens: int, n_keys: int) -> float:
    """Both products of the pairs of query and key that the causal mask leaves."""
    n_head, _, head_dim = shape
    return 4e-9 * n_head * head_dim * sum(n_keys - n_tokens + t + 1 for t in range(n_tokens))


_CHAINS = (
    12 if "avx512f" in simd.target_features() else 6
)  # vectors of 16 floats; more would leave the registers


@simd.operation(types.void, simd.address, types.int64)
def _multiply_adds(b: simd.Builder, at: simd.Value, n: simd.Value) -> None:
    """Chains of n multiply-adds of 16 floats each."""
    kind = simd.VT(simd.F32, 16)
    cells = [cgutils.alloca_once_value(b, simd.load(b, at, kind, 64 * i)) for i in range(_CHAINS)]
    x = simd.load(b, at, kind, 64 * _CHAINS)
    with cgutils.for_range(b, n):
        for cell in cells:
            b.store(simd.fma(b, x, b.load(cell), x), cell)
    for i, cell in enumerate(cells):
        simd.store(b, b.load(cell), at, 64 * i)


@compiled
def _multiply(at: int, n: int) -> None:
    _multiply_adds(at, n)


class Peak:
    """Multiply-adds of numbers in registers alone, on n threads."""

    STEPS = 1 << 22

    def __init__(self, n_threads: int) -> None:
        self.pool = ThreadPoolExecutor(n_threads)
        self.memory = [program.aligned(64 * (_CHAINS + 1)) for _ in range(n_threads)]
        for memory in self.memory:
            memory.view(np.float32)[:] = 0.5

    def run(self) -> float:
        """One run; its GFLOP."""
        if len(self.memory) == 1:  # this very thread, whose processor time may be looked at
            _multiply(self.memory[0].ctypes.data, self.STEPS)
        else:
            list(self.pool.map(lambda memory: _multiply(memory.ctypes.data, self.STEPS), self.memory))
        return len(self.memory) * _CHAINS * 32 * self.STEPS / 1e9
