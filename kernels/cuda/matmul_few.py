"""Sizes of matmul_few.cu, and which products of a batch it is for."""

from dataclasses import replace

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.matmul import TILE_SIDE, matmul
from hotcold.kernels.cuda.weights import kernel_name
from hotcold.kernels.cuda.work import Work, cover
from hotcold.kernels.weight_table import QUANTISED

FEW_SIDE = 16
"""Rows, and tokens, of a tile."""
FEW_SHARED = 8 * (FEW_SIDE * 5 * 16 + 4 * 4 * FEW_SIDE * 4)
"""Bytes of shared memory of a block: a step of each of its warps, the struct FewStep."""


def matmul_few(weight_type: GGMLQuantizationType, n_tokens: int, n_rows: int, n: int, flags: int = 0) -> Work:
    """`matmul` in tiles of 16 rows by 16 tokens whose chains the warps of a block share out.

    Bytes and arguments are those of `matmul`, and so are the bits.
    """
    grid, kernel = (
        (cover(n_rows, FEW_SIDE), cover(n_tokens, FEW_SIDE)),
        kernel_name("matmul_few", weight_type),
    )
    return replace(
        matmul(weight_type, n_tokens, n_rows, n, flags), kernel=kernel, grid=grid, shared=FEW_SHARED
    )


def batch_product(
    weight_type: GGMLQuantizationType, n_tokens: int, n_rows: int, n: int, flags: int, n_sm: int
) -> Work:
    """`matmul_few` or `matmul`, by what fills a device of n_sm multiprocessors.

    Large tiles read their inputs and rows less often, but up to 16 tokens both kinds read each row once, and where
    there are fewer large ones than multiprocessors some of these have nothing to do. Inputs of floats have four times
    the bytes, so that small tiles, which ask for them four times as often, are for half as many.
    """
    n_sm = n_sm if weight_type in QUANTISED else n_sm // 2
    tiles = cover(n_rows, TILE_SIDE) * cover(n_tokens, TILE_SIDE)
    is_few = n_tokens <= FEW_SIDE or tiles < n_sm
    return (matmul_few if is_few else matmul)(weight_type, n_tokens, n_rows, n, flags)
