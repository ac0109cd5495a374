"""Sizes of matvec.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda import add
from hotcold.kernels.cuda.weights import blocks_of_rows, kernel_name
from hotcold.kernels.cuda.work import BLOCK, Work
from hotcold.kernels.formats import mask_words, quantised_bytes
from hotcold.kernels.weight_table import QUANTISED, device_row_bytes, weight_type_row

HAS_BIAS, HAS_RESIDUAL, RELU = add.HAS_BIAS, add.HAS_RESIDUAL, 4
"""Bits of `flags`: bias[n_rows] is added to W x, residual[n_tokens][n_rows] is added last, and ReLU comes
between the two. A pointer without its flag is not read: any float buffer will do, y for instance.
residual may be y."""
WHERE_POSITIVE = 16
"""In place of HAS_BIAS: rows where bias is not positive are -infinity, and not read."""


def input_bytes(weight_type: GGMLQuantizationType, n_tokens: int, n: int) -> int:
    """Bytes of the input that a weight of this type reads; most have no use for the sums."""
    if weight_type not in QUANTISED:
        return 4 * n_tokens * n
    sums = 4 * n_tokens * n // 32
    return quantised_bytes(n_tokens, n) - (0 if weight_type_row(weight_type).reads_sums else sums)


def matvec(
    weight_type: GGMLQuantizationType,
    n_tokens: int,
    n_rows: int,
    n: int,
    flags: int = 0,
    n_positive: int | None = None,
) -> Work:
    """y = residual + act(W x + bias), one warp a row and token, or less where rows are short: see `lanes_of_row`.

    Reads the weight, the input and what the flags ask for, writes 4 n_rows a token. (Each token
    reads the weight again, from the cache at best: this kernel is for one token.)

    Args:
        n_positive: rows that `WHERE_POSITIVE` leaves to be read, for the bytes; None for all.

    Arguments of the kernel: the weight's planes; x, or q, d and sum; bias, residual, y, n_rows, n, flags.
    """
    n_read = n_rows if n_positive is None else n_positive
    reads = n_read * device_row_bytes(weight_type, n) + input_bytes(weight_type, n_tokens, n)
    reads += add.addend_bytes(n_tokens, n_rows, flags) + 4 * n_rows * bool(flags & WHERE_POSITIVE)
    grid = (blocks_of_rows(n_rows, n, weight_type), n_tokens)
    return Work(kernel_name("matvec", weight_type), grid, BLOCK, reads, 4 * n_tokens * n_rows)


def matvec_mask(weight_type: GGMLQuantizationType, n_tokens: int, n_rows: int, n: int) -> Work:
    """not (W x < threshold), row i in bit i % 32 of word i // 32: a predictor's second matrix.

    One block of threads a token and word, those of a word side by side. Reads the weight and the input, writes
    `mask_words` a token; the bits after the last row are 0.

    Arguments of the kernel: the weight's planes; x, or q, d and sum; mask (uint32), n_rows, n, threshold.
    """
    reads = n_rows * device_row_bytes(weight_type, n) + input_bytes(weight_type, n_tokens, n)
    words = mask_words(n_rows)
    writes = 4 * n_tokens * words
    return Work(kernel_name("matvec_mask", weight_type), (n_tokens, words), BLOCK, reads, writes)
