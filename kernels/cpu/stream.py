"""The streaming sum that speeds are compared with: how fast memory gives bytes to all cores."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from hotcold.kernels.cpu import machine_code

PART = 1 << 20  # bytes that a thread takes at once


class StreamingSum:
    """n threads that sum a range of memory together."""

    def __init__(self, n_threads: int) -> None:
        self._kernel = machine_code.entry("sum_shared", ctypes.c_int64, 4)
        self._pool = ThreadPoolExecutor(n_threads)
        self._n_threads = n_threads
        self._cell = np.zeros(1, np.int64)

    def sum(self, view: NDArray[np.uint8]) -> int:
        """Read the whole of a one-dimensional view, up to a part that is not full; bytes read."""
        n_parts = view.size // PART
        self._cell[0] = 0
        at = int(view.__array_interface__["data"][0])
        cell = self._cell.ctypes.data
        if self._n_threads == 1:  # the caller's, whose own time may be taken
            self._kernel(at, n_parts, PART, cell)
            return n_parts * PART
        jobs = [self._pool.submit(self._kernel, at, n_parts, PART, cell) for _ in range(self._n_threads)]
        for job in jobs:
            job.result()
        return n_parts * PART

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
