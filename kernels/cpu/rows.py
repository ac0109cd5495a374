"""Products with rows of weights: dot products, and sums of scaled rows.

The loops along a row are written in `float_sums.py` and `block_sums.py`; the njit functions below choose by
the type id at run time, once a call.
"""

import os
from collections.abc import Callable

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from hotcold.kernels.cpu import block_sums, float_sums, simd
from hotcold.kernels.cpu.compiled import compiled, compiled_code
from hotcold.kernels.cpu.simd import (
    F32,
    I16,
    I64,
    VT,
    Builder,
    Value,
    address,
    constant,
    linked,
    operation,
)
from hotcold.kernels.cpu.weight_types import BY_ID, FLOAT_TYPES, SPARSE_TYPES, WEIGHT_TYPES, emit_switch
from hotcold.kernels.cpu.weights import BlockType, FloatType, WeightType

F32_ID, F16_ID, BF16_ID = 0, 1, 30
Q4_0_ID, Q4_1_ID, Q5_0_ID, Q5_1_ID, Q8_0_ID, Q4_K_ID, Q5_K_ID, Q6_K_ID = 2, 3, 6, 7, 8, 12, 13, 14

# bytes and numbers of a block, by GGUF's type numbers
TYPE_SIZE = {type_id: kind.type_size for type_id, kind in BY_ID.items()}
BLOCK_SIZE = {type_id: kind.block for type_id, kind in BY_ID.items()}

# A checking build counts the bytes of every row that is read, in a cell that machine code finds by name.
COUNTING = os.environ.get("HOTCOLD_COUNT_BYTES", "0") not in ("", "0")
_COUNTER = np.zeros(1, np.int64)
_COUNTER_SYMBOL = "hotcold_counted_bytes"
llvmlite.binding.add_symbol(_COUNTER_SYMBOL, _COUNTER.ctypes.data)

AHEAD = 8192  # software prefetch distance in bytes
TILE = float_sums.TILE
MAX_COLUMNS = block_sums.MAX_COLUMNS


# the same, and whether a type has sums of rows of its own, where compiled code reads them
_N_IDS = 1 + max(BY_ID)
_SIZES = np.array([TYPE_SIZE.get(i, 1) for i in range(_N_IDS)])
_BLOCKS = np.array([BLOCK_SIZE.get(i, 1) for i in range(_N_IDS)])
_IN_SPARSE_FFN = np.array([BY_ID[i].in_sparse_ffn if i in BY_ID else False for i in range(_N_IDS)])


@compiled
def column_offset(type_id: int, column: int) -> int:
    """Where a column, a multiple of the block size, lies in a row."""
    return column // _BLOCKS[type_id] * _SIZES[type_id]


@compiled
def column_unit(type_id: int) -> int:
    """How many columns of a row are cut off together: whole blocks, and whole vectors."""
    return max(32, _BLOCKS[type_id])


@compiled
def is_block_type(type_id: int) -> bool:
    """Whether an input is packed to int8 before it meets this type."""
    return _BLOCKS[type_id] > 1


@compiled
def is_in_sparse_ffn(type_id: int) -> bool:
    """Whether `add_rows` knows this type."""
    return _IN_SPARSE_FFN[type_id]


def is_quantised(type_id: int) -> bool:
    """`is_block_type` of any number."""
    return BLOCK_SIZE[type_id] > 1


def row_bytes(type_id: int, k: int) -> int:
    """Bytes of a row of k weights."""
    return k // BLOCK_SIZE[type_id] * TYPE_SIZE[type_id]


@compiled
def row_bytes_of_float(type_id: int) -> int:
    """Bytes of one number of a float type."""
    return 4 if type_id == F32_ID else 2


def counted_bytes() -> int:
    """Bytes of rows that all kernels have read so far, in a checking build; else 0."""
    return int(_COUNTER[0])


def emit_count(b: Builder, kind: WeightType, n_rows: Value, k: Value) -> None:
    """In a checking build: add the bytes of k numbers of n_rows rows to the counter."""
    if not COUNTING:
        return
    n_bytes = b.mul(b.mul(b.udiv(k, I64(kind.block)), I64(kind.type_size)), n_rows)
    cell = b.module.globals.get(_COUNTER_SYMBOL)
    if cell is None:
        cell = ir.GlobalVariable(b.module, I64, _COUNTER_SYMBOL)
    b.atomic_rmw("add", cell, n_bytes, "monotonic")


