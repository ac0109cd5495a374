"""Sizes of sparse_gated_ffn.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.matvec import input_bytes
from hotcold.kernels.cuda.weights import kernel_suffix
from hotcold.kernels.cuda.work import BLOCK, Work
from hotcold.kernels.formats import FFN_TYPES, device_row_bytes, group_sums_bytes, n_groups


def sparse_gated_ffn(
    weight_type: GGMLQuantizationType,
    n_tokens: int,
    n_rows: int,
    n: int,
    n_active: int | None = None,
    n_open: int | None = None,
) -> Work:
    """One block of threads a group and token.

    Reads, a token: the input, 4 bytes and a gate row for each of the n_active rows, an up and a down row
    for each of the n_open whose hidden value is not zero (all of them if not given; silu opens all).
    Writes the workspace. (Each token reads its rows anew: this kernel is for few tokens.)

    Arguments of the kernel: the planes of gate, up and down; x, or q, d and sum; ids, count, partial,
    n_rows, n, activation (relu, silu or relu_both of `formats.ACTIVATIONS`).
    """
    active = n_rows if n_active is None else n_active
    opened = active if n_open is None else n_open
    rows = (active + 2 * opened) * device_row_bytes(weight_type, n)
    reads = n_tokens * (rows + 4 * active + 4) + input_bytes(weight_type, n_tokens, n)
    grid = (n_groups(n_rows), n_tokens)
    writes = group_sums_bytes(n_tokens, n_rows, n)
    return Work(f"sparse_gated_ffn_{kernel_suffix(weight_type, FFN_TYPES)}", grid, BLOCK, reads, writes)
