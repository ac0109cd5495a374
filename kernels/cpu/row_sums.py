"""Sums of scaled rows and rows as float32: the one order of sums of `order_of_sums.rows_in_order`, as IR."""

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir
from numba import types
from numba.core import cgutils

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.block_sums import BLOCKS
from hotcold.kernels.cpu.counting import emit_count
from hotcold.kernels.cpu.simd import F32, I1, I8, I64, VT, Builder, Value, address, operation
from hotcold.kernels.cpu.weights import (
    BLOCK,
    GROUP_BLOCKS,
    GROUPS,
    BlockType,
    FloatType,
    WeightType,
    Window,
)

ROWS = 4  # rows added at once, so that an accumulator is loaded and stored once for four
STRETCH = 8  # steps of a float row between two rounds of prefetch
STRIP = 128  # columns of rows of float32 that are added in one pass over the rows, 64 of which fill a first-level cache
WIDE_VECTORS = 8 if "avx512f" in simd.target_features() else 4  # of a row, whose sums are registers meanwhile


# a decoded window in memory: of each group numbers 0..15 of its 4 blocks, then 16..31, 512 int8 in all; then vectors of
# float32, one block a lane
_NUMBERS, _GROUP_BYTES, _HALF_BYTES = 512, 128, 64
DECODED_BYTES = _NUMBERS + 4 * 64


def _emit_decoded(b: Builder, kind: BlockType, window: Window, to: Value) -> None:
    """A window of a row, or its first group alone, to memory: numbers, the scales of their halves, minima."""
    numbers = [kind.signed_numbers(b, part) for pair in window.numbers for part in pair]
    scales, minima = kind.scales_of_halves(b, window)
    for i, v in enumerate(numbers):
        simd.store(b, v, to, 64 * i, 64)
    for i, v in enumerate([*scales, *minima]):
        simd.store(b, v, to, _NUMBERS + 64 * i, 64)


def _emit_block(b: Builder, kind: BlockType, decoded: Value, c: Value) -> list[Value]:
    """The 32 numbers of block c of a decoded window, as two <16 x float>."""
    group, j = b.lshr(c, I64(2)), b.and_(c, I64(3))
    at = b.add(decoded, b.add(b.mul(group, I64(_GROUP_BYTES)), b.mul(j, I64(16))))
    lane = b.add(decoded, b.mul(b.add(b.mul(j, I64(4)), group), I64(4)))
    each = 2 if kind.has_parts else 1
    values = []
    for half in (0, 1):
        v = b.sitofp(simd.load(b, at, VT(I8, 16), _HALF_BYTES * half), VT(F32, 16))
        vector = half if kind.has_parts else 0
        scale = simd.splat(b, simd.load(b, lane, F32, _NUMBERS + 64 * vector, 4), 16)
        if kind.has_minimum:
            minimum = simd.splat(b, simd.load(b, lane, F32, _NUMBERS + 64 * (each + vector), 4), 16)
            values.append(simd.fma(b, v, scale, minimum))
        else:
            values.append(b.fmul(v, scale))
    return values


@dataclass(frozen=True)
class _Piece:
    """Some blocks of 32 of a row that are decoded at once.

    Attributes:
        first: number of the first.
        n_blocks: how many.
        offset: where their bytes begin in the row.
        n_bytes: how many those are, at most.
        decode: decode(row, to) of the row at an address.
    """

    first: Value
    n_blocks: Value
    offset: Value
    n_bytes: int
    decode: Callable[[Value, Value], None]


