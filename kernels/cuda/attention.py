"""Sizes of attention.cu.

One launch of `attention` serves any batch and any context. One token that reads more than a part would keep few
multiprocessors busy, and so would one of each of several sequences, so their parts get blocks of their own, of which a
token's last joins them: `attention_part`.
`formats.parts_for` says how many; the bits are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.formats import POSITIONS_A_PART, kv_row_bytes, n_parts, quantised_bytes
from hotcold.kernels.tensor_cores import in_tiles

QUERIES, KEYS = 4, POSITIONS_A_PART  # as attention.cu has them
COLUMNS, MOST_COLUMNS = 8, 16  # as attention_tiles.h has them; eight are a tile
BLOCKS_WANTED = 128
"""So many blocks are worth more than a cache that fewer of them read: as many as a large card has multiprocessors."""


class Sequences(NamedTuple):
    """Whose tokens a launch is about, as the kernels take it.

    Attributes:
        n_slots: sequences that have a cache each, one behind the other as if their heads were more heads of one cache;
            with several the slot of each token lies behind the positions of all.
        n_apart: tokens whose slots are not the same; 1 for those of one sequence.
    """

    n_slots: int = 1
    n_apart: int = 1

    @property
    def slot_bytes(self) -> int:
        """Of slots that attention reads."""
        return 4 * self.n_apart * (self.n_slots > 1)


ONE_SEQUENCE = Sequences()


@dataclass(frozen=True)
class Scores:
    """What becomes of the products of queries and keys, as the kernels take it.

    Attributes:
        sinks: float32 [n_head]; any buffer where there are none.
        has_sinks: 1 or 0.
        window: how many positions a token sees, its own the last; 0: all.
        scale: what scores are multiplied with.
        sequences: whose keys these are.
    """

    sinks: Any
    has_sinks: int
    window: int
    scale: float
    sequences: Sequences = ONE_SEQUENCE

    @classmethod
    def plain(cls, unread: Any, head_dim: int) -> "Scores":
        """Of all positions, by 1 / sqrt(head_dim), without sinks, for which a float32 buffer stands in."""
        return cls(unread, 0, 0, head_dim**-0.5)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As kernels take them, behind their sizes."""
        return self.sinks, self.has_sinks, self.window, self.scale, *self.sequences


class Rounded(NamedTuple):
    """Where answers are rounded to, int8 in blocks of 32 as `quantise` does it: the last arguments of the kernels."""

    q: Any
    d: Any
    sum: Any
    there: int = 1

    @classmethod
    def to(cls, places: Sequence[Any]) -> "Rounded":
        """Numbers, scales and sums."""
        q, d, sums = places
        return cls(q, d, sums)

    @classmethod
    def nowhere(cls, unread: Buffer) -> "Rounded":
        """Any buffer of four bytes stands in for what is not written."""
        q, d, sums = (unread.view(0, 1, dtype) for dtype in (np.int8, np.float32, np.int32))
        return cls(q, d, sums, 0)


def queries_at_once(kv_type: str, n_queries: int, n_head_kv: int, head_dim: int) -> int:
    """How many of a key/value head's queries a block takes at most: 4, or 8 or 16 where they come in tiles."""
    if not in_tiles(kv_type, head_dim):
        return QUERIES
    return COLUMNS if cover(n_queries, MOST_COLUMNS) * n_head_kv < BLOCKS_WANTED else MOST_COLUMNS


