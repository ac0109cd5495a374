"""The way of rows to a device: page-locked memory of several parts, which the team fills while others are copied.

The team repacks rows on the way (`kernels/cpu/to_planes.py`), those of a list or all of them.
"""

from collections.abc import Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.device.matrix import DeviceMatrix
from hotcold.engine.graph.arena import aligned
from hotcold.kernels.cpu import program
from hotcold.kernels.cpu.team import Program, Team
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.planes import planes
from hotcold.kernels.weight_table import block_bytes, device_row_bytes, n_blocks

N_PARTS = 4  # copies that are under way while the next part is filled
STAGING_BYTES = 16 << 20
SMALL_BYTES = 256 << 10  # no row is longer


class Staging:
    """Page-locked memory in parts, which are filled in turn; each waits for its last copy."""

    def __init__(self, device: Device, most: int) -> None:
        """Allocate.

        Args:
            most: bytes that are ever sent together: two parts that hold them are enough.

        Raises:
            DoesNotFitError: no page-locked memory.
        """
        self.device = device
        self.part = aligned(min(STAGING_BYTES // N_PARTS, max(most // 2, min(most, SMALL_BYTES))))
        self.pinned = device.pinned(N_PARTS * self.part, np.uint8)
        self.events = [device.event() for _ in range(N_PARTS)]
        self.turn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.device.copy.synchronize()
        finally:
            self.free()

    def free(self) -> None:
        """Give the memory back; nothing may be under way."""
        self.pinned.free()

    def send(
        self, team: Team, rows: NDArray[np.uint8], chosen: NDArray[np.int32] | None, matrix: DeviceMatrix
    ) -> Iterator[int]:
        """Copy rows of the file to a matrix; the bytes of each copy.

        Args:
            team: that repacks them.
            rows: uint8 [n, bytes of a row in the file].
            chosen: which of them, int32 [matrix.n_rows]; None for the first.
        """
        kind, n = matrix.weight.type, matrix.n
        row_bytes = device_row_bytes(kind, n)
        at_once = max(1, self.part // row_bytes)
        job, made_for = None, 0
        for first in range(0, matrix.n_rows, at_once):
            count = min(at_once, matrix.n_rows - first)
            staged = self._next(count * row_bytes)
            if job is None or count != made_for:
                parts, made_for = planes(kind, count, n), count
                entries = np.array(
                    [[p.field.start, p.field.n_bytes, p.offset, p.row_bytes] for p in parts], np.int64
                )
                job = Program([_record(rows, count, matrix, entries)])
            job.ops["y"] = staged.ctypes.data
            if chosen is None:
                job.ops["w"] = _address(rows) + first * rows.strides[0]
            else:
                job.ops["listed"] = chosen[first:].ctypes.data
            team.walk(job)
            for plane, buffer in zip(parts, matrix.planes, strict=True):
                n_bytes = count * plane.row_bytes
                self._upload(plane.offset, n_bytes, buffer, first * plane.row_bytes)
                yield n_bytes
            self.events[self.turn].record(self.device.copy)

    def copy(self, array: NDArray[np.generic], buffer: Buffer) -> None:
        """Copy an array of any size."""
        raw = array.reshape(-1).view(np.uint8)
        for first in range(0, raw.size, self.part):
            piece = raw[first : first + self.part]
            self._next(piece.size)[:] = piece
            self._upload(0, piece.size, buffer, first)
            self.events[self.turn].record(self.device.copy)

    def _next(self, n_bytes: int) -> NDArray[np.uint8]:
        """The next part's first n bytes, free to be written."""
        self.turn = (self.turn + 1) % N_PARTS
        self.events[self.turn].synchronize()
        start = self.turn * self.part
        staged: NDArray[np.uint8] = self.pinned.view(start, n_bytes, np.uint8).array
        return staged

    def _upload(self, start: int, n_bytes: int, buffer: Buffer, offset: int) -> None:
        host = self.pinned.view(self.turn * self.part + start, n_bytes, np.uint8)
        self.device.upload(buffer.view(offset, n_bytes, np.uint8), host, self.device.copy)


def _record(
    rows: NDArray[np.uint8], count: int, matrix: DeviceMatrix, entries: NDArray[np.int64]
) -> dict[str, int]:
    """The op that repacks some rows, but for which ones and where to."""
    of_file = rows.strides[0]
    return {
        "code": program.TO_PLANES,
        "chunks": min(4 * program.row_chunks(count, of_file), program.MAX_CHUNKS, count),
        "w": _address(rows),
        "w_stride": of_file,
        "n_rows": count,
        "k": n_blocks(matrix.weight.type, matrix.n),
        "x": entries.ctypes.data,
        "z_stride": block_bytes(matrix.weight.type),
        "n_parts": len(entries),
    }


def _address(rows: NDArray[np.uint8]) -> int:
    return int(rows.__array_interface__["data"][0])
