"""Sizes of top_k.cu."""

from hotcold.kernels.cuda.work import Work
from hotcold.kernels.formats import chosen_bytes


def top_k(n_tokens: int, n_expert: int, n_used: int) -> Work:
    """The experts of each token and their weights, one warp a token.

    Reads 4 n_expert a token, writes `chosen_bytes` and reads them again.

    Arguments of the kernel: logits, chosen (int32), n_expert, n_used, the gating's number in formats.py, normed,
    scale.
    """
    written = chosen_bytes(n_tokens, n_used)
    return Work("top_k", (n_tokens, 1), 32, 4 * n_tokens * n_expert + written, written)
