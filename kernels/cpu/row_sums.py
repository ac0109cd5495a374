"""Sums of scaled rows and rows as float32: the one order of sums of `ref.rows_in_order`, as IR."""

from llvmlite import ir
from numba import types
from numba.core import cgutils

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.counting import emit_count
from hotcold.kernels.cpu.simd import F32, I16, I64, VT, Builder, Value, address, constant, operation
from hotcold.kernels.cpu.weights import BlockType, FloatType, WeightType

ROWS = 4  # rows added at once, so that an accumulator is loaded and stored once for four
SCALES_BYTES = 4096  # room for one row's scales, so rows have up to 1024 blocks
STRETCH = 8  # blocks between two rounds of prefetch
WIDE_VECTORS = 8  # of a row of float32 that are added in one pass over the rows


def _emit_scales(b: Builder, kind: BlockType, row: Value, n_blocks: Value, out: Value) -> None:
    """The float32 scales of n_blocks blocks from `row` on, sixteen at a time, to `out`.

    The main loop then takes a scale by a broadcast from memory, which costs no vector instruction.
    """
    lanes = ir.Constant(VT(I64, 16), list(range(16)))
    steps = simd.splat(b, I64(kind.type_size), 16)
    with cgutils.for_range(b, b.udiv(b.add(n_blocks, I64(15)), I64(16))) as loop:
        first = b.mul(loop.index, I64(16))
        inside = b.icmp_signed("<", lanes, simd.splat(b, b.sub(n_blocks, first), 16))
        start = b.add(row, b.mul(first, I64(kind.type_size)))
        addresses = b.add(simd.splat(b, start, 16), b.mul(lanes, steps))
        bits = b.trunc(simd.gather(b, addresses, inside), VT(I16, 16))
        simd.store(b, simd.half_to_float(b, bits), b.add(out, b.mul(loop.index, I64(64))))


