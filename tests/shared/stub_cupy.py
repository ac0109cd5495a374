"""A stand-in for the parts of CuPy that CudaDriver calls, forwarding to the emulated driver.

Names, argument order and types are CuPy's; what CuPy would refuse, this refuses. test_cuda_driver.py
holds the names against the installed CuPy.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from hotcold.errors import DoesNotFitError
from hotcold.kernels.cuda.device.driver import KernelFault, Launch
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

GRANULE = 512
TO_DEVICE, TO_HOST, WITHIN_DEVICE = 1, 2, 3


class CUDARuntimeError(RuntimeError):
    """What runtime calls raise."""

    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError {status}")
        self.status = status


class CUDADriverError(RuntimeError):
    """What driver calls raise."""


class OutOfMemoryError(MemoryError):
    """What the pool raises."""


class StubCupy:
    """The module.

    Args:
        emulated: where everything runs.
        cards, driver_version, runtime_version: what the runtime says.
    """

    def __init__(
        self,
        emulated: EmulatedDriver,
        cards: int = 1,
        driver_version: int = 12090,
        runtime_version: int = 12090,
    ) -> None:
        self.emulated, self.cards = emulated, cards
        self.used: list[int] = []
        self.lost = False
        self.statuses: dict[int, int] = {}  # of cards that nobody can open
        self.by_pointer: dict[int, Any] = {}
        self.ndarray = _bound(Array, self)
        self.RawModule = _bound(RawModule, self)
        runtime = SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=lambda: cards,
            driverGetVersion=lambda: driver_version,
            runtimeGetVersion=lambda: runtime_version,
            getDeviceProperties=self._properties,
            memGetInfo=emulated.free_and_total,
            memcpyAsync=self._memcpy_async,
            streamWaitEvent=self._stream_wait_event,
            memcpyHostToDevice=TO_DEVICE,
            memcpyDeviceToHost=TO_HOST,
            memcpyDeviceToDevice=WITHIN_DEVICE,
        )
        self.libcuda = SimpleNamespace(cuEventRecordWithFlags=self._event_record_with_flags)
        self.__version__ = "of tests"
        self._core = SimpleNamespace(_scalar=SimpleNamespace(CScalar=CScalar))
        self.cuda = SimpleNamespace(
            runtime=runtime,
            driver=SimpleNamespace(CUDADriverError=CUDADriverError),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            Device=_bound(CudaDevice, self),
            Stream=_bound(Stream, self),
            Event=_bound(Event, self),
            get_elapsed_time=get_elapsed_time,
            MemoryPool=_bound(MemoryPool, self),
            PinnedMemory=_bound(PinnedMemory, self),
            PinnedMemoryPointer=pinned_memory_pointer,
        )

    def _memcpy_async(self, dst: int, src: int, size: int, kind: int, stream: int) -> None:
        assert all(type(number) is int for number in (dst, src, size, kind, stream))
        if kind == TO_DEVICE:
            self.emulated.upload(dst, src, size, self.by_pointer[stream])
        elif kind == WITHIN_DEVICE:
            self.by_pointer[stream].enqueue(lambda: ctypes.memmove(dst, src, size))
        else:
            assert kind == TO_HOST
            self.emulated.download(dst, src, size, self.by_pointer[stream])

    def _stream_wait_event(self, stream: int, event: int, flags: int = 0) -> None:
        assert all(type(number) is int for number in (stream, event, flags)) and flags in (0, 1)
        wait = self.emulated.wait_external if flags else self.emulated.stream_wait
        wait(self.by_pointer[stream], self.by_pointer[event])

    def _event_record_with_flags(self, event: int, stream: int, flags: int) -> int:
        """The driver's own call, which CuPy lacks."""
        assert all(type(number) is int for number in (event, stream)) and flags == 1
        self.emulated.record_external(self.by_pointer[event], self.by_pointer[stream])
        return 0

    def _properties(self, index: int) -> dict[str, Any]:
        sizes = {"multiProcessorCount": 28, "totalGlobalMem": 1 << 30}
        return {"name": b"stub card %d" % index, "major": 8, "minor": 6, **sizes}