# ---- dot products ---------------------------------------------------------------


def _emit_counted(
    b: Builder, type_id: Value, n_rows: Value, k: Value, emit: Callable[[WeightType], None]
) -> None:
    """One branch a type; in a checking build n_rows rows of k numbers are counted in each."""

    def counted(kind: WeightType) -> None:
        emit_count(b, kind, n_rows, k)
        emit(kind)

    emit_switch(b, type_id, WEIGHT_TYPES, counted)


@operation(
    types.void,
    *(types.int64, address, types.int64, types.int64, address, types.int64, types.int64, types.int64),
    address,
)
def _dot_rows(
    b: Builder,
    type_id: Value,
    w: Value,
    stride: Value,
    n_rows: Value,
    x: Value,
    k: Value,
    ahead: Value,
    also: Value,
    out: Value,
) -> None:
    def emit(kind: WeightType) -> None:
        sums = float_sums if isinstance(kind, FloatType) else block_sums
        sums.emit_rows(b, kind, w, stride, n_rows, x, k, ahead, also, out)

    _emit_counted(b, type_id, n_rows, k, emit)


@operation(
    types.void,
    *(types.int64, address, types.int64, types.int64, address, types.int64, types.int64, types.int64),
    *(address, types.int64),
)
def _dot_strips(
    b: Builder,
    type_id: Value,
    w: Value,
    stride: Value,
    n_rows: Value,
    xs: Value,
    n: Value,
    k: Value,
    ahead: Value,
    out: Value,
    out_stride: Value,
) -> None:
    def emit(kind: WeightType) -> None:
        sums = float_sums if isinstance(kind, FloatType) else block_sums
        sums.emit_strips(b, kind, w, stride, n_rows, xs, n, k, ahead, out, out_stride)

    _emit_counted(b, type_id, n_rows, k, emit)


@operation(types.void, types.int64, address, types.int64, address, types.int64, address)
def _dot_tile(b: Builder, type_id: Value, w: Value, stride: Value, xs: Value, k: Value, out: Value) -> None:
    def emit(kind: WeightType) -> None:
        assert isinstance(kind, FloatType)
        emit_count(b, kind, I64(TILE), k)
        float_sums.emit_tile(b, kind, w, stride, xs, k, out)

    emit_switch(b, type_id, FLOAT_TYPES, emit)


_INT = types.int64
_DOT_ROWS_SYMBOL = "hotcold_dot_rows"


@compiled_code(types.void(*[_INT] * 9))
def _dot_rows_code(
    type_id: int, w: int, stride: int, n_rows: int, x: int, k: int, ahead: int, also: int, out: int
) -> None:
    _dot_rows(type_id, w, stride, n_rows, x, k, ahead, also, out)


@compiled_code(types.void(*[_INT] * 10))
def _dot_strips_code(
    type_id: int,
    w: int,
    stride: int,
    n_rows: int,
    xs: int,
    n: int,
    k: int,
    ahead: int,
    out: int,
    out_stride: int,
) -> None:
    _dot_strips(type_id, w, stride, n_rows, xs, n, k, ahead, out, out_stride)


@compiled_code(types.void(_INT, _INT, _INT, _INT, _INT, _INT))
def _dot_tile_code(type_id: int, w: int, stride: int, xs: int, k: int, out: int) -> None:
    _dot_tile(type_id, w, stride, xs, k, out)


_call_dot_rows = linked(_DOT_ROWS_SYMBOL, _dot_rows_code, types.void, *[_INT] * 9)
_call_dot_strips = linked("hotcold_dot_strips", _dot_strips_code, types.void, *[_INT] * 10)
_call_dot_tile = linked("hotcold_dot_tile", _dot_tile_code, types.void, *[_INT] * 6)


@compiled
def dot_rows(type_id: int, w: int, stride: int, n_rows: int, x: int, k: int, ahead: int, out: int) -> None:
    """The dot products of n_rows rows from w on with the input at x (packed for a block type).

    Args:
        stride: bytes from row to row. out: address of n_rows float32.
        ahead: how far the prefetch runs before the loads: AHEAD in a matrix read in order, the
            distance to a row yet to come when rows are picked from a list.
    """
    _call_dot_rows(type_id, w, stride, n_rows, x, k, ahead, 0, out)


