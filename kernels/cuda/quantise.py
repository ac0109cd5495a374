"""Sizes of quantise.cu."""

from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.formats import quantised_bytes


def quantise(n_tokens: int, n: int) -> Work:
    """Four numbers a thread.

    Reads 4 n a token, writes `quantised_bytes`.

    Arguments of the kernel: x, q, d, sum, n_tokens * n / 32.
    """
    grid = cover(n_tokens * n, 4 * BLOCK)
    return Work("quantise", (grid, 1), BLOCK, 4 * n_tokens * n, quantised_bytes(n_tokens, n))
