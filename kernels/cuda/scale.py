"""Sizes of scale.cu."""

from hotcold.kernels.cuda.work import BLOCK, Work, cover


def scale(n: int) -> Work:
    """One thread a number: reads 4 n bytes, writes 4 n.

    Arguments of the kernel: x, y, n, factor.
    """
    return Work("scale", (cover(n, BLOCK), 1), BLOCK, 4 * n, 4 * n)
