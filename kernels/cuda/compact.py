"""Sizes of compact.cu, and of what listing.h reads."""

from hotcold.kernels.cuda.work import BLOCK, Work
from hotcold.kernels.formats import mask_words


def listing_bytes(n_tokens: int, n_ff: int) -> int:
    """Bytes of the masks of tokens, and of the bits of the neurons that are here."""
    return 4 * (n_tokens + 1) * mask_words(n_ff)


def compact(n_tokens: int, n_rows: int, n_ff: int, n_active: int | None = None) -> Work:
    """One block of threads a token.

    Reads `listing_bytes`; writes 4 bytes for each of
    the n_active rows found (all of them if not given) and 4 for their number, a token, and 4
    that it adds to.

    Arguments of the kernel: mask, held, ids, count, total (uint32), n_rows, mask_words(n_ff). ids has n_rows numbers a
    token, and what follows the list is left as it was. held is of all tokens: a bit for each neuron whose row is here.
    """
    found = n_rows if n_active is None else n_active
    writes = n_tokens * 4 * (found + 1) + 4
    return Work("compact", (n_tokens, 1), BLOCK, listing_bytes(n_tokens, n_ff), writes)