@operation(types.float32, types.int64, address, address, types.int64, types.int64, types.int64)
def _dot_one(b: Builder, type_id: Value, w: Value, x: Value, k: Value, ahead: Value, also: Value) -> Value:
    cell = cgutils.alloca_once(b, F32)
    values = (type_id, w, I64(0), I64(1), x, k, ahead, also, b.ptrtoint(cell, I64))
    simd.call(b, _DOT_ROWS_SYMBOL, ir.VoidType(), *values)
    return b.load(cell)


@compiled
def dot_row(type_id: int, w: int, x: int, k: int, ahead: int, also: int = 0) -> float:
    """`dot_rows` of one row, which comes back as a number; `also`: distance to another row to ask for, or 0."""
    return _dot_one(type_id, w, x, k, ahead, also)


@compiled
def dot_strips(
    type_id: int,
    w: int,
    stride: int,
    n_rows: int,
    xs: int,
    n: int,
    k: int,
    ahead: int,
    out: int,
    out_stride: int,
) -> None:
    """The dot products of n_rows rows with n inputs, each row read and decoded once.

    Args:
        xs: address of the addresses of the n vectors, at most MAX_COLUMNS.
        out: of float32, rows of a column in order and `out_stride` bytes from column to column.
        The others are those of `dot_rows`.
    """
    _call_dot_strips(type_id, w, stride, n_rows, xs, n, k, ahead, out, out_stride)


@compiled
def dot_tile(type_id: int, w: int, stride: int, xs: int, k: int, out: int) -> None:
    """TILE rows of a float type by TILE columns, whose addresses lie at `xs`; `out`: 16 float32 [row, column]."""
    _call_dot_tile(type_id, w, stride, xs, k, out)


# ---- sums of scaled rows --------------------------------------------------------

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


def _emit_add_rows(
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


@operation(types.void, types.int64, address, address, address, types.int64, types.int64, address, address)
def _add_rows(b: Builder, type_id: Value, *arguments: Value) -> None:
    emit_switch(b, type_id, SPARSE_TYPES, lambda kind: _emit_add_rows(b, kind, *arguments))


@compiled_code(types.void(*[_INT] * 8))
def _add_rows_code(
    type_id: int, acc: int, rows: int, coefficients: int, first: int, last: int, ahead: int, scales: int
) -> None:
    _add_rows(type_id, acc, rows, coefficients, first, last, ahead, scales)


_call_add_rows = linked("hotcold_add_rows", _add_rows_code, types.void, *[_INT] * 8)


@compiled
def add_rows(
    type_id: int, acc: int, rows: int, coefficients: int, first: int, last: int, ahead: int, scales: int
) -> None:
    """acc[first:last] += sum over 4 rows of coefficient * row.

    Args:
        acc: address of float32. rows: address of 4 row addresses. coefficients: of 4 float32.
        first, last: columns, multiples of the block size.
        ahead: address of 4 byte distances from each row to the row to prefetch meanwhile.
        scales: address of ROWS * SCALES_BYTES of the thread's own memory; unused by float types.
    """
    _call_add_rows(type_id, acc, rows, coefficients, first, last, ahead, scales)


@operation(types.void, address, types.int64, address, address, types.int64)
def _add_wide(b: Builder, acc: Value, n_vectors: Value, rows: Value, coefficients: Value, n: Value) -> None:
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


@compiled
def add_wide(acc: int, n_vectors: int, rows: int, coefficients: int, n: int) -> None:
    """acc += sum of coefficient * row over n rows of float32, in order, 16 n_vectors columns of each.

    Args:
        rows: address of the addresses of the rows. coefficients: of n float32.
    """
    _add_wide(acc, n_vectors, rows, coefficients, n)


# ---- one row as float32 ---------------------------------------------------------


def _emit_widen(b: Builder, kind: WeightType, w: Value, k: Value, out: Value) -> None:
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


@operation(types.void, types.int64, address, types.int64, address)
def _widen(b: Builder, type_id: Value, w: Value, k: Value, out: Value) -> None:
    emit_switch(b, type_id, WEIGHT_TYPES, lambda kind: _emit_widen(b, kind, w, k, out))


@compiled_code(types.void(*[_INT] * 4))
def _widen_code(type_id: int, w: int, k: int, out: int) -> None:
    _widen(type_id, w, k, out)


_call_widen = linked("hotcold_widen_row", _widen_code, types.void, *[_INT] * 4)


@compiled
def widen_row(type_id: int, w: int, k: int, out: int) -> None:
    """The k numbers of the row at w as float32 at `out`."""
    _call_widen(type_id, w, k, out)
