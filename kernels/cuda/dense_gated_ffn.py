"""Sizes of dense_gated_ffn.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.matvec import input_bytes
from hotcold.kernels.cuda.weights import kernel_suffix
from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.formats import FFN_TYPES, device_row_bytes


def gated_ffn_hidden(
    weight_type: GGMLQuantizationType, n_tokens: int, n_rows: int, n: int, n_open: int | None = None
) -> Work:
    """h = act(gate x) * (up x), one warp a row and token: one launch for the gate and the up matrix.

    Reads the input, the gate, and the up rows of the n_open whose value does not end at the gate
    (all if not given; with SiLU and GELU none ends there). Writes 4 n_rows a token. (As with `matvec`,
    each token reads the weights again.)

    Arguments of the kernel: the planes of gate and of up; x, or q, d and sum; h, n_rows, n, and the
    activation's number in activations.py.
    """
    rows = n_rows + (n_rows if n_open is None else n_open)
    reads = rows * device_row_bytes(weight_type, n) + input_bytes(weight_type, n_tokens, n)
    kernel = f"gated_ffn_hidden_{kernel_suffix(weight_type, FFN_TYPES)}"
    return Work(kernel, (cover(n_rows, BLOCK // 32), n_tokens), BLOCK, reads, 4 * n_tokens * n_rows)
