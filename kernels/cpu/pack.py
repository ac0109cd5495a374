"""Inputs on their way to a quantised weight: int8 in blocks of 32, packed as `weights.py` reads them."""

from llvmlite import ir
from numba import types

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.simd import F32, I8, I16, I32, I64, VT, Builder, Value, address, constant, operation
from hotcold.kernels.cpu.sizes import PACKED_WINDOW_BYTES, WINDOW
from hotcold.kernels.cpu.weights import BLOCK, DWORDS, GROUP_BLOCKS, HALF_SUMS, SCALED_SUMS, SCALES, SUMS

BLOCKS = WINDOW // BLOCK


def _place(b: Builder, window: Value, c: Value, low: Value, high: Value, scale: Value) -> None:
    """Put 32 numbers, two <16 x i8>, and their scale into block c of a packed window."""
    group, j = b.lshr(c, I64(2)), b.and_(c, I64(3))
    at = b.add(window, b.mul(b.add(b.mul(j, I64(4)), group), I64(4)))
    for d in range(DWORDS):
        half = b.bitcast(low if d < DWORDS // 2 else high, VT(I32, DWORDS // 2))
        simd.store(b, b.extract_element(half, I32(d % (DWORDS // 2))), at, 64 * d, 4)
    # of the first 16 numbers in lane 0 and of all in lane 8
    first = b.sext(low, VT(I32, 16))
    both = b.add(first, b.sext(high, VT(I32, 16)))
    halves = (simd.shuffle(b, first, both, [*range(i, i + 8), *range(16 + i, 24 + i)]) for i in (0, 8))
    sums = b.add(*halves)
    for bit in (4, 2, 1):
        sums = b.add(sums, simd.shuffle(b, sums, sums, [lane ^ bit for lane in range(16)]))
    of_first, total = (b.extract_element(sums, I32(lane)) for lane in (0, 8))
    simd.store(b, scale, at, SCALES, 4)
    simd.store(b, b.neg(total), at, SUMS, 4)
    simd.store(b, b.fmul(scale, b.sitofp(total, F32)), at, SCALED_SUMS, 4)
    pair = [b.trunc(b.neg(half), I16) for half in (of_first, b.sub(total, of_first))]
    for i, half in enumerate(pair):
        simd.store(b, half, at, HALF_SUMS + 2 * i, 2)


@operation(types.void, address, address, types.int64)
def _pack_block(b: Builder, x: Value, window: Value, c: Value) -> None:
    """Round the 32 float32 at x (see ref.quantise) into block c of a packed window."""
    low, high = simd.load(b, x, VT(F32, 16)), simd.load(b, x, VT(F32, 16), 64)
    scale = b.fdiv(simd.largest_magnitude(b, low, high), ir.Constant(F32, 127.0))
    nothing = b.fcmp_ordered("==", scale, ir.Constant(F32, 0.0))
    inverse = b.select(nothing, ir.Constant(F32, 0.0), b.fdiv(ir.Constant(F32, 1.0), scale))
    inverse = simd.splat(b, inverse, 16)
    low, high = (simd.rounded_bytes(b, b.fmul(half, inverse)) for half in (low, high))
    _place(b, window, c, low, high, scale)


@operation(types.void, address, address, address, types.int64)
def _place_block(b: Builder, q: Value, d: Value, window: Value, c: Value) -> None:
    """Put the 32 int8 at q and their scale at d into block c of a packed window."""
    low, high = (simd.load(b, q, VT(I8, 16), half) for half in (0, 16))
    _place(b, window, c, low, high, simd.load(b, d, F32))


@operation(types.void, address, types.int64)
def _clear_block(b: Builder, window: Value, c: Value) -> None:
    """Block c of a packed window holds nothing: the row ends before it."""
    nothing = constant(I8, 16, 0)
    _place(b, window, c, nothing, nothing, ir.Constant(F32, 0.0))


@operation(types.void, address)
def _repeat_group(b: Builder, window: Value) -> None:
    """What stands in lanes 4 j of a packed window stands in all lanes 4 j to 4 j + 3."""
    for at in range(0, PACKED_WINDOW_BYTES, 64):
        v = simd.load(b, window, VT(I32, 16), at)
        simd.store(b, simd.shuffle(b, v, v, [lane & ~3 for lane in range(16)]), window, at)


@compiled
def _end_row(n_blocks: int, out: int) -> None:
    """What follows a row's blocks in its last window: nothing, or its last group again."""
    last = out + n_blocks // BLOCKS * PACKED_WINDOW_BYTES
    left = n_blocks % BLOCKS
    if left == 0:
        return
    for c in range(left, BLOCKS):
        _clear_block(last, c)
    if left <= GROUP_BLOCKS:
        _repeat_group(last)


@compiled
def pack_rounded_row(q: int, d: int, k: int, out: int) -> None:
    """Pack k numbers that are rounded already: int8 at q, a float32 scale for each 32 of them at d."""
    for c in range(k // BLOCK):
        _place_block(q + BLOCK * c, d + 4 * c, out + c // BLOCKS * PACKED_WINDOW_BYTES, c % BLOCKS)
    _end_row(k // BLOCK, out)


@compiled
def pack_row(x: int, k: int, out: int) -> None:
    """Pack the k float32 at x (k a multiple of 32) to `packed_bytes(k)` bytes at `out`."""
    for c in range(k // BLOCK):
        _pack_block(x + 4 * BLOCK * c, out + c // BLOCKS * PACKED_WINDOW_BYTES, c % BLOCKS)
    _end_row(k // BLOCK, out)
