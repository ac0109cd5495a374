"""Memory, streams and events of a device, as the engine holds them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.calls import Counters
from hotcold.kernels.cuda.device.driver import Driver

ArrayShape = int | tuple[int, ...]


class Owner(Protocol):
    """What memory, streams and events need of the device that they belong to."""

    name: str
    driver: Driver
    tally: Counters

    @property
    def is_capturing(self) -> bool:
        """Whether what is enqueued is written down for a graph."""

    def check_open(self) -> None:
        """Refuse a closed device."""

    def note(self, what: str, stream: str, n_bytes: int = 0) -> None:
        """Write down what was asked, if there is a log."""

    def free(self, allocation: Allocation) -> None:
        """Free device memory."""

    def free_pinned(self, allocation: Allocation) -> None:
        """Free page-locked memory."""


@dataclass(eq=False)
class Allocation:
    """Memory that is freed as a whole; `array` is the driver's, `alive` until then.

    Attributes:
        also: devices beside its own that copy from and to it, or read it: page-locked memory alone.
    """

    device: Owner
    array: Any
    handle: object
    alive: bool = True
    also: tuple[Owner, ...] = ()

    def check(self, device: Owner) -> None:
        """Refuse memory of another device, and memory that was freed."""
        if self.device is not device and all(other is not device for other in self.also):
            raise DeviceError("buffer", "of another device", f"{device.name} is asked")
        if not self.alive:
            raise DeviceError("buffer", "freed", "it cannot be used again", "allocate another")


@dataclass(frozen=True, eq=False)
class Memory:
    """A typed, contiguous part of an allocation, `offset` bytes from its beginning."""

    allocation: Allocation
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of this part."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def array(self) -> Any:
        """The driver's own array of this part: a view, never a copy."""
        self.allocation.check(self.allocation.device)
        part = self.allocation.array[self.offset : self.offset + self.n_bytes]
        return part.view(self.dtype).reshape(self.shape)

    def view(self, offset: int, shape: ArrayShape, dtype: DTypeLike) -> Self:
        """A typed view of a part.

        Args:
            offset: bytes from the beginning of this part.

        Raises:
            DeviceError: what is asked for is not inside, or not aligned, or was freed.
        """
        self.allocation.check(self.allocation.device)
        kind, start, address = np.dtype(dtype), self.offset + offset, self.address + offset
        part = replace(self, offset=start, shape=shape_of(shape), dtype=kind, address=address)
        if offset < 0 or offset + part.n_bytes > self.n_bytes:
            end = offset + part.n_bytes
            raise DeviceError("view", f"bytes {offset} to {end}", f"the buffer has {self.n_bytes}")
        if part.address % part.dtype.itemsize:
            bound = f"{part.dtype} needs {part.dtype.itemsize}-byte alignment"
            raise DeviceError("view", f"offset {offset}", bound)
        return part


class Buffer(Memory):
    """Device memory. `array` is a `cupy.ndarray`, or a NumPy array on the emulated device."""

    def free(self) -> None:
        """Free the whole allocation, with all views of it."""
        self.allocation.device.free(self.allocation)


class Pinned(Memory):
    """Page-locked host memory: what a copy starts from or ends in, or a kernel reads. `array` is a NumPy array."""

    def free(self) -> None:
        """Free the whole allocation, with all views of it."""
        self.allocation.device.free_pinned(self.allocation)


class Stream:
    """Work that runs in order.

    Attributes:
        end: where those stand that follow this stream.
    """

    def __init__(self, device: Owner, name: str) -> None:
        self.device, self.name, self.raw = device, name, device.driver.new_stream()
        self.end = Event(device)

    def wait(self, event: Event) -> None:
        """Later work of this stream runs after what the event has recorded up to now."""
        _check_pair(event, self)
        self.device.tally.stream_waits += 1
        self.device.note("wait", self.name)
        if event.external and self.device.is_capturing:
            self.device.driver.wait_external(self.raw, event.raw)
        else:
            self.device.driver.stream_wait(self.raw, event.raw)

    def follow(self, other: Stream) -> None:
        """Later work of this stream runs after what another one has up to now: a fork, or a join, of a graph too."""
        other.end.record(other)
        self.wait(other.end)

    def synchronize(self) -> None:
        """Wait on the host until all work of this stream is done."""
        self.device.check_open()
        self.device.tally.host_waits += 1
        self.device.note("host waits", self.name)
        started = time.perf_counter()
        self.device.driver.wait_stream(self.raw)
        self.device.tally.waiting += time.perf_counter() - started


class Event:
    """A place in a stream. One that was never recorded is passed at once.

    Attributes:
        external: whether a graph that is captured records it anew, or waits for what it is then, each time that it
            is launched. Others order the streams within one graph, and nothing outside may wait for them.
    """

    def __init__(self, device: Owner, external: bool = False) -> None:
        self.device, self.raw, self.stream_name = device, device.driver.new_event(), ""
        self.external = external

    def record(self, stream: Stream) -> None:
        """Mark the end of a stream as it is now."""
        _check_pair(self, stream)
        self.stream_name = stream.name
        self.device.note("record", stream.name)
        if self.external and self.device.is_capturing:
            self.device.driver.record_external(self.raw, stream.raw)
        else:
            self.device.driver.record(self.raw, stream.raw)

    def synchronize(self) -> None:
        """Wait on the host for what was recorded."""
        self.device.check_open()
        self.device.tally.host_waits += 1
        self.device.note("host waits", self.stream_name)
        started = time.perf_counter()
        self.device.driver.wait_event(self.raw)
        self.device.tally.waiting += time.perf_counter() - started


def _check_pair(event: Event, stream: Stream) -> None:
    stream.device.check_open()
    if event.device is not stream.device:
        raise DeviceError("event", "of another device", f"stream {stream.name} is of {stream.device.name}")


def shape_of(shape: ArrayShape) -> tuple[int, ...]:
    """A shape as a tuple."""
    return (shape,) if isinstance(shape, int) else tuple(shape)


def bytes_of(shape: ArrayShape, dtype: DTypeLike) -> int:
    """Bytes of an array; DeviceError if it has none."""
    n_bytes = math.prod(shape_of(shape)) * np.dtype(dtype).itemsize
    if n_bytes < 1 or min(shape_of(shape)) < 1:
        raise DeviceError("buffer", shape_of(shape), "has no bytes", "skip it")
    return n_bytes
