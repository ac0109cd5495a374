"""Where kernels are measured: arrays to and from a device, its clock, and weights that no cache holds."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import DTypeLike, NDArray
from random_model import random_rows

from hotcold.gguf_io import blocks
from hotcold.kernels.cuda import planes
from hotcold.kernels.cuda.device.buffers import ArrayShape, Buffer
from hotcold.kernels.cuda.device.cuda_driver import CudaDriver
from hotcold.kernels.cuda.device.device import Device, Prepared
from hotcold.kernels.cuda.quantise import quantise
from hotcold.kernels.cuda.weights import weight_planes
from hotcold.kernels.weight_table import QUANTISED, device_row_bytes

Array = NDArray[Any]
COPY_BYTES = 1 << 30
MOST_ENQUEUED = 512
"""Launches at once: CUDA's queue holds 1024 before the host has to wait."""


class Clock(Protocol):
    """Tells how long a device takes."""

    def seconds(self, launches: Sequence[Prepared], repeats: int) -> float:
        """Of one launch, on average: all of them in turn, several times."""

    def copy_bandwidth(self) -> float:
        """Bytes a second that a copy within the device reads and writes, both counted."""

    def close(self) -> None:
        """Free what it needs."""


class HostClock:
    """For a device without a clock: the host's, around launches and a wait."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def seconds(self, launches: Sequence[Prepared], repeats: int) -> float:
        """See `Clock`."""
        self.device.synchronize()
        started = time.perf_counter()
        for launch in list(launches) * repeats:
            self.device.run(launch, self.device.compute)
        self.device.synchronize()
        return (time.perf_counter() - started) / (repeats * len(launches))

    def copy_bandwidth(self) -> float:
        """Of the host's memory: the emulated device has no other."""
        source, target = np.ones((2, 64 << 20), np.uint8)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            np.copyto(target, source)
            times.append(time.perf_counter() - started)
        return 2 * source.nbytes / min(times)

    def close(self) -> None:
        """It needs nothing."""


class CardClock:
    """A card's own, by events.

    Launches wait in the queue behind copies that take longer than the host needs to enqueue them, so that the
    card never waits for the host.
    """

    def __init__(self, device: Device, driver: CudaDriver) -> None:
        self.device, self.cupy, self.stream = device, driver.cupy, device.compute.raw
        driver.card.use()
        free, _ = device.memory()
        n_bytes = min(COPY_BYTES, free // 8)
        self.source, self.target = device.empty(n_bytes, "u1"), device.empty(n_bytes, "u1")
        self.start, self.end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        self._copy(2)
        self.copy_seconds = min(self._timed(lambda: self._copy(4)) / 4 for _ in range(5))

    def _copy(self, times: int) -> None:
        runtime = self.cupy.cuda.runtime
        for _ in range(times):
            kind, stream = runtime.memcpyDeviceToDevice, self.stream.ptr
            runtime.memcpyAsync(self.target.address, self.source.address, self.source.n_bytes, kind, stream)

    def _timed(self, enqueue: Callable[[], None]) -> float:
        self.start.record(self.stream)
        enqueue()
        self.end.record(self.stream)
        self.end.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(self.start, self.end)) / 1e3

    def seconds(self, launches: Sequence[Prepared], repeats: int) -> float:
        """See `Clock`."""
        some = (list(launches) * repeats)[:MOST_ENQUEUED]

        def enqueue() -> None:
            for launch in some:
                self.device.run(launch, self.device.compute)

        started = time.perf_counter()
        enqueue()  # also what the first launch of a kernel takes
        on_the_host = time.perf_counter() - started
        self.device.synchronize()
        self._copy(1 + int(2 * on_the_host / self.copy_seconds))
        return self._timed(enqueue) / len(some)

    def copy_bandwidth(self) -> float:
        """See `Clock`."""
        return 2 * self.source.n_bytes / self.copy_seconds

    def close(self) -> None:
        """See `Clock`."""
        self.source.free()
        self.target.free()


