"""Sizes of sum_groups.cu."""

from hotcold.kernels.cuda.add import addend_bytes
from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.formats import group_sums_bytes, n_groups

GROUPS_AT_ONCE = 128  # as sum_groups.cu has it


def sum_groups(n_tokens: int, n_rows: int, n: int, flags: int = 0) -> Work:
    """The second reduce, 32 columns a block of threads: y = ((sum + bias) + other) + residual.

    The groups are added in their order.

    Reads the workspace and `addend_bytes`, writes 4 n a token.

    Arguments of the kernel: partial, bias, other, residual, y, groups, n, flags.
    """
    reads = group_sums_bytes(n_tokens, n_rows, n) + addend_bytes(n_tokens, n, flags)
    shared = 4 * 32 * min(n_groups(n_rows), GROUPS_AT_ONCE)
    return Work("sum_groups", (cover(n, 32), n_tokens), BLOCK, reads, 4 * n_tokens * n, shared)
