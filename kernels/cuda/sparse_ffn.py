"""Sizes of sparse_ffn.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.compact import listing_bytes
from hotcold.kernels.cuda.matvec import input_bytes
from hotcold.kernels.cuda.weights import kernel_name
from hotcold.kernels.cuda.work import BLOCK, Work
from hotcold.kernels.formats import group_sums_bytes, n_groups
from hotcold.kernels.weight_table import device_row_bytes


def sparse_ffn(
    weight_types: tuple[GGMLQuantizationType, GGMLQuantizationType],
    n_tokens: int,
    n_rows: int,
    n: int,
    n_ff: int,
    n_active: int | None = None,
    n_open: int | None = None,
    has_bias: bool = True,
) -> Work:
    """One block of threads a group and token.

    Reads, a token: the input, an up row for each of the n_active rows, 8 bytes for each if
    there is a bias, a down row for each of the n_open whose hidden value is not zero (all of them if
    not given); and `listing_bytes`. Writes the workspace, and 4 bytes that the rows found are added to.

    Args:
        weight_types: of up and down.
        n_ff: neurons of the masks.

    Arguments of the kernel: the planes of up and down; x, or q, d and sum; bias, neurons, mask, held, total (uint32),
    partial, mask_words(n_ff), n, has_bias, activation (of `formats.ACTIVATIONS`). mask and held: see
    `compact`. bias[n_ff] has the numbers of all neurons, and neurons[n_rows] says which of them each row is.
    Without a bias, any float buffer is given for it and `neurons` is not read.
    """
    active = n_rows if n_active is None else n_active
    opened = active if n_open is None else n_open
    of_up, of_down = (device_row_bytes(kind, n) for kind in weight_types)
    rows = active * of_up + opened * of_down
    reads = n_tokens * (rows + 4 * active * (2 if has_bias else 0)) + listing_bytes(n_tokens, n_ff)
    reads += input_bytes(weight_types[0], n_tokens, n)
    grid = (n_groups(n_rows), n_tokens)
    writes = group_sums_bytes(n_tokens, n_rows, n) + 4
    return Work(kernel_name("sparse_ffn", *weight_types), grid, BLOCK, reads, writes)