def emit_add_rows(
    b: Builder,
    kind: WeightType,
    acc: Value,
    rows: Value,
    coefficients: Value,
    first: Value,
    last: Value,
    ahead: Value,
    scales: Value,
) -> None:
    """acc[first:last] += sum over ROWS rows of coefficient * row, one block (or 16) at a time."""
    width = max(16, kind.block)
    size = width // kind.block * kind.type_size
    emit_count(b, kind, I64(ROWS), b.sub(last, first))
    n = b.udiv(b.sub(last, first), I64(width))
    begin = b.mul(b.udiv(first, I64(width)), I64(size))
    starts = [b.add(simd.load(b, rows, I64, 8 * r), begin) for r in range(ROWS)]
    later = [b.add(start, simd.load(b, ahead, I64, 8 * r)) for r, start in enumerate(starts)]
    coefficient = [simd.load(b, coefficients, F32, 4 * r) for r in range(ROWS)]
    room = [b.add(scales, I64(SCALES_BYTES * r)) for r in range(ROWS)]
    if isinstance(kind, BlockType):
        for r, start in enumerate(starts):
            _emit_scales(b, kind, start, n, room[r])
    factors = [simd.splat(b, c, 16) for c in coefficient]

    def add_block(i: Value) -> None:
        offset = b.mul(i, I64(size))
        out = b.add(acc, b.mul(b.add(first, b.mul(i, I64(width))), I64(4)))
        sums = [simd.load(b, out, VT(F32, 16), 64 * v) for v in range(width // 16)]
        for r, start in enumerate(starts):
            at = b.add(start, offset)
            if isinstance(kind, FloatType):
                values = [kind.load16(b, at)]
            else:
                scale = simd.load(b, b.add(room[r], b.mul(i, I64(4))), F32, align=4)
                values = kind.scaled(b, at, simd.splat(b, scale, 16))
            sums = [simd.fma(b, factors[r], v, s) for v, s in zip(values, sums, strict=True)]
        for v, s in enumerate(sums):
            simd.store(b, s, out, 64 * v)

    stretches = b.udiv(n, I64(STRETCH))
    with cgutils.for_range(b, stretches) as loop:
        at = b.mul(loop.index, I64(STRETCH * size))
        for row in later:
            simd.emit_prefetches(b, b.add(row, at), STRETCH * size)
        with cgutils.for_range(b, I64(STRETCH)) as inner:
            add_block(b.add(b.mul(loop.index, I64(STRETCH)), inner.index))
    done = b.mul(stretches, I64(STRETCH))
    with cgutils.for_range(b, b.sub(n, done)) as loop:
        add_block(b.add(done, loop.index))
    if isinstance(kind, FloatType):
        _tail(b, kind, acc, starts, coefficient, b.add(first, b.mul(n, I64(16))), first, last)


def _tail(
    b: Builder,
    kind: FloatType,
    acc: Value,
    starts: list[Value],
    coefficient: list[Value],
    begin: Value,
    first: Value,
    last: Value,
) -> None:
    """Columns begin..last-1, one by one; `starts` are the addresses of column `first`."""
    with cgutils.for_range(b, b.sub(last, begin)) as loop:
        j = b.add(begin, loop.index)
        out = b.add(acc, b.mul(j, I64(4)))
        total = simd.load(b, out, F32)
        for start, factor in zip(starts, coefficient, strict=True):
            w = kind.load1(b, b.add(start, b.mul(b.sub(j, first), I64(kind.type_size))))
            total = simd.fma(b, factor, w, total)
        simd.store(b, total, out)


@operation(types.void, address, types.int64, address, address, types.int64)
def add_wide(b: Builder, acc: Value, n_vectors: Value, rows: Value, coefficients: Value, n: Value) -> None:
    """`rows.add_wide`."""

    def add(first: Value, width: int) -> None:
        out = b.add(acc, b.mul(first, I64(64)))
        cells = [cgutils.alloca_once_value(b, constant(F32, 16, 0.0)) for _ in range(width)]
        for v, cell in enumerate(cells):
            b.store(simd.load(b, out, VT(F32, 16), 64 * v), cell)
        with cgutils.for_range(b, n) as loop:
            row = simd.load(b, b.add(rows, b.mul(loop.index, I64(8))), I64, align=8)
            at = b.add(row, b.mul(first, I64(64)))
            factor = simd.load(b, b.add(coefficients, b.mul(loop.index, I64(4))), F32, align=4)
            factors = simd.splat(b, factor, 16)
            for v, cell in enumerate(cells):
                b.store(simd.fma(b, factors, simd.load(b, at, VT(F32, 16), 64 * v), b.load(cell)), cell)
        for v, cell in enumerate(cells):
            simd.store(b, b.load(cell), out, 64 * v)

    whole = b.udiv(n_vectors, I64(WIDE_VECTORS))
    with cgutils.for_range(b, whole) as loop:
        add(b.mul(loop.index, I64(WIDE_VECTORS)), WIDE_VECTORS)
    done = b.mul(whole, I64(WIDE_VECTORS))
    with cgutils.for_range(b, b.sub(n_vectors, done)) as loop:
        add(b.add(done, loop.index), 1)


def emit_widen(b: Builder, kind: WeightType, w: Value, k: Value, out: Value) -> None:
    """The k numbers of the row at w as float32 at `out`."""
    emit_count(b, kind, I64(1), k)
    width = max(16, kind.block)
    with cgutils.for_range(b, b.udiv(k, I64(width))) as loop:
        at = b.add(w, b.mul(loop.index, I64(width // kind.block * kind.type_size)))
        to = b.add(out, b.mul(loop.index, I64(4 * width)))
        for i, v in enumerate([kind.load16(b, at)] if isinstance(kind, FloatType) else kind.widened(b, at)):
            simd.store(b, v, to, 64 * i)
    if isinstance(kind, FloatType):
        start = b.and_(k, I64(-16))
        with cgutils.for_range(b, b.sub(k, start)) as loop:
            i = b.add(start, loop.index)
            number = kind.load1(b, b.add(w, b.mul(i, I64(kind.type_size))))
            simd.store(b, number, b.add(out, b.mul(i, I64(4))), align=4)