def _emit_pieces(b: Builder, kind: BlockType, n_blocks: Value, emit: Callable[[_Piece], None]) -> None:
    """emit(piece) for all of n blocks of 32: whole windows, then groups, or a window of which some blocks are used."""
    whole, last_block = b.udiv(n_blocks, I64(BLOCKS)), b.sub(n_blocks, I64(1))

    def emit_window(window: Value, n: Value, last: Value | None) -> None:
        def decode(row: Value, to: Value) -> None:
            _emit_decoded(b, kind, kind.unpack_window(b, row, window, last), to)

        first, offset = b.mul(window, I64(BLOCKS)), b.mul(window, I64(kind.window_bytes))
        emit(_Piece(first, n, offset, kind.window_bytes, decode))

    def emit_group(number: Value) -> None:
        def decode(row: Value, to: Value) -> None:
            group = kind.unpack_group(b, row, number, last_block)
            factors = [kind.factor(b, codes) for codes in group.codes]
            _emit_decoded(b, kind, Window([(group.low, group.high)], factors), to)

        first, n_bytes = b.mul(number, I64(GROUP_BLOCKS)), GROUP_BLOCKS * kind.type_size
        n = b.sub(n_blocks, first)
        n = b.select(b.icmp_signed("<", n, I64(GROUP_BLOCKS)), n, I64(GROUP_BLOCKS))
        emit(_Piece(first, n, b.mul(number, I64(n_bytes)), n_bytes, decode))

    with cgutils.for_range(b, whole) as loop:
        emit_window(loop.index, I64(BLOCKS), None)
    if kind.block == BLOCK:
        before = b.mul(whole, I64(GROUPS))
        groups = b.udiv(b.add(n_blocks, I64(GROUP_BLOCKS - 1)), I64(GROUP_BLOCKS))
        with cgutils.for_range(b, b.sub(groups, before)) as loop:
            emit_group(b.add(before, loop.index))
        return
    left = b.sub(n_blocks, b.mul(whole, I64(BLOCKS)))
    with cgutils.if_unlikely(b, b.icmp_signed("!=", left, I64(0))):
        emit_window(whole, left, last_block)


@dataclass(frozen=True)
class Addition:
    """ROWS rows, each times its coefficient, on top of sums.

    Attributes:
        acc: address of the sums.
        rows: address of the rows' addresses.
        coefficients: address of theirs.
        first: column that sums begin with.
        last: column that they end before.
        ahead: address of how many bytes from each row lies what is asked for.
    """

    acc: Value
    rows: Value
    coefficients: Value
    first: Value
    last: Value
    ahead: Value


def emit_add_rows(b: Builder, kind: WeightType, what: Addition) -> None:
    """acc[first:last] += sum over ROWS rows of coefficient * row."""
    emit_count(b, kind, I64(ROWS), b.sub(what.last, what.first))
    if isinstance(kind, FloatType):
        _emit_add_floats(b, kind, what)
    else:
        _emit_add_blocks(b, kind, what)


def _emit_add_blocks(b: Builder, kind: BlockType, what: Addition) -> None:
    """A piece of all rows is decoded, then added block by block."""
    first, last = what.first, what.last
    begin = b.mul(b.udiv(first, I64(kind.block)), I64(kind.type_size))
    room = simd.room(b, ir.ArrayType(I8, ROWS * DECODED_BYTES))
    factors = [simd.splat(b, simd.load(b, what.coefficients, F32, 4 * r), 16) for r in range(ROWS)]

    def add(piece: _Piece) -> None:
        with cgutils.for_range(b, I64(ROWS)) as loop:
            r = b.mul(loop.index, I64(8))
            row = b.add(simd.load(b, b.add(what.rows, r), I64, align=8), begin)
            later = b.add(row, simd.load(b, b.add(what.ahead, r), I64, align=8))
            simd.emit_prefetches(b, b.add(later, piece.offset), piece.n_bytes)
            piece.decode(row, b.add(room, b.mul(loop.index, I64(DECODED_BYTES))))
        column = b.add(first, b.mul(piece.first, I64(BLOCK)))
        with cgutils.for_range(b, piece.n_blocks) as loop:
            out = b.add(what.acc, b.mul(b.add(column, b.mul(loop.index, I64(BLOCK))), I64(4)))
            sums = [simd.load(b, out, VT(F32, 16), 64 * v) for v in (0, 1)]
            for r in range(ROWS):
                values = _emit_block(b, kind, b.add(room, I64(DECODED_BYTES * r)), loop.index)
                sums = [simd.fma(b, factors[r], v, s) for v, s in zip(values, sums, strict=True)]
            for v, s in enumerate(sums):
                simd.store(b, s, out, 64 * v)

    _emit_pieces(b, kind, b.udiv(b.sub(last, first), I64(BLOCK)), add)


