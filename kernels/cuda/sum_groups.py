"""Sizes of sum_groups.cu, and the groups into which the sparse FFNs cut their rows."""

from hotcold.kernels.cuda.add import addend_bytes
from hotcold.kernels.cuda.work import BLOCK, Work, cover

ROWS_A_GROUP, MOST_GROUPS = 64, 128


def n_groups(n_rows: int) -> int:
    """Into how many groups the active of n_rows are cut: min(ceil(n_rows / 64), 128).

    A function of the plan alone, so that sums have the same order in every run.
    """
    return min(cover(n_rows, ROWS_A_GROUP), MOST_GROUPS)


def workspace_bytes(n_tokens: int, n_rows: int, n: int) -> int:
    """Bytes of the partial sums: 4 n for each group and token."""
    return 4 * n_tokens * n_groups(n_rows) * n


def sum_groups(n_tokens: int, n_rows: int, n: int, flags: int = 0) -> Work:
    """The second reduce, 32 columns a block of threads: y = ((sum + bias) + other) + residual.

    Reads the workspace and `addend_bytes`, writes 4 n a token.

    Arguments of the kernel: partial, bias, other, residual, y, groups, n, flags.
    """
    reads = workspace_bytes(n_tokens, n_rows, n) + addend_bytes(n_tokens, n, flags)
    return Work("sum_groups", (cover(n, 32), n_tokens), BLOCK, reads, 4 * n_tokens * n)
