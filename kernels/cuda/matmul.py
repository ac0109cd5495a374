"""Sizes of matmul.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.add import addend_bytes
from hotcold.kernels.cuda.weights import kernel_name
from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.tensor_cores import TERMS_OF_INPUTS
from hotcold.kernels.weight_table import QUANTISED, device_row_bytes, weight_type_row

TILE_SIDE = 64
"""Rows, and tokens, of the tile of y that a block of threads works out."""
UNITS = 4
TILE_BYTES, MINIMA_BYTES = (
    2 * TILE_SIDE * (UNITS + 1) * 16 + 4 * UNITS + 2 * UNITS * (TILE_SIDE + 4) * 4,
    2 * UNITS * (TILE_SIDE + 4) * 4,
)
"""Shared memory of one of a block's two tiles, the struct MatmulTile: without its last two arrays, and of those,
which types with minima use."""


def shared_bytes(weight_type: GGMLQuantizationType) -> int:
    """Dynamic shared memory of a block with two tiles; of halves the struct HalvesTile, which is the larger one."""
    if terms := TERMS_OF_INPUTS.get(weight_type):
        scales = 4 * TILE_SIDE if weight_type == GGMLQuantizationType.F16 else 0
        return 2 * ((1 + terms) * TILE_SIDE * UNITS * 16 + scales)
    return 2 * (TILE_BYTES + (MINIMA_BYTES if weight_type_row(weight_type).has_minima else 0))


def tile_input_bytes(weight_type: GGMLQuantizationType, n: int) -> int:
    """Bytes that a tile reads of an input: its sums where blocks of 32 have minima; those of 16 it makes itself."""
    if weight_type not in QUANTISED:
        return 4 * n
    has_sums = weight_type_row(weight_type).has_minima and weight_type != GGMLQuantizationType.Q2_K
    return n + n // 32 * (8 if has_sums else 4)


def matmul(weight_type: GGMLQuantizationType, n_tokens: int, n_rows: int, n: int, flags: int = 0) -> Work:
    """y = residual + act(W x + bias) for any number of tokens, in tiles of 64 rows by 64 tokens.

    Each tile reads its rows and its inputs once. Counted once are the weight, the input, and what the flags (of
    matvec.py) ask for; writes 4 n_rows a token.

    Arguments of the kernel: the weight's planes; x, or q, d and sum; bias, residual, y, n_rows, n, flags,
    n_tokens.
    """
    reads = n_rows * device_row_bytes(weight_type, n) + n_tokens * tile_input_bytes(weight_type, n)
    reads += addend_bytes(n_tokens, n_rows, flags)
    grid = (cover(n_rows, TILE_SIDE), cover(n_tokens, TILE_SIDE))
    writes, shared = 4 * n_tokens * n_rows, shared_bytes(weight_type)
    return Work(kernel_name("matmul", weight_type), grid, BLOCK, reads, writes, shared)
