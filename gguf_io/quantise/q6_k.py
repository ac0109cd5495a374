"""Q6_K: 16 groups of 16 numbers, each with a signed 8-bit scale of one half float.

A block: 128 bytes of low bits, 64 of high bits, 16 scales, the half float. Halves of 128 levels, each four
32s: low bits of the first and third 32 share bytes, and of the second and fourth.
"""

import numpy as np

from hotcold.gguf_io.quantise.halves import put_half
from hotcold.gguf_io.quantise.jit import kernel
from hotcold.gguf_io.quantise.search import ONE, SMALLEST, divide_to, floats, largest, signed_scale, squares

BLOCK, GROUP, N_GROUPS, SIZE = 256, 16, 16, 210
HIGH, SCALES, D = 128, 192, 208  # where they begin
TOP, SCALE_TOP = np.float32(32), np.float32(128)


@kernel
def q6_k(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """Rows [n_rows, n] to bytes; importance [n] or nothing is the weights themselves."""
    levels, scales, weights, trial = floats(BLOCK), floats(N_GROUPS), floats(GROUP), floats(GROUP)
    for row in range(len(rows)):
        for i in range(rows.shape[1] // BLOCK):
            x = rows[row, i * BLOCK : (i + 1) * BLOCK]
            for j in range(N_GROUPS):
                part = slice(j * GROUP, (j + 1) * GROUP)
                if len(importance):
                    weights[:] = importance[i * BLOCK + j * GROUP : i * BLOCK + (j + 1) * GROUP]
                else:
                    squares(x[part], weights)
                scales[j] = signed_scale(x[part], weights, TOP, levels[part], trial)
            put_block(x, scales, levels, out[row, i * SIZE : (i + 1) * SIZE])


@kernel
def put_block(x: np.ndarray, scales: np.ndarray, levels: np.ndarray, block: np.ndarray) -> None:
    """Rounds the scales, then the levels by them, and stores both."""
    far = largest(scales)
    if not abs(far) >= SMALLEST:
        block[:] = 0
        return
    factor = -SCALE_TOP / far
    d = put_half(block, D, ONE / factor)
    for j in range(N_GROUPS):
        scale = min(np.rint(factor * scales[j]), SCALE_TOP - ONE)
        block[SCALES + j] = np.int64(scale) & 255
        if d * scale != 0:
            part = slice(j * GROUP, (j + 1) * GROUP)
            divide_to(x[part], d * scale, -TOP, TOP - ONE, levels[part])
    for half in range(2):
        for j in range(32):
            at = 128 * half + j
            a, b = np.int64(levels[at] + TOP), np.int64(levels[at + 32] + TOP)
            c, e = np.int64(levels[at + 64] + TOP), np.int64(levels[at + 96] + TOP)
            block[64 * half + j] = a & 15 | (c & 15) << 4
            block[64 * half + 32 + j] = b & 15 | (e & 15) << 4
            block[HIGH + 32 * half + j] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | e >> 4 << 6
