"""Sizes of matmul_transposed.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.weights import kernel_name
from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.weight_table import device_row_bytes

TILE_SIDE = 64
"""Tokens, and columns, of the tile of y that a block of threads works out."""
TILE_BYTES = 4 * (32 * TILE_SIDE + TILE_SIDE * 33)
"""Dynamic shared memory of a block: the struct DownTile."""


def matmul_transposed(weight_type: GGMLQuantizationType, n_tokens: int, n_rows: int, n: int) -> Work:
    """y[t, j] = sum_r h[t, r] down[r, j], in tiles of 64 tokens by 64 columns.

    For the down matrix of an FFN that is split by neurons, one row a neuron. h is float32 for every type.

    Counted once are the weight and 4 n_rows a token; writes 4 n a token.

    Arguments of the kernel: the weight's planes, h, y, n_rows, n, n_tokens.
    """
    reads = n_rows * device_row_bytes(weight_type, n) + 4 * n_tokens * n_rows
    grid = (cover(n, TILE_SIDE), cover(n_tokens, TILE_SIDE))
    kernel = kernel_name("matmul_transposed", weight_type)
    return Work(kernel, grid, BLOCK, reads, 4 * n_tokens * n, TILE_BYTES)
