"""Sizes of rope.cu, and the table that it reads."""

import numpy as np
from numpy.typing import NDArray

from hotcold.kernels.cuda.work import BLOCK, Work, cover

KV_BYTES = {"f16": 2, "f32": 4}
"""Bytes of a number of the KV cache, by its type."""
POSITIONS_AT_ONCE = 4096  # so that the float64 angles of a long context take no memory worth naming


def turns(n_ctx: int, frequencies: NDArray[np.float64]) -> NDArray[np.float32]:
    """Cosine and sine of each pair's angle at each position, float32 [n_ctx, n_rot / 2, 2].

    Worked out in float64, since an angle of thousands has lost its last bits in float32; and once,
    so that card, emulated device and CPU turn by the same bits.

    Args:
        frequencies: angle per position of each pair, as `ref.rope_frequencies` gives them.
    """
    table = np.empty((n_ctx, len(frequencies), 2), np.float32)
    for start in range(0, n_ctx, POSITIONS_AT_ONCE):
        some = table[start : start + POSITIONS_AT_ONCE]
        angles = np.arange(start, start + len(some))[:, None] * frequencies
        some[..., 0], some[..., 1] = np.cos(angles), np.sin(angles)
    return table


def turns_bytes(n_ctx: int, n_rot: int) -> int:
    """Bytes of the table."""
    return 4 * n_ctx * n_rot


def rope_kv_store(
    kv_type: str, n_tokens: int, n_head: int, n_head_kv: int, head_dim: int, n_rot: int
) -> Work:
    """One thread a pair, or a number that does not turn.

    Reads 4 head_dim bytes a head of q, k and v; 4 n_rot of the table and 4 of the position a token (so if
    no two tokens stand at one position). Writes 4 head_dim a head of q_out, and the same numbers of k and v
    in the cache's type.

    Arguments of the kernel: q, k, v, turns, positions, q_out (may be q), keys, values (of one layer,
    [n_head_kv, n_ctx, head_dim]), n_tokens, n_head, n_head_kv, head_dim, n_rot / 2, interleaved, n_ctx.
    With an n_rot of 0 nothing turns and `turns` is not read: any buffer will do. With an n_head of 0
    q and q_out are not touched, and may be k.
    """
    of_q, of_kv = n_tokens * n_head * head_dim, 2 * n_tokens * n_head_kv * head_dim
    pieces = (n_head + n_head_kv) * (head_dim - n_rot // 2) + n_head_kv * head_dim
    reads = 4 * (of_q + of_kv) + n_tokens * (4 * n_rot + 4)
    writes = 4 * of_q + KV_BYTES[kv_type] * of_kv
    return Work(f"rope_kv_store_{kv_type}", (cover(n_tokens * pieces, BLOCK), 1), BLOCK, reads, writes)
