"""Sizes of rope.cu, and the table that it reads."""

import numpy as np
from numpy.typing import NDArray

from hotcold.kernels.cuda.work import BLOCK, Work, cover


def turns(n_ctx: int, frequencies: NDArray[np.float64]) -> NDArray[np.float32]:
    """Cosine and sine of each pair's angle at each position, float32 [n_ctx, n_rot / 2, 2].

    Worked out in float64, since an angle of thousands has lost its last bits in float32; and once,
    so that card and emulated device turn by the same bits.

    Args:
        frequencies: angle per position of each pair, as `ref.rope_frequencies` gives them.
    """
    angle = np.arange(n_ctx)[:, None] * frequencies
    return np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)


def turns_bytes(n_ctx: int, n_rot: int) -> int:
    """Bytes of the table."""
    return 4 * n_ctx * n_rot


def rope(n_tokens: int, n_head: int, n_rot: int) -> Work:
    """One thread a pair.

    Reads and writes 4 n_rot bytes a head; reads 4 n_rot of the table and 4 of the position a token.

    Arguments of the kernel: x, turns, positions, n_tokens * n_head * n_rot / 2, n_head, head_dim,
    n_rot / 2, interleaved.
    """
    n_pairs, turned = n_tokens * n_head * n_rot // 2, 4 * n_tokens * n_head * n_rot
    reads = turned + n_tokens * (4 * n_rot + 4)
    return Work("rope", (cover(n_pairs, BLOCK), 1), BLOCK, reads, turned)
