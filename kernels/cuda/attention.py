"""Sizes of attention.cu.

One launch of `attention` serves any batch and any context. One token of a long context would keep few
multiprocessors busy, so its parts get blocks of their own: `attention_part`, then `attention_join`.
`formats.is_split` says which way a launch goes; the bits are the same.
"""

from dataclasses import dataclass
from typing import Any

from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.formats import POSITIONS_A_PART, kv_row_bytes, n_parts

QUERIES, KEYS = 4, POSITIONS_A_PART  # as attention.cu has them


@dataclass(frozen=True)
class Scores:
    """What becomes of the products of queries and keys, as the kernels take it.

    Attributes:
        sinks: float32 [n_head]; any buffer where there are none.
        has_sinks: 1 or 0.
        window: how many positions a token sees, its own the last; 0: all.
        scale: what scores are multiplied with.
    """

    sinks: Any
    has_sinks: int
    window: int
    scale: float

    @classmethod
    def plain(cls, unread: Any, head_dim: int) -> "Scores":
        """Of all positions, by 1 / sqrt(head_dim), without sinks, for which a float32 buffer stands in."""
        return cls(unread, 0, 0, head_dim**-0.5)

    @property
    def of_attention(self) -> tuple[Any, int, int, float]:
        """The last arguments of `attention`."""
        return self.sinks, self.has_sinks, self.window, self.scale

    @property
    def of_part(self) -> tuple[int, float]:
        """The last arguments of `attention_part`."""
        return self.window, self.scale

    @property
    def of_join(self) -> tuple[Any, int, int]:
        """The last arguments of `attention_join`."""
        return self.sinks, self.has_sinks, self.window


def parts_in_use(n_keys: int) -> int:
    """How many parts have positions of a token that reads n_keys from the first on."""
    return cover(n_keys, KEYS)


def attention(kv_type: str, n_tokens: int, n_head: int, n_head_kv: int, head_dim: int, n_keys: int) -> Work:
    """One block of threads for four queries of a key/value head.

    Reads 4 head_dim bytes a query, 4 a token, and the first n_keys keys and values of each head of the
    cache: as many as the token with the highest position reads (n_ctx for the plan). Writes 4 head_dim a
    query, and reads these again where there is more than a part. The grid does not depend on n_keys.

    Arguments of the kernel: q, keys, values (of one layer, [n_head_kv, n_rows, head_dim]), positions, y,
    n_tokens, n_head, n_head_kv, head_dim, n_rows, and what `Scores` has.
    """
    vectors, of_cache = 4 * n_tokens * n_head * head_dim, 2 * n_head_kv * kv_row_bytes(kv_type, head_dim)
    grid = (cover(n_tokens * (n_head // n_head_kv), QUERIES), n_head_kv)
    reads = vectors * (1 + (n_keys > KEYS)) + 4 * n_tokens + of_cache * n_keys
    return Work(f"attention_{kv_type}", grid, BLOCK, reads, vectors, _shared_bytes(head_dim))


def attention_part(kv_type: str, n_head: int, n_head_kv: int, head_dim: int, n_ctx: int, n_keys: int) -> Work:
    """One token: one block of threads for four queries of a key/value head and a part of the positions.

    Reads what `attention` does of others. Writes 4 (head_dim + 2) bytes a head and part in use.

    Arguments of the kernel: q, keys, values, positions, partial, n_head, n_head_kv, head_dim, n_rows,
    n_parts(n_rows), window, scale.
    """
    whole = attention(kv_type, 1, n_head, n_head_kv, head_dim, n_keys)
    grid = (n_parts(n_ctx), whole.grid[0] * n_head_kv)
    writes = 4 * n_head * parts_in_use(n_keys) * (head_dim + 2)
    reads = whole.bytes_read - 4 * n_head * head_dim * (n_keys > KEYS)
    return Work(f"attention_part_{kv_type}", grid, BLOCK, reads, writes, whole.shared)


def attention_join(n_head: int, head_dim: int, n_keys: int) -> Work:
    """The second reduce, of one token: one thread a number of y.

    Reads the parts in use and 4 bytes, writes 4 head_dim a head.

    Arguments of the kernel: partial, positions, y, n_head, head_dim, n_parts(n_rows), sinks, has_sinks,
    window.
    """
    reads = 4 * n_head * parts_in_use(n_keys) * (head_dim + 2) + 4
    grid = (cover(n_head * head_dim, BLOCK), 1)
    return Work("attention_join", grid, BLOCK, reads, 4 * n_head * head_dim)


def _shared_bytes(head_dim: int) -> int:
    """The queries in units of eight columns, with a gap; the scores of a tile; four sums a thread."""
    return 4 * (cover(head_dim, 8) * (8 * QUERIES + 4) + QUERIES * KEYS + 4 * BLOCK)
