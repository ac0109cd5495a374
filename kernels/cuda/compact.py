"""Sizes of compact.cu."""

from hotcold.kernels.cuda.work import BLOCK, Work


def compact(n_tokens: int, n_rows: int, n_ff: int, n_active: int | None = None) -> Work:
    """One block of threads a token.

    Reads ceil(n_ff / 32) words of mask a token and 4 n_rows of neuron ids; writes 4 bytes for each of
    the n_active rows found (all of them if not given) and 4 for their number, a token, and 4
    that it adds to.

    Arguments of the kernel: mask, neurons, ids, count, total (uint32), n_rows, words from one token's mask to the
    next's. ids and neurons have n_rows numbers (a token), and what follows the list is left as it was.
    """
    found = n_rows if n_active is None else n_active
    reads = n_tokens * 4 * -(-n_ff // 32) + 4 * n_rows
    return Work("compact", (n_tokens, 1), BLOCK, reads, n_tokens * 4 * (found + 1) + 4)