def _bound(kind: Callable[..., Any], cupy: StubCupy) -> Callable[..., Any]:
    return lambda *args, **kwargs: kind(cupy, *args, **kwargs)


def _guard(cupy: StubCupy, call: Callable[[], Any]) -> Any:
    """Faults of the emulated device as CUDA reports them: once for what waits, then for every call."""
    try:
        return call()
    except KernelFault as error:
        cupy.lost = True
        raise CUDARuntimeError(700) from error


class CudaDevice:
    def __init__(self, cupy: StubCupy, device: int) -> None:
        self.cupy, self.id = cupy, device

    def use(self) -> None:
        if self.cupy.lost:
            raise CUDARuntimeError(700)
        if self.id in self.cupy.statuses:
            raise CUDARuntimeError(self.cupy.statuses[self.id])
        self.cupy.used.append(self.id)

    def synchronize(self) -> None:
        _guard(self.cupy, self.cupy.emulated.wait_all)


class Memory:
    """A block of the pool; it goes back to the pool when nobody refers to it any more."""

    def __init__(self, pool: MemoryPool, size: int) -> None:
        self.pool, self.size = pool, size
        self.array = pool.cupy.emulated.allocate(size)

    def __del__(self) -> None:
        if hasattr(self, "array"):
            self.pool.free.append(self.array)


