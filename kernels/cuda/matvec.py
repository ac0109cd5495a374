"""Sizes of matvec.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.quantise import quantised_bytes
from hotcold.kernels.cuda.repack import packed_bytes
from hotcold.kernels.cuda.weights import QUANTISED, kernel_suffix
from hotcold.kernels.cuda.work import BLOCK, Work, cover


def input_bytes(weight_type: GGMLQuantizationType, n_tokens: int, n: int) -> int:
    """Bytes of the activations that a weight of this type reads; Q8_0 has no use for the sums."""
    if weight_type not in QUANTISED:
        return 4 * n_tokens * n
    sums = 4 * n_tokens * n // 32
    return quantised_bytes(n_tokens, n) - (sums if weight_type == GGMLQuantizationType.Q8_0 else 0)


def matvec(weight_type: GGMLQuantizationType, n_tokens: int, n_rows: int, n: int) -> Work:
    """One warp a row and token, eight rows a block of threads.

    Reads the packed weight and the input, writes 4 n_rows a token. (Each token reads the weight again,
    from the cache at best: this kernel is for one token.)

    Arguments of the kernel: the weight's planes; x, or q, d and sum; y, n_rows, n.
    """
    reads = packed_bytes(weight_type, n_rows, n) + input_bytes(weight_type, n_tokens, n)
    grid = (cover(n_rows, BLOCK // 32), n_tokens)
    return Work(f"matvec_{kernel_suffix(weight_type)}", grid, BLOCK, reads, 4 * n_tokens * n_rows)
