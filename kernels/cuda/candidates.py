"""Sizes of candidates.cu."""

from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.formats import CANDIDATE_WORDS, candidate_parts_bytes

KEYS = 2048  # as candidates.cu has it


def candidates(n: int) -> Work:
    """The likeliest tokens of one row of n logits.

    Reads 4 n; writes what counts the blocks, and `candidate_parts_bytes`, which are read again to write
    4 `CANDIDATE_WORDS`.

    Arguments of the kernel: logits, parts (uint64), arrived (uint32, zero before and after), found (int32),
    n, and whether -infinity is what rows have that were left out, and no fault.
    """
    blocks, parts = cover(n, KEYS), candidate_parts_bytes(n)
    return Work(
        "candidates",
        (blocks, 1),
        BLOCK,
        4 * n + parts,
        parts + 4 * CANDIDATE_WORDS + 4,
        shared=8 * KEYS,
    )
