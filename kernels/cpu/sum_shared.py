"""The streaming sum of `stream.py`, in machine code."""

from numba import types

from hotcold.kernels.cpu import atomics, operations
from hotcold.kernels.cpu.compiled import compiled, entry


@compiled
def _sum_part(at: int, n: int) -> int:
    """The sum of n bytes (a multiple of 512) as 64-bit words."""
    a = operations.zero_words()
    b = operations.zero_words()
    c = operations.zero_words()
    d = operations.zero_words()
    for p in range(at, at + n, 512):
        a = operations.add_words(operations.add_words(a, p), p + 256)
        b = operations.add_words(operations.add_words(b, p + 64), p + 320)
        c = operations.add_words(operations.add_words(c, p + 128), p + 384)
        d = operations.add_words(operations.add_words(d, p + 192), p + 448)
    return (
        operations.sum_words(a) + operations.sum_words(b) + operations.sum_words(c) + operations.sum_words(d)
    )


@entry("sum_shared", 4, types.int64)
def sum_shared(at: int, n_parts: int, part_bytes: int, cell: int) -> int:
    """Take parts of part_bytes bytes from an atomic cell until none is left."""
    total = 0
    while True:
        part = atomics.atomic_add(cell, 1)
        if part >= n_parts:
            return total
        total += _sum_part(at + part * part_bytes, part_bytes)
