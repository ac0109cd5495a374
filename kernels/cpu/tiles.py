"""Prompts: matrices times many tokens, in tiles of 4 x 4 held in registers."""

from numba import njit

from hotcold.kernels.cpu import rows
from hotcold.kernels.cpu.program import PANEL
from hotcold.kernels.cpu.rows import TILE, dot_rows, dot_tile
from hotcold.kernels.cpu.simd import JIT, load_f32, store_f32, store_i64

_COLUMNS, _DOTS = 0, 64  # this file's part of a thread's scratch memory, in bytes


@njit(**JIT)  # type: ignore[untyped-decorator]
def mul_mat(op, first: int, last: int, n_tokens: int, x: int, y: int, y_stride: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """y[t, r] = w[r] . x[t] for rows first..last-1 and n_tokens tokens; x: packed for a block type."""
    n_tiled = n_tokens // TILE * TILE
    for panel in range(first, last, PANEL):
        end = min(panel + PANEL, last)
        whole = panel + (end - panel) // TILE * TILE
        for t in range(0, n_tiled, TILE):
            for c in range(TILE):
                store_i64(scratch + _COLUMNS + 8 * c, x + (t + c) * op.x_stride)
            for r in range(panel, whole, TILE):
                dot_tile(
                    op.w_type, op.w + r * op.w_stride, op.w_stride, scratch + _COLUMNS, op.k, scratch + _DOTS
                )
                for c in range(TILE):
                    to = y + (t + c) * y_stride + 4 * r
                    for i in range(TILE):
                        store_f32(to + 4 * i, load_f32(scratch + _DOTS + 4 * (TILE * i + c)))
            if whole < end:
                for c in range(t, t + TILE):
                    _token(op, whole, end, x + c * op.x_stride, y + c * y_stride)
        for t in range(n_tiled, n_tokens):
            _token(op, panel, end, x + t * op.x_stride, y + t * y_stride)


@njit(**JIT)  # type: ignore[untyped-decorator]
def _token(op, first: int, last: int, x: int, y: int) -> None:  # type: ignore[no-untyped-def]
    """y[r] = w[r] . x of one token for rows first..last-1."""
    w = op.w + first * op.w_stride
    dot_rows(op.w_type, w, op.w_stride, last - first, x, op.k, rows.AHEAD, y + 4 * first)
