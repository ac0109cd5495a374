"""Sizes of add.cu."""

from hotcold.kernels.cuda.work import BLOCK, Work, cover


def add(n: int) -> Work:
    """One thread a number: reads 8 n bytes, writes 4 n.

    Arguments of the kernel: a, b, y, n.
    """
    return Work("add", (cover(n, BLOCK), 1), BLOCK, 8 * n, 4 * n)
