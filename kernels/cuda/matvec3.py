"""Sizes of matvec3.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.add import HAS_BIAS
from hotcold.kernels.cuda.matvec import input_bytes
from hotcold.kernels.cuda.weights import kernel_name
from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.weight_table import device_row_bytes

Types = tuple[GGMLQuantizationType, GGMLQuantizationType, GGMLQuantizationType]


def matvec3(weight_types: Types, n_tokens: int, n_rows: tuple[int, int, int], n: int, flags: int = 0) -> Work:
    """Three products of one input, for q, k and v: y_a = A x + bias_a, and so on, as `matvec` does them.

    Reads the three weights, the input and, with HAS_BIAS, the biases; writes 4 bytes a row and
    token. RELU holds for all three; there is no residual.

    Args:
        weight_types: of a, b and c; all of them quantised, or none.
        n_rows: of a, b and c.

    Arguments of the kernel: the planes of a, of b and of c; x, or q, d and sum; bias_a, bias_b, bias_c,
    y_a, y_b, y_c, rows_a, rows_b, rows_c, n, flags.
    """
    rows = sum(n_rows)
    reads = sum(count * device_row_bytes(kind, n) for kind, count in zip(weight_types, n_rows, strict=True))
    reads += max(input_bytes(kind, n_tokens, n) for kind in weight_types)
    reads += 4 * rows if flags & HAS_BIAS else 0
    grid = (cover(rows, BLOCK // 32), n_tokens)
    return Work(kernel_name("matvec3", *weight_types), grid, BLOCK, reads, 4 * n_tokens * rows)
