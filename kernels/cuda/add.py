"""Sizes of add.cu, and the flags of addends.h."""

from hotcold.kernels.cuda.work import BLOCK, Work, cover

HAS_BIAS, HAS_RESIDUAL, HAS_OTHER = 1, 2, 8
"""What is added to a sum. An addend that the flags do not name is given as any float buffer, and never
read."""


def addend_bytes(n_tokens: int, n: int, flags: int) -> int:
    """Bytes of the addends that the flags name: 4 n of bias, 4 n a token of each other."""
    has_bias, has_other, has_residual = (bool(flags & flag) for flag in (HAS_BIAS, HAS_OTHER, HAS_RESIDUAL))
    return 4 * n * (has_bias + n_tokens * (has_other + has_residual))


def add(n: int) -> Work:
    """One thread a number: reads 8 n bytes, writes 4 n.

    Arguments of the kernel: a, b, y, n.
    """
    return Work("add", (cover(n, BLOCK), 1), BLOCK, 8 * n, 4 * n)


def merge(n_tokens: int, n: int, flags: int) -> Work:
    """y = ((hot + bias) + other) + residual, one thread a number.

    Reads 4 n a token and `addend_bytes`, writes 4 n a token.

    Arguments of the kernel: hot, bias, other, residual, y, n, flags.
    """
    n_bytes = 4 * n_tokens * n
    grid = (cover(n, BLOCK), n_tokens)
    return Work("merge", grid, BLOCK, n_bytes + addend_bytes(n_tokens, n, flags), n_bytes)
