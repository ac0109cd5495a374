"""Sizes of sparse_ffn.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.matvec import input_bytes
from hotcold.kernels.cuda.repack import packed_row_bytes
from hotcold.kernels.cuda.weights import kernel_suffix
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


def sparse_ffn(
    weight_type: GGMLQuantizationType,
    n_tokens: int,
    n_rows: int,
    n: int,
    n_active: int | None = None,
    n_positive: int | None = None,
) -> Work:
    """One block of threads a group and token.

    Reads, a token: the input, 4 bytes and a gate row for each of the n_active rows, an up and a down row
    for each of the n_positive whose gate is open (all of them if not given). Writes the workspace.

    Arguments of the kernel: the planes of gate, up and down; x, or q, d and sum; ids, count, partial,
    n_rows, n.
    """
    active = n_rows if n_active is None else n_active
    positive = active if n_positive is None else n_positive
    rows = (active + 2 * positive) * packed_row_bytes(weight_type, n)
    reads = n_tokens * (rows + 4 * active + 4) + input_bytes(weight_type, n_tokens, n)
    grid = (n_groups(n_rows), n_tokens)
    writes = workspace_bytes(n_tokens, n_rows, n)
    return Work(f"sparse_ffn_{kernel_suffix(weight_type)}", grid, BLOCK, reads, writes)


def sum_groups(n_tokens: int, n_rows: int, n: int) -> Work:
    """The second reduce: 32 columns a block of threads.

    Reads the workspace, writes 4 n a token.

    Arguments of the kernel: partial, y, groups, n.
    """
    reads = workspace_bytes(n_tokens, n_rows, n)
    return Work("sum_groups", (cover(n, 32), n_tokens), BLOCK, reads, 4 * n_tokens * n)
