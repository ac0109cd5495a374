"""Sizes of keep_some.cu."""

from hotcold.kernels.cuda.work import BLOCK, Work

N_AT_ONCE = 1024  # as keep_some.cu has it


def keep_some(n: int, n_before: int = 0) -> Work:
    """All of n numbers become 1 where none is positive; one block of threads.

    Reads whole steps of 1024 numbers up to the first positive one, before which n_before are; where there is none,
    n_before = n, all are read and written.

    Arguments of the kernel: profile, n.
    """
    n_read = min(n, (n_before // N_AT_ONCE + 1) * N_AT_ONCE)
    return Work("keep_some", (1, 1), BLOCK, 4 * n_read, 4 * n if n_before == n else 0)
