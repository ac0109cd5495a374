"""Activations on their way to a quantised weight: int8 in blocks of 32, packed as `weights.py` reads them."""

from llvmlite import ir
from numba import njit, types

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.simd import F32, I8, I16, I32, JIT, VT, Builder, Value, address, constant, operation
from hotcold.kernels.cpu.weights import BLOCK, GROUP, HIGH, LOW, PACKED_GROUP_BYTES, SCALES, SUMS


def packed_bytes(k: int) -> int:
    """Bytes of k activations packed, whole groups of 128."""
    return -(-k // GROUP) * PACKED_GROUP_BYTES


@operation(types.void, address, address, types.int64)
def _pack_block(b: Builder, x: Value, group: Value, j: Value) -> None:
    """Round the 32 float32 at x (see ref.quantise) into block j of a packed group."""
    low, high = simd.load(b, x, VT(F32, 16)), simd.load(b, x, VT(F32, 16), 64)
    top = simd.fold(b, simd.larger(b, simd.fabs(b, low), simd.fabs(b, high)), simd.larger)
    scale = b.fdiv(top, ir.Constant(F32, 127.0))
    nothing = b.fcmp_ordered("==", scale, ir.Constant(F32, 0.0))
    inverse = b.select(nothing, ir.Constant(F32, 0.0), b.fdiv(ir.Constant(F32, 1.0), scale))
    inverse = simd.splat(b, inverse, 16)
    at = b.add(group, b.mul(j, simd.I64(16)))
    for half, offset in ((low, LOW), (high, HIGH)):
        q = b.trunc(b.fptosi(simd.rint(b, b.fmul(half, inverse)), VT(I32, 16)), VT(I8, 16))
        simd.store(b, q, at, offset)
    simd.store(b, simd.splat(b, scale, 4), at, SCALES)


@operation(types.void, address, address, address, types.int64)
def _place_block(b: Builder, q: Value, d: Value, group: Value, j: Value) -> None:
    """Put the 32 int8 at q and their scale at d into block j of a packed group."""
    at = b.add(group, b.mul(j, simd.I64(16)))
    for offset, half in ((LOW, 0), (HIGH, 16)):
        simd.store(b, simd.load(b, q, VT(I8, 16), half), at, offset)
    simd.store(b, simd.splat(b, simd.load(b, d, F32), 4), at, SCALES)


@operation(types.void, address, types.int64)
def _clear_block(b: Builder, group: Value, j: Value) -> None:
    """Block j of a packed group holds nothing: the row ends before it."""
    at = b.add(group, b.mul(j, simd.I64(16)))
    for offset in (LOW, HIGH):
        simd.store(b, constant(I8, 16, 0), at, offset)
    simd.store(b, constant(F32, 4, 0.0), at, SCALES)


@operation(types.void, address)
def _sum_lanes(b: Builder, group: Value) -> None:
    """-8 times the sum of each lane's 4 low and 4 high numbers."""
    wide = [b.sext(simd.load(b, group, VT(I8, 64), offset), VT(I16, 64)) for offset in (LOW, HIGH)]
    v = b.add(*wide)
    for _ in range(2):
        n = v.type.count
        v = b.add(simd.shuffle(b, v, v, range(0, n, 2)), simd.shuffle(b, v, v, range(1, n, 2)))
    simd.store(b, b.mul(b.sext(v, VT(I32, 16)), constant(I32, 16, -8)), group, SUMS)


@njit(**JIT)  # type: ignore[untyped-decorator]
def pack_rounded_row(q: int, d: int, k: int, out: int) -> None:
    """Pack k numbers that are rounded already: int8 at q, a float32 scale for each 32 of them at d."""
    n_blocks = k // BLOCK
    for first in range(0, n_blocks, 4):
        group = out + first // 4 * PACKED_GROUP_BYTES
        for j in range(4):
            if first + j < n_blocks:
                _place_block(q + BLOCK * (first + j), d + 4 * (first + j), group, j)
            else:
                _clear_block(group, j)
        _sum_lanes(group)


@njit(**JIT)  # type: ignore[untyped-decorator]
def pack_row(x: int, k: int, out: int) -> None:
    """Pack the k float32 at x (k a multiple of 32) to `packed_bytes(k)` bytes at `out`."""
    n_blocks = k // BLOCK
    for first in range(0, n_blocks, 4):
        group = out + first // 4 * PACKED_GROUP_BYTES
        for j in range(4):
            if first + j < n_blocks:
                _pack_block(x + 4 * BLOCK * (first + j), group, j)
            else:
                _clear_block(group, j)
        _sum_lanes(group)
