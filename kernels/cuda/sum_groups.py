"""Sizes of sum_groups.cu."""

from hotcold.kernels.cuda.add import addend_bytes
from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.formats import group_sums_bytes


def sum_groups(n_tokens: int, n_rows: int, n: int, flags: int = 0) -> Work:
    """The second reduce, 32 columns a block of threads: y = ((sum + bias) + other) + residual.

    Reads the workspace and `addend_bytes`, writes 4 n a token.

    Arguments of the kernel: partial, bias, other, residual, y, groups, n, flags.
    """
    reads = group_sums_bytes(n_tokens, n_rows, n) + addend_bytes(n_tokens, n, flags)
    return Work("sum_groups", (cover(n, 32), n_tokens), BLOCK, reads, 4 * n_tokens * n)
