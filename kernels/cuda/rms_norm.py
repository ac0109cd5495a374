"""Sizes of rms_norm.cu."""

from hotcold.kernels.cuda.work import BLOCK, Work
from hotcold.kernels.formats import quantised_bytes


def rms_norm(n_tokens: int, n: int) -> Work:
    """One block of threads a token.

    Reads 4 n a token and the weight's 4 n once, writes 4 n a token.

    Arguments of the kernel: x, weight, y, n, eps.
    """
    return Work("rms_norm", (n_tokens, 1), BLOCK, 4 * (n_tokens + 1) * n, 4 * n_tokens * n)


def rms_norm_quantised(n_tokens: int, n: int, rounds_x: bool = False) -> Work:
    """As `rms_norm`, but writes `quantised_bytes`, with rounds_x twice: of x too; n is a multiple of 32.

    Arguments of the kernel: x, weight, q, d, sum, then the same three of x or any, n, eps, rounds_x.
    """
    reads = 4 * (n_tokens + 1) * n
    writes = (1 + rounds_x) * quantised_bytes(n_tokens, n)
    return Work("rms_norm_quantised", (n_tokens, 1), BLOCK, reads, writes)
