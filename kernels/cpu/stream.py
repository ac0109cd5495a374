"""The streaming sum that speeds are compared with: how fast memory gives bytes to all cores."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from hotcold.kernels.cpu import operations
from hotcold.kernels.cpu.compiled import compiled

PART = 1 << 20  # bytes that a thread takes at once


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


@compiled
def _sum_shared(at: int, n_parts: int, cell: int) -> int:
    """Take parts of PART bytes from an atomic cell until none is left."""
    total = 0
    while True:
        part = operations.atomic_add(cell, 1)
        if part >= n_parts:
            return total
        total += _sum_part(at + part * PART, PART)


class StreamingSum:
    """n threads that sum a range of memory together."""

    def __init__(self, n_threads: int) -> None:
        self._pool = ThreadPoolExecutor(n_threads)
        self._n_threads = n_threads
        self._cell = np.zeros(1, np.int64)

    def sum(self, view: NDArray[np.uint8]) -> int:
        """Read the whole of a one-dimensional view, up to a part that is not full; bytes read."""
        n_parts = view.size // PART
        self._cell[0] = 0
        at = int(view.__array_interface__["data"][0])
        cell = self._cell.ctypes.data
        jobs = [self._pool.submit(_sum_shared, at, n_parts, cell) for _ in range(self._n_threads)]
        for job in jobs:
            job.result()
        return n_parts * PART

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