class MemoryPool:
    def __init__(self, cupy: StubCupy) -> None:
        self.cupy = cupy
        self.free: list[Any] = []
        self.taken = 0

    def malloc(self, size: int) -> MemoryPointer:
        try:
            memory = Memory(self, size)
        except DoesNotFitError as error:
            raise OutOfMemoryError(str(error)) from error
        self.taken += -(-size // GRANULE) * GRANULE
        return MemoryPointer(memory, 0)

    def free_all_blocks(self) -> None:
        if self.cupy.lost:
            raise CUDARuntimeError(700)
        while self.free:
            array = self.free.pop()
            self.taken -= -(-array.nbytes // GRANULE) * GRANULE
            self.cupy.emulated.release(array)

    def total_bytes(self) -> int:
        return self.taken


class MemoryPointer:
    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem, self.offset = mem, offset

    @property
    def ptr(self) -> int:
        return int(self.mem.array.ctypes.data) + self.offset


class Array:
    """cupy.ndarray, as far as it is used: contiguous, sliced in its first dimension, viewed."""

    def __init__(self, cupy: StubCupy, shape: tuple[int, ...], dtype: Any, memptr: MemoryPointer) -> None:
        assert isinstance(shape, tuple) and isinstance(memptr, MemoryPointer)
        self.cupy, self.shape, self.dtype, self.data = cupy, shape, np.dtype(dtype), memptr

    @property
    def nbytes(self) -> int:
        return int(math.prod(self.shape) * self.dtype.itemsize)

    def __getitem__(self, part: slice) -> Array:
        start, stop, step = part.indices(self.shape[0])
        assert step == 1
        offset = self.data.offset + start * (self.nbytes // self.shape[0])
        return Array(
            self.cupy, (stop - start, *self.shape[1:]), self.dtype, MemoryPointer(self.data.mem, offset)
        )

    def view(self, dtype: Any) -> Array:
        assert len(self.shape) == 1 and self.nbytes % np.dtype(dtype).itemsize == 0
        return Array(self.cupy, (self.nbytes // np.dtype(dtype).itemsize,), dtype, self.data)

    def reshape(self, shape: tuple[int, ...]) -> Array:
        assert math.prod(shape) == math.prod(self.shape)
        return Array(self.cupy, shape, self.dtype, self.data)


class PinnedMemory:
    """Freed when nobody refers to it any more."""

    def __init__(self, cupy: StubCupy, size: int, flags: int = 0) -> None:
        self.cupy, self.size = cupy, size
        self.array, _ = cupy.emulated.allocate_pinned(size)

    def __del__(self) -> None:
        if hasattr(self, "array"):
            self.cupy.emulated.release_pinned(self.array)


def pinned_memory_pointer(mem: PinnedMemory, offset: int) -> Any:
    """A buffer, as the real PinnedMemoryPointer is."""
    assert isinstance(mem, PinnedMemory) and offset == 0
    kind: Any = type("PinnedMemoryPointer", (ctypes.c_ubyte * mem.size,), {})
    pointer = kind.from_address(mem.array.ctypes.data)
    pointer.mem = mem
    return pointer


class Stream:
    def __init__(self, cupy: StubCupy, null: bool = False, non_blocking: bool = False) -> None:
        assert non_blocking, "a blocking stream is ordered with the default one"
        self.cupy, self.raw = cupy, cupy.emulated.new_stream()
        self.ptr = id(self.raw)
        cupy.by_pointer[self.ptr] = self.raw

    def wait_event(self, event: Event) -> None:
        self.cupy.emulated.stream_wait(self.raw, event.raw)

    def synchronize(self) -> None:
        _guard(self.cupy, lambda: self.cupy.emulated.wait_stream(self.raw))

    def begin_capture(self, mode: int | None = None) -> None:
        self.cupy.emulated.begin_capture(self.raw)

    def end_capture(self) -> Graph:
        return Graph(self.cupy, self.cupy.emulated.end_capture(self.raw))


class Graph:
    def __init__(self, cupy: StubCupy, captured: Any) -> None:
        self.cupy, self.captured = cupy, captured

    def upload(self, stream: Stream) -> None:
        """All is there already."""

    def launch(self, stream: Stream) -> None:
        _guard(self.cupy, lambda: self.cupy.emulated.launch_graph(self.captured, stream.raw))


class Event:
    def __init__(self, cupy: StubCupy, block: bool = False, disable_timing: bool = False) -> None:
        self.cupy, self.raw = cupy, cupy.emulated.new_event()
        self.disable_timing, self.passed = disable_timing, 0.0
        self.ptr = id(self.raw)
        cupy.by_pointer[self.ptr] = self.raw

    def record(self, stream: Stream) -> None:
        if not self.disable_timing:
            stream.raw.enqueue(self._pass)
        self.cupy.emulated.record(self.raw, stream.raw)

    def _pass(self) -> None:
        self.passed = time.perf_counter()

    def synchronize(self) -> None:
        _guard(self.cupy, lambda: self.cupy.emulated.wait_event(self.raw))


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds between two events that have been passed."""
    assert not start_event.disable_timing and not end_event.disable_timing
    assert 0 < start_event.passed <= end_event.passed
    return 1e3 * (end_event.passed - start_event.passed)


class CScalar:
    """A number that is ready for a launch."""

    def __init__(self, x: np.generic) -> None:
        assert isinstance(x, np.generic), f"{type(x)} has no type of its own"
        self.number = x


class RawModule:
    def __init__(self, cupy: StubCupy, *, path: str) -> None:
        assert type(path) is str
        self.cupy, self.code = cupy, Path(path).read_bytes()
        assert self.code.startswith(b"\x7fELF"), "machine code is an ELF file"

    def get_function(self, name: str) -> RawKernel:
        assert name.encode() in self.code, f"the machine code has no {name}"
        return RawKernel(self.cupy, name)


class RawKernel:
    local_size_bytes = 0

    def __init__(self, cupy: StubCupy, name: str) -> None:
        self.cupy, self.name = cupy, name
        self.parameters = cupy.emulated.signatures[name].parameters

    @property
    def kernel(self) -> Callable[..., None]:
        assert self.cupy.used, "compiled for the current device"
        return self._launch

    def _launch(self, grid: Any, block: Any, args: Any, shared_mem: int = 0, stream: Any = None) -> None:
        assert all(type(size) is tuple and len(size) == 3 for size in (grid, block))
        assert type(args) is tuple and len(args) == len(self.parameters) and stream is not None
        numbers = tuple(value.number if isinstance(value, CScalar) else value for value in args)
        for value, parameter in zip(numbers, self.parameters, strict=True):
            wanted = np.uint64 if parameter.pointer else np.dtype(parameter.code).type
            assert type(value) is wanted, f"{parameter.name} of {self.name} is {type(value)}"
        self.cupy.emulated.prepare(Launch(self.name, grid, block, numbers, shared_mem))(stream.raw)
