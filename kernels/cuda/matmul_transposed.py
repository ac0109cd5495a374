"""Sizes of matmul_transposed.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.weights import kernel_name
from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.formats import n_groups
from hotcold.kernels.weight_table import device_row_bytes

TILE_TOKENS, TILE_COLUMNS = 32, 64
"""Of y, that a block of threads works out."""
TILE_BYTES = 2 * 4 * 32 * (TILE_COLUMNS + TILE_TOKENS + 4 + 1) + 32 * TILE_TOKENS + 16
"""Dynamic shared memory of a block: the struct DownTile."""


def matmul_transposed(
    weight_type: GGMLQuantizationType, n_tokens: int, n_rows: int, n: int, has_list: bool = False
) -> Work:
    """y[t, j] = sum_r h[t, r] down[r, j], in tiles of 32 tokens by 64 columns.

    For the down matrix of an FFN that is split by neurons, one row a neuron. h is float32 for every type. The
    order of the sums is that of the sparse FFNs, whose groups share out the rows of a token's list.

    Counted once are the weight and 4 n_rows a token; and with lists, 4 bytes a token and for each group but
    the first (as if all rows were listed). Writes 4 n a token.

    Arguments of the kernel: the weight's planes, h, ids, count, y, n_rows, n, n_tokens, n_groups(n_rows),
    has_list. Without lists any int32 buffer is given for ids and count.
    """
    reads = n_rows * device_row_bytes(weight_type, n) + 4 * n_tokens * n_rows
    reads += 4 * n_tokens * cover(n_rows, cover(n_rows, n_groups(n_rows))) if has_list else 0
    grid = (cover(n_tokens, TILE_TOKENS), cover(n, TILE_COLUMNS))
    kernel = kernel_name("matmul_transposed", weight_type)
    return Work(kernel, grid, BLOCK, reads, 4 * n_tokens * n, TILE_BYTES)
