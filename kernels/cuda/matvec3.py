"""Sizes of matvec3.cu."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.add import HAS_BIAS
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.matvec import input_bytes
from hotcold.kernels.cuda.weights import WARP, blocks_of_rows, kernel_name, lanes_of_row
from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.formats import kv_row_bytes
from hotcold.kernels.weight_table import device_row_bytes

Types = tuple[GGMLQuantizationType, GGMLQuantizationType, GGMLQuantizationType]
CACHES = {"f16": 1, "f32": 2}
"""Types of a KV cache that the kernel writes, by its numbers for them. A block of q8_0 has more rows than a block of
threads."""


@dataclass(frozen=True)
class Rooms:
    """Where k and v go, and by which angles q and k turn, as the kernel takes it.

    Attributes:
        kv_type: of the cache, one of `CACHES`; "" for none: then q, k and v go to vectors.
        n_rot: numbers of a head that turn.
        given: cos_sin, positions, keys, values (bytes), head_dim, n_rot / 2, interleaved, rows of the cache, slots.
    """

    kv_type: str
    n_rot: int
    given: tuple[Any, ...]

    @classmethod
    def none(cls, unread: Buffer) -> "Rooms":
        """No cache; a float32 buffer of at least eight bytes stands in for what is not read."""
        of_bytes = unread.view(0, 8, np.uint8)
        pointers = unread.view(0, 2, np.float32), unread.view(0, 1, np.int32), of_bytes, of_bytes
        return cls("", 0, (*pointers, 1, 0, 0, 1, 1))

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The last arguments of the kernel."""
        return *self.given, CACHES.get(self.kv_type, 0)


def matvec3(
    weight_types: Types,
    n_tokens: int,
    n_rows: tuple[int, int, int],
    n: int,
    flags: int = 0,
    kv_type: str = "",
    n_rot: int = 0,
    n_slots: int = 1,
) -> Work:
    """Three products of one input, for q, k and v: y_a = A x + bias_a, and so on, as `matvec` does them.

    Reads the three weights, the input and, with HAS_BIAS, the biases; writes 4 bytes a row and token. RELU holds for
    all three; there is no residual. With a cache the rows of b and c are written there, in its type, in place of y_b
    and y_c, those of a and b turned: 4 bytes of position a token are read, and 4 n_rot of the table (so if no two
    tokens stand at one position), and 4 of its slot with several of them. Heads have an even number of numbers then.

    Args:
        weight_types: of a, b and c; all of them quantised, or none.
        n_rows: of a, b and c.
        kv_type, n_rot: see `Rooms`. n_slots: see `rope_kv_store`.

    Arguments of the kernel: the planes of a, of b and of c; x, or q, d and sum; bias_a, bias_b, bias_c,
    y_a, y_b, y_c, rows_a, rows_b, rows_c, n, flags, and what `Rooms` has.
    """
    rows = sum(n_rows)
    reads = sum(count * device_row_bytes(kind, n) for kind, count in zip(weight_types, n_rows, strict=True))
    reads += max(input_bytes(kind, n_tokens, n) for kind in weight_types)
    reads += 4 * rows if flags & HAS_BIAS else 0
    writes = 4 * n_tokens * rows
    if kv_type:
        reads += n_tokens * (4 * n_rot + 4 + 4 * (n_slots > 1))
        writes = n_tokens * (4 * n_rows[0] + kv_row_bytes(kv_type, n_rows[1] + n_rows[2]))
    a_warp = WARP // lanes_of_row(n, *weight_types)  # each matrix begins with a warp
    places = sum(cover(count, a_warp) * a_warp for count in n_rows)
    grid = (blocks_of_rows(places, n, *weight_types), n_tokens)
    return Work(kernel_name("matvec3", *weight_types), grid, BLOCK, reads, writes)
