"""Sizes of rope.cu."""

from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.formats import kv_row_bytes


def rope_kv_store(
    kv_type: str, n_tokens: int, n_head: int, n_head_kv: int, head_dim: int, n_rot: int, n_slots: int = 1
) -> Work:
    """One thread a pair, or a number that does not rotate; for q8_0 one a number of k and v.

    Reads 4 head_dim bytes a head of q, k and v; 4 n_rot of the table and 4 of the position a token (so if
    no two tokens stand at one position), and with several slots 4 of its slot. Writes 4 head_dim a head of
    q_out, and the same numbers of k and v in the cache's type.

    Arguments of the kernel: q, k, v, cos_sin, positions, q_out (may be q), keys, values (of one layer,
    [n_slots, n_head_kv, n_rows, head_dim]; q8_0 has all bytes, then all scales), n_tokens, n_head, n_head_kv, head_dim,
    n_rot / 2, interleaved, n_rows, n_slots. With several slots those of the tokens lie behind the positions of all.
    With an n_rot of 0 nothing cos_sin and `cos_sin` is not read: any buffer will do. With an n_head of 0
    q and q_out are not touched, and may be k.
    """
    of_q, of_kv = n_tokens * n_head * head_dim, 2 * n_tokens * n_head_kv * head_dim
    pieces = (n_head + n_head_kv) * (head_dim - n_rot // 2) + n_head_kv * head_dim
    if kv_type == "q8_0":  # warps round blocks
        pieces = cover(n_head * (head_dim - n_rot // 2), 32) * 32 + 2 * n_head_kv * head_dim
    reads = 4 * (of_q + of_kv) + n_tokens * (4 * n_rot + 4 + 4 * (n_slots > 1))
    writes = 4 * of_q + kv_row_bytes(kv_type, of_kv)
    return Work(f"rope_kv_store_{kv_type}", (cover(n_tokens * pieces, BLOCK), 1), BLOCK, reads, writes)
