"""Sizes of expert_sum.cu."""

from hotcold.kernels.cuda.work import BLOCK, Work, cover


def expert_sum(n_tokens: int, n_used: int, n: int, n_here: int | None = None) -> Work:
    """The sum of each token's pairs by their weights, one thread a number.

    Reads 4 n of each pair whose expert is on the device, what was chosen and the slots; writes 4 n a token.

    Arguments of the kernel: x, slots, chosen (int32), y, n, n_used.
    """
    n_pairs = n_tokens * n_used
    here = n_pairs if n_here is None else n_here
    reads = 4 * n * here + 8 * n_pairs + 4 * here
    return Work("expert_sum", (cover(n, BLOCK), n_tokens), BLOCK, reads, 4 * n_tokens * n)


def mul_sigmoid(n_tokens: int, n: int) -> Work:
    """y = x sigmoid(gate), one thread a number: reads 4 n + 4 a token, writes 4 n.

    Arguments of the kernel: x, gate, y, n.
    """
    return Work("mul_sigmoid", (cover(n, BLOCK), n_tokens), BLOCK, 4 * n_tokens * (n + 1), 4 * n_tokens * n)