def _emit_add_floats(b: Builder, kind: FloatType, what: Addition) -> None:
    """Sixteen numbers at a time, then those that are left."""
    size, acc, first, last = 16 * kind.type_size, what.acc, what.first, what.last
    n = b.udiv(b.sub(last, first), I64(16))
    begin = b.mul(first, I64(kind.type_size))
    starts = [b.add(simd.load(b, what.rows, I64, 8 * r), begin) for r in range(ROWS)]
    later = [b.add(start, simd.load(b, what.ahead, I64, 8 * r)) for r, start in enumerate(starts)]
    coefficient = [simd.load(b, what.coefficients, F32, 4 * r) for r in range(ROWS)]
    factors = [simd.splat(b, c, 16) for c in coefficient]

    def add_step(i: Value) -> None:
        offset = b.mul(i, I64(size))
        out = b.add(acc, b.mul(b.add(first, b.mul(i, I64(16))), I64(4)))
        total = simd.load(b, out, VT(F32, 16))
        for factor, start in zip(factors, starts, strict=True):
            total = simd.fma(b, factor, kind.load16(b, b.add(start, offset)), total)
        simd.store(b, total, out)

    stretches = b.udiv(n, I64(STRETCH))
    with cgutils.for_range(b, stretches) as loop:
        at = b.mul(loop.index, I64(STRETCH * size))
        for row in later:
            simd.emit_prefetches(b, b.add(row, at), STRETCH * size)
        with cgutils.for_range(b, I64(STRETCH)) as inner:
            add_step(b.add(b.mul(loop.index, I64(STRETCH)), inner.index))
    done = b.mul(stretches, I64(STRETCH))
    with cgutils.for_range(b, b.sub(n, done)) as loop:
        add_step(b.add(done, loop.index))
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
def add_wide(b: Builder, acc: Value, n_vectors: Value, wide: Value, coefficients: Value, word: Value) -> None:
    """`rows.add_wide`. The next row is found in the bits while the last one's products are added."""

    def add(first: Value, width: int) -> None:
        offset = b.mul(first, I64(64))
        out, row = b.add(acc, offset), b.add(wide, offset)
        cells = [cgutils.alloca_once_value(b, simd.load(b, out, VT(F32, 16), 64 * v)) for v in range(width)]
        left = cgutils.alloca_once_value(b, word)
        with cgutils.for_range(b, simd.call(b, "llvm.ctpop.i64", I64, word)):
            bits = b.load(left)
            i = simd.call(b, "llvm.cttz.i64", I64, bits, I1(1))
            b.store(b.and_(bits, b.sub(bits, I64(1))), left)
            at = b.add(row, b.mul(i, I64(4 * STRIP)))
            factor = simd.load(b, b.add(coefficients, b.mul(i, I64(4))), F32, align=4)
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


def emit_widen(b: Builder, kind: WeightType, w: Value, k: Value, out: Value, strip_bytes: Value) -> None:
    """The k numbers of the row at w as float32 at `out`, in strips so many bytes from one to the next."""
    emit_count(b, kind, I64(1), k)

    def place(number: Value) -> Value:
        strip, within = b.udiv(number, I64(STRIP)), b.and_(number, I64(STRIP - 1))
        return b.add(out, b.add(b.mul(strip, strip_bytes), b.mul(within, I64(4))))

    if isinstance(kind, FloatType):
        _emit_widen_floats(b, kind, w, k, place)
        return
    room = simd.room(b, ir.ArrayType(I8, DECODED_BYTES))

    def widen(piece: _Piece) -> None:
        piece.decode(w, room)
        with cgutils.for_range(b, piece.n_blocks) as loop:
            to = place(b.mul(b.add(piece.first, loop.index), I64(BLOCK)))
            for half, v in enumerate(_emit_block(b, kind, room, loop.index)):
                simd.store(b, v, to, 64 * half)

    _emit_pieces(b, kind, b.udiv(k, I64(BLOCK)), widen)


def _emit_widen_floats(
    b: Builder, kind: FloatType, w: Value, k: Value, place: Callable[[Value], Value]
) -> None:
    """Sixteen at a time, then those that are left."""
    with cgutils.for_range(b, b.udiv(k, I64(16))) as loop:
        at = b.add(w, b.mul(loop.index, I64(16 * kind.type_size)))
        simd.store(b, kind.load16(b, at), place(b.mul(loop.index, I64(16))))
    start = b.and_(k, I64(-16))
    with cgutils.for_range(b, b.sub(k, start)) as loop:
        i = b.add(start, loop.index)
        number = kind.load1(b, b.add(w, b.mul(i, I64(kind.type_size))))
        simd.store(b, number, place(i), align=4)
