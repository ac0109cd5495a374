"""Sizes of dense_gated_ffn.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.matvec import input_bytes
from hotcold.kernels.cuda.weights import blocks_of_rows, kernel_name
from hotcold.kernels.cuda.work import BLOCK, Work
from hotcold.kernels.weight_table import device_row_bytes


def gated_ffn_hidden(
    weight_types: tuple[GGMLQuantizationType, GGMLQuantizationType],
    n_tokens: int,
    n_rows: int,
    n: int,
    n_open: int | None = None,
) -> Work:
    """h = act(gate x) * (up x), one warp a row and token, or less: one launch for the gate and the up matrix.

    Reads the input, the gate, and the up rows of the n_open whose value does not end at the gate
    (all if not given; with SiLU and GELU none ends there). Writes 4 n_rows a token. (As with `matvec`,
    each token reads the weights again.)

    Args:
        weight_types: of gate and up; both of them quantised, or none.

    Arguments of the kernel: the planes of gate and of up; x, or q, d and sum; h, n_rows, n, and the
    activation's number in activations.py.
    """
    of_gate, of_up = (device_row_bytes(kind, n) for kind in weight_types)
    reads = n_rows * of_gate + (n_rows if n_open is None else n_open) * of_up
    reads += max(input_bytes(kind, n_tokens, n) for kind in weight_types)
    kernel = kernel_name("gated_ffn_hidden", *weight_types)
    grid = (blocks_of_rows(n_rows, n, *weight_types), n_tokens)
    return Work(kernel, grid, BLOCK, reads, 4 * n_tokens * n_rows)
