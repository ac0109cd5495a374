"""KV cache and attention with online softmax.

A layer's cache is [n_head_kv, n_ctx, head_dim] in F16 or F32, so that a head's keys stream in order.
"""

import math

from numba import njit

from hotcold.kernels.cpu import rows, simd
from hotcold.kernels.cpu.simd import JIT, load16, load_f32, store16, store_f32, store_i64

KEYS = 32  # keys between two corrections of the running maximum
# this file's part of a thread's scratch memory, in bytes
_SCORES, _ROWS, _AHEAD, _SUM = 0, 128, 192, 256
MAX_HEAD_DIM = 1024


@njit(**JIT)  # type: ignore[untyped-decorator]
def store_row(kv_type: int, x: int, n: int, to: int) -> None:
    """n float32 to a cache row of F16 or F32."""
    whole = n & ~15
    for i in range(0, whole, 16):
        if kv_type == rows.F16_ID:
            simd.store16_half(to + 2 * i, load16(x + 4 * i))
        else:
            store16(to + 4 * i, load16(x + 4 * i))
    for i in range(whole, n):
        if kv_type == rows.F16_ID:
            simd.store_half(to + 2 * i, load_f32(x + 4 * i))
        else:
            store_f32(to + 4 * i, load_f32(x + 4 * i))


@njit(**JIT)  # type: ignore[untyped-decorator]
def attend(
    kv_type: int,
    q: int,
    keys: int,
    values: int,
    n_keys: int,
    head_dim: int,
    scale: float,
    scratch: int,
    y: int,
) -> None:
    """y = softmax(scale q . keys) . values for one query head over its first n_keys positions.

    Online softmax (Milakov and Gimelshein, 2018): when a block of keys raises the running maximum,
    what has been summed is scaled down to it.

    Args:
        q, y: head_dim float32. keys, values: the head's cache rows. scratch: this thread's memory.
    """
    stride = rows.row_bytes_of_float(kv_type) * head_dim
    scores, total_at = scratch + _SCORES, scratch + _SUM
    for i in range(0, 4 * head_dim, 64):
        store16(total_at + i, simd.zero())
    for r in range(rows.ROWS):
        store_i64(scratch + _AHEAD + 8 * r, rows.ROWS * stride)
    top = simd.to_f32(-math.inf)
    denominator = simd.to_f32(0.0)
    for first in range(0, n_keys, KEYS):
        n = min(KEYS, n_keys - first)
        for j in range(n):
            s = rows.dot_row(kv_type, keys + (first + j) * stride, q, head_dim, rows.AHEAD)
            store_f32(scores + 4 * j, simd.to_f32(s * scale))
        for j in range(n, KEYS):
            store_f32(scores + 4 * j, simd.to_f32(-math.inf))
        block_top = simd.largest16(simd.max16(load16(scores), load16(scores + 64)))
        new_top = max(top, block_top)
        if first > 0 and new_top > top:
            correction = simd.exp16(simd.splat16(top - new_top))
            denominator *= simd.first16(correction)
            for i in range(0, 4 * head_dim, 64):
                store16(total_at + i, simd.mul16(load16(total_at + i), correction))
        top = new_top
        below = simd.splat16(-top)
        p0 = simd.exp16(simd.add16(load16(scores), below))
        p1 = simd.exp16(simd.add16(load16(scores + 64), below))
        store16(scores, p0)
        store16(scores + 64, p1)
        denominator += simd.sum16(simd.add16(p0, p1))
        for j in range(0, n, rows.ROWS):
            for r in range(rows.ROWS):
                # past the end the probability is 0 and the last row stands in
                store_i64(scratch + _ROWS + 8 * r, values + (first + min(j + r, n - 1)) * stride)
            rows.add_rows(
                kv_type, total_at, scratch + _ROWS, scores + 4 * j, 0, head_dim, scratch + _AHEAD, 0
            )
    for i in range(0, 4 * head_dim, 4):
        store_f32(y + i, load_f32(total_at + i) / denominator)