class Bed:
    """A device with its clock, and what was put there.

    Args:
        ring_bytes: how many bytes of weights take turns, so that none is found in the device's cache.
    """

    def __init__(self, device: Device, ring_bytes: int) -> None:
        self.device, self.ring_bytes = device, ring_bytes
        driver = device.driver
        self.clock: Clock = CardClock(device, driver) if isinstance(driver, CudaDriver) else HostClock(device)
        self._buffers: list[Buffer] = []

    def empty(self, shape: ArrayShape, dtype: DTypeLike) -> Buffer:
        """Device memory until `free`."""
        self._buffers.append(self.device.empty(shape, dtype))
        return self._buffers[-1]

    def put(self, array: Array) -> Buffer:
        """An array on the device, until `free`."""
        buffer = self.empty(array.shape, array.dtype)
        self.copy(array, [buffer])
        return buffer

    def copy(self, array: Array, buffers: Sequence[Buffer]) -> None:
        """The same array to several buffers."""
        host = self.device.pinned(array.shape, array.dtype)
        host.array[...] = array
        for buffer in buffers:
            self.device.upload(buffer, host, self.device.compute)
        self.device.compute.synchronize()
        host.free()

    def get(self, buffer: Buffer) -> Array:
        """A buffer's content."""
        host = self.device.pinned(buffer.shape, buffer.dtype)
        self.device.download(host, buffer, self.device.compute)
        self.device.compute.synchronize()
        array = np.array(host.array)
        host.free()
        return array

    def copies(self, n_bytes: int) -> int:
        """How many copies of so many bytes make a ring."""
        return max(1, -(-self.ring_bytes // n_bytes))

    def inputs(self, kind: GGMLQuantizationType, x: NDArray[np.float32]) -> tuple[Buffer, ...]:
        """What a kernel of this type takes for x [n_tokens, n]: x, or x rounded on the device."""
        given = self.put(x)
        if kind not in QUANTISED:
            return (given,)
        out = self.rounded(x.size)
        quantise(*x.shape).launch(self.device, (given, *out, x.size // 32), self.device.compute)
        return out

    def rounded(self, n: int) -> tuple[Buffer, Buffer, Buffer]:
        """Room for n rounded numbers, their scales and their sums."""
        return self.empty(n, "i1"), self.empty(n // 32, "f4"), self.empty(n // 32, "i4")

    def free(self) -> None:
        """Free what was put there."""
        self.device.synchronize()
        for buffer in self._buffers:
            buffer.free()
        self._buffers = []

    def close(self) -> None:
        """Free everything."""
        self.free()
        self.clock.close()


class Weights:
    """Three random matrices [n_rows, n] of one type, each as many times on the device as makes a ring."""

    def __init__(self, bed: Bed, kind: GGMLQuantizationType, n_rows: int, n: int) -> None:
        self.kind, self.n_rows, self.n = kind, n_rows, n
        n_bytes = n_rows * blocks.row_bytes(kind, n)
        self.rows = [
            np.concatenate(list(random_rows(kind, n_bytes, seed))).reshape(n_rows, -1) for seed in (1, 2, 3)
        ]
        packed = np.empty(n_rows * device_row_bytes(kind, n), np.uint8)
        self.n_copies = bed.copies(3 * packed.size)
        self._planes = []
        for rows in self.rows:
            planes.to_planes(rows, kind, packed)
            copies = [bed.empty(packed.size, "u1") for _ in range(self.n_copies)]
            bed.copy(packed, copies)
            self._planes.append([weight_planes(copy, kind, n_rows, n) for copy in copies])

    def planes(self, which: int, copy: int, n_rows: int | None = None) -> tuple[Buffer, ...]:
        """Kernel arguments of one of the three; of its first n_rows alone, if given."""
        planes = self._planes[which][copy]
        if n_rows is None:
            return planes
        return tuple(p.view(0, n_rows * (p.shape[0] // self.n_rows), p.dtype) for p in planes)

    def values(self, which: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The numbers of some rows."""
        return blocks.dequantize(self.rows[which][rows], self.kind)