def attention(
    kv_type: str,
    n_tokens: int,
    n_head: int,
    n_head_kv: int,
    head_dim: int,
    n_keys: int,
    rounds: bool = False,
    sequences: Sequences = ONE_SEQUENCE,
) -> Work:
    """One block of threads for `queries_at_once` queries of a key/value head, of one sequence.

    Reads 4 head_dim bytes a query, 4 a token, and the first n_keys keys and values of each head of each sequence's
    cache: as many as the token with the highest position reads (n_ctx for the plan). Writes 4 head_dim a
    query, and reads these again where there is more than a part, or to write `quantised_bytes`. With several slots it
    reads those. The grid does not depend on n_keys.

    Arguments of the kernel: q, keys, values (of one layer, [n_slots, n_head_kv, n_rows, head_dim]), positions, y,
    n_tokens, n_head, n_head_kv, head_dim, n_rows, and what `Scores` and `Rounded` have.
    """
    vectors, of_cache = 4 * n_tokens * n_head * head_dim, 2 * n_head_kv * kv_row_bytes(kv_type, head_dim)
    n_queries = n_tokens * (n_head // n_head_kv)
    at_once = queries_at_once(kv_type, n_queries, n_head_kv, head_dim)
    n_apart = sequences.n_apart
    grid = (n_apart * cover(n_queries // n_apart, at_once), n_head_kv)
    reads = vectors * (1 + (rounds or n_keys > KEYS)) + 4 * n_tokens + n_apart * of_cache * n_keys
    reads += sequences.slot_bytes
    writes = vectors + _rounded_bytes(n_tokens, n_head * head_dim, rounds)
    return Work(f"attention_{kv_type}", grid, BLOCK, reads, writes, _shared_bytes(kv_type, head_dim, at_once))


def arrived_bytes(kv_type: str, n_head: int, n_head_kv: int, head_dim: int) -> int:
    """Of what counts the blocks of the same queries of one token, uint32, zero before and after a launch."""
    return 4 * cover(n_head // n_head_kv, _of_a_part(kv_type, head_dim)) * n_head_kv


def _of_a_part(kv_type: str, head_dim: int) -> int:
    """How many queries of a key/value head a block takes at most that has a part of the positions."""
    return COLUMNS if in_tiles(kv_type, head_dim) else QUERIES


def attention_part(
    kv_type: str,
    n_head: int,
    n_head_kv: int,
    head_dim: int,
    parts: int,
    n_keys: int,
    rounds: bool = False,
    sequences: Sequences = ONE_SEQUENCE,
) -> Work:
    """One token of each sequence: a block of threads for 4 queries of a key/value head, or 8, and a part of positions.

    Reads what `attention` does of others. Writes 4 (head_dim + 2) bytes a token, head and part in use, which the last
    block of the same queries reads, `arrived_bytes` and 4 head_dim bytes a query, which are read again to write
    `quantised_bytes`.

    Args:
        parts: that have a block, at least those of any token's positions.

    Arguments of the kernel: q, keys, values, positions, partial, arrived, y, n_head, n_head_kv, head_dim, n_rows,
    parts, and what `Scores` and `Rounded` have.
    """
    n_tokens = sequences.n_apart
    whole = attention(kv_type, n_tokens, n_head, n_head_kv, head_dim, n_keys, False, sequences)
    y, at_once = 4 * n_tokens * n_head * head_dim, _of_a_part(kv_type, head_dim)
    grid = (parts, n_tokens * cover(n_head // n_head_kv, at_once) * n_head_kv)
    partial = 4 * n_tokens * n_head * n_parts(n_keys) * (head_dim + 2)
    reads = whole.bytes_read - y * (n_keys > KEYS) + partial + y * rounds
    writes = (
        partial
        + y
        + n_tokens * arrived_bytes(kv_type, n_head, n_head_kv, head_dim)
        + _rounded_bytes(n_tokens, n_head * head_dim, rounds)
    )
    return Work(
        f"attention_part_{kv_type}", grid, BLOCK, reads, writes, _shared_bytes(kv_type, head_dim, at_once)
    )


def _rounded_bytes(n_tokens: int, n: int, rounds: bool) -> int:
    return quantised_bytes(n_tokens, n) if rounds else 0


def _shared_bytes(kv_type: str, head_dim: int, at_once: int) -> int:
    """The queries in units of eight columns, with a gap; the scores of a tile; four sums a thread.

    Where queries come in tiles there may be more: their halves, 32 numbers at a time, and the halves of a
    part's weights, in the place of which then groups of warps leave sums.
    """
    by_lanes = 4 * (cover(head_dim, 8) * (8 * QUERIES + 4) + QUERIES * KEYS + 4 * BLOCK)
    if not in_tiles(kv_type, head_dim):
        return by_lanes
    n_chunks = cover(head_dim, 32)
    columns = COLUMNS * cover(at_once, COLUMNS)
    sums = 4 * (8 // n_chunks) * columns * (32 * n_chunks + 4)
    by_tiles = 4 * 32 * n_chunks * columns + max(4 * KEYS * (columns + 4), sums)
    return max(by_lanes, by_tiles)
