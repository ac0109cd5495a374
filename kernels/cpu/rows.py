"""Products with rows of weights: dot products, and sums of scaled rows.

The loops along a row are written in `float_sums.py` and `block_sums.py`; the njit functions below choose by
the type id at run time, once a call.
"""

import math
from typing import Any

import numpy as np
from numba.core import cgutils

from hotcold.kernels.cpu import block_sums, float_sums, operations, row_sums
from hotcold.kernels.cpu.compiled import compiled, family
from hotcold.kernels.cpu.counting import emit_count
from hotcold.kernels.cpu.matrix_rows import MatrixRows
from hotcold.kernels.cpu.simd import F32, I64, Builder, Value, address, operation
from hotcold.kernels.cpu.weight_types import BY_ID, WEIGHT_TYPES
from hotcold.kernels.cpu.weights import FloatType, WeightType

F32_ID, F16_ID, BF16_ID = 0, 1, 30
Q4_0_ID, Q4_1_ID, Q5_0_ID, Q5_1_ID, Q8_0_ID, Q4_K_ID, Q5_K_ID, Q6_K_ID = 2, 3, 6, 7, 8, 12, 13, 14

# bytes and numbers of a block, by GGUF's type numbers
TYPE_SIZE = {type_id: kind.type_size for type_id, kind in BY_ID.items()}
BLOCK_SIZE = {type_id: kind.block for type_id, kind in BY_ID.items()}

AHEAD = 8192  # software prefetch distance in bytes
MAX_COLUMNS = block_sums.MAX_COLUMNS


# the same, where compiled code reads them
_N_IDS = 1 + max(BY_ID)
_SIZES = np.array([TYPE_SIZE.get(i, 1) for i in range(_N_IDS)])
_BLOCKS = np.array([BLOCK_SIZE.get(i, 1) for i in range(_N_IDS)])


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
def row_bytes_of_float(type_id: int) -> int:
    """Bytes of one number of a float type."""
    return 4 if type_id == F32_ID else 2


# ---- dot products ---------------------------------------------------------------


_TYPES = {kind.type_id: kind for kind in WEIGHT_TYPES}


def _sums(kind: WeightType) -> Any:
    """The loops along a row of this type."""
    return float_sums if isinstance(kind, FloatType) else block_sums


def emit_dot_rows(b: Builder, kind: WeightType, *arguments: Value) -> None:
    """`dot_rows` of one type."""
    w, stride, n_rows, x, k, ahead, listed, out = arguments
    emit_count(b, kind, n_rows, k)
    _sums(kind).emit_rows(b, kind, MatrixRows(w, stride, n_rows, k, ahead, listed), x, out)


@family(_TYPES, 8)
def _dot_rows(b: Builder, kind: WeightType, *arguments: Value) -> None:
    emit_dot_rows(b, kind, *arguments)


@family(_TYPES, 9)
def _dot_strips(b: Builder, kind: WeightType, *arguments: Value) -> None:
    w, stride, n_rows, xs, n, k, ahead, out, out_stride = arguments
    emit_count(b, kind, n_rows, k)
    matrix = MatrixRows(w, stride, n_rows, k, ahead)
    _sums(kind).emit_strips(b, kind, matrix, xs, n, out, out_stride)


@compiled
def dot_rows(type_id: int, w: int, stride: int, n_rows: int, x: int, k: int, ahead: int, out: int) -> None:
    """The dot products of n_rows rows from w on with the input at x (packed for a block type).

    Args:
        stride: bytes from row to row. out: address of n_rows float32.
        ahead: how far the prefetch runs before the loads: AHEAD in a matrix read in order, the
            distance to a row yet to come when rows are picked one by one.
    """
    _dot_rows(type_id, w, stride, n_rows, x, k, ahead, 0, out)


@compiled
def dot_listed(
    type_id: int, w: int, stride: int, listed: int, n: int, x: int, k: int, ahead: int, out: int
) -> None:
    """`dot_rows` of n rows of the matrix at w, whose int64 numbers lie at `listed`; prefetched `ahead` rows before."""
    _dot_rows(type_id, w, stride, n, x, k, ahead, listed, out)


@operation(address)
def _float_room(b: Builder) -> Value:
    """The address of a float32 on the stack."""
    return b.ptrtoint(cgutils.alloca_once(b, F32), I64)


@compiled
def dot_row(type_id: int, w: int, x: int, k: int, ahead: int) -> float:
    """`dot_rows` of one row, which comes back as a number."""
    out = _float_room()
    _dot_rows(type_id, w, 0, 1, x, k, ahead, 0, out)
    return operations.load_f32(out)


@compiled
def positive_rows(
    type_id: int, w: int, stride: int, first: int, last: int, x: int, k: int, z: int, out: int
) -> None:
    """out[r] = row r . x for those of rows first..last-1 with z[r] > 0; -infinity for the others, not read."""
    r = _next_positive(z, first, last)
    for i in range(first, min(r, last)):
        operations.store_f32(out + 4 * i, operations.to_f32(-math.inf))
    while r < last:
        later = _next_positive(z, r + 1, last)
        ahead = (min(later, last - 1) - r) * stride
        operations.store_f32(out + 4 * r, dot_row(type_id, w + r * stride, x, k, ahead))
        for i in range(r + 1, later):
            operations.store_f32(out + 4 * i, operations.to_f32(-math.inf))
        r = later


@compiled
def _next_positive(z: int, first: int, last: int) -> int:
    """The first of rows first..last-1 with z > 0; last if there is none."""
    while first < last and not operations.load_f32(z + 4 * first) > 0:
        first += 1
    return first


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
    _dot_strips(type_id, w, stride, n_rows, xs, n, k, ahead, out, out_stride)


# ---- sums of scaled rows --------------------------------------------------------

ROWS, STRIP = row_sums.ROWS, row_sums.STRIP


@family(_TYPES, 6)
def _add_rows(b: Builder, kind: WeightType, *arguments: Value) -> None:
    row_sums.emit_add_rows(b, kind, row_sums.Addition(*arguments))


@compiled
def add_rows(type_id: int, acc: int, rows: int, coefficients: int, first: int, last: int, ahead: int) -> None:
    """acc[first:last] += sum over 4 rows of coefficient * row.

    Args:
        acc: address of float32. rows: address of 4 row addresses. coefficients: of 4 float32.
        first, last: columns, multiples of the block size.
        ahead: address of 4 byte distances from each row to the row to prefetch meanwhile.
    """
    _add_rows(type_id, acc, rows, coefficients, first, last, ahead)


@compiled
def add_wide(acc: int, n_vectors: int, wide: int, coefficients: int, word: int) -> None:
    """acc += sum of coefficient * row over the rows whose bit is set in a word, in order, 16 n_vectors columns of each.

    Args:
        wide: address of 64 rows of STRIP float32. coefficients: of as many float32.
    """
    row_sums.add_wide(acc, n_vectors, wide, coefficients, word)


# ---- one row as float32 ---------------------------------------------------------


@family(_TYPES, 4)
def _widen_row(b: Builder, kind: WeightType, *arguments: Value) -> None:
    row_sums.emit_widen(b, kind, *arguments)


@compiled
def widen_row(type_id: int, w: int, k: int, out: int) -> None:
    """The k numbers of the row at w as float32 at `out`."""
    _widen_row(type_id, w, k, out, 4 * STRIP)


@compiled
def widen_strips(type_id: int, w: int, k: int, out: int, strip_bytes: int) -> None:
    """The same in strips of STRIP numbers, `strip_bytes` from one to the next."""
    _widen_row(type_id, w, k, out, strip_bytes)
