"""Matrices times several tokens: rows that a few tokens share, and tiles for prompts."""

import numpy as np

from hotcold.kernels.cpu import float_tiles, panels, rows
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.operations import store_i64
from hotcold.kernels.cpu.program import THREAD_SCRATCH_BYTES
from hotcold.kernels.cpu.rows import MAX_COLUMNS, dot_rows, dot_strips
from hotcold.kernels.cpu.weight_types import BLOCK_TYPES, BY_ID

# up to which float rows are shared, as `few_tokens` of a quantised type; fewer where inputs take over two passes
FEW_FLOAT_TOKENS = 8
COLUMN_BYTES = 28 << 10  # of inputs that stay in the first-level cache while rows pass
RUN = 32  # rows that stay in the second-level cache while some tokens after others pass
PRODUCT_ROWS, PRODUCT_TOKENS = (
    64,
    256,
)  # products at the end of a thread's scratch memory, where a caller wants them
PRODUCTS = THREAD_SCRATCH_BYTES - 4 * PRODUCT_ROWS * PRODUCT_TOKENS
if float_tiles.SCRATCH_BYTES > PRODUCTS:
    raise AssertionError(f"no room for the {float_tiles.SCRATCH_BYTES} bytes of a float type's tiles")
MAX_K = (PRODUCTS - panels.scratch_bytes(0)) * 512 // (panels.scratch_bytes(512) - panels.scratch_bytes(0))

# by GGUF's type numbers, where compiled code reads them
_IS_SLOW, _FEW_TOKENS = np.zeros(1 + max(BY_ID), np.bool_), np.zeros(1 + max(BY_ID), np.int64)
for _kind in BLOCK_TYPES:
    _IS_SLOW[_kind.type_id], _FEW_TOKENS[_kind.type_id] = _kind.is_slow, _kind.few_tokens

_COLUMNS = 0  # this file's part of a thread's scratch memory, in bytes


@compiled
def has_panels(op) -> bool:  # type: ignore[no-untyped-def]
    """Whether the matrix of a record is quantised, with rows that a panel has room for."""
    return rows.is_block_type(op.w_type) and op.k <= MAX_K


@compiled
def _at_once(op) -> int:  # type: ignore[no-untyped-def]
    """How many tokens share a row that is decoded once."""
    return min(MAX_COLUMNS, max(2, COLUMN_BYTES // op.x_stride))


@compiled
def has_tiles(op, n_tokens: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether so many tokens meet a record's matrix in tiles.

    Of a type whose rows take longer to decode than to multiply, rows are never decoded twice.
    """
    if not rows.is_block_type(op.w_type):
        return n_tokens > min(FEW_FLOAT_TOKENS, 2 * _at_once(op) + 1)
    few = _FEW_TOKENS[op.w_type]
    if _IS_SLOW[op.w_type]:
        few = min(few, _at_once(op))
    return n_tokens > few and has_panels(op)


@compiled
def mul_mat(op, first: int, last: int, n_tokens: int, x: int, y: int, y_stride: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """y[t, r] = w[r] . x[t] for rows first..last-1 and n_tokens tokens; x: packed for a block type."""
    if n_tokens == 1:
        w = op.w + first * op.w_stride
        dot_rows(op.w_type, w, op.w_stride, last - first, x, op.k, rows.AHEAD, y + 4 * first)
    elif not has_tiles(op, n_tokens):
        _few_tokens(op, first, last, n_tokens, x, y, y_stride, scratch)
    elif rows.is_block_type(op.w_type):
        panels.mul_panels(op, first, last, n_tokens, x, y, y_stride, scratch)
    else:
        float_tiles.mul_tiles(op, first, last, n_tokens, x, y, y_stride, scratch)


@compiled
def _few_tokens(  # type: ignore[no-untyped-def]
    op, first: int, last: int, n_tokens: int, x: int, y: int, y_stride: int, scratch: int
) -> None:
    """A run of rows is read from memory once; as many tokens at a time as the cache holds."""
    columns = scratch + _COLUMNS
    most = _at_once(op)
    passes = (n_tokens + most - 1) // most
    for r in range(first, last, RUN):
        w, n_rows = op.w + r * op.w_stride, min(RUN, last - r)
        for p in range(passes):
            t, stop = n_tokens * p // passes, n_tokens * (p + 1) // passes
            for c in range(stop - t):
                store_i64(columns + 8 * c, x + (t + c) * op.x_stride)
            to = y + t * y_stride + 4 * r
            dot_strips(op.w_type, w, op.w_stride, n_rows, columns, stop - t, op.k, rows.AHEAD, to, y_stride)
