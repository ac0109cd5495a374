"""The device seam: buffers, streams, copies and launches, the same on a card and without one.

Copies and launches only enqueue. A pinned buffer belongs to its copy from the call until an event or
stream after it has been waited for: the host may neither read nor write it, nor start another copy. One that a kernel
reads belongs to the launch, likewise: the host may not write it.
Work on two streams is ordered by `Stream.wait` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import DTypeLike

from hotcold.closing import Closing
from hotcold.errors import DeviceError, DoesNotFitError, SettingError
from hotcold.kernels.cuda.device.buffers import (
    Allocation,
    ArrayShape,
    Buffer,
    Event,
    Memory,
    Owner,
    Pinned,
    Stream,
    bytes_of,
    shape_of,
)
from hotcold.kernels.cuda.device.calls import Call, Counters, GraphWork
from hotcold.kernels.cuda.device.driver import CaptureError, Driver, Launch
from hotcold.kernels.cuda.device.signatures import (
    Parameter,
    Signature,
    Size,
    check_count,
    check_size,
    find,
    scalar,
    three,
)
from hotcold.kernels.weight_table import weight_type_row

FAILURES = ("alloc", "launch", "h2d", "d2h")


@dataclass(frozen=True)
class Prepared:
    """A launch whose arguments have been checked, to be enqueued any number of times.

    Attributes:
        allocations: that it reads and writes.
        enqueue: the driver's.
        host_bytes: of page-locked memory that it reads, over the bus.
    """

    kernel: str
    allocations: tuple[Allocation, ...]
    enqueue: Callable[[Any], None]
    host_bytes: int = 0


@dataclass(frozen=True)
class CapturedGraph:
    """Copies and launches that were captured, to be enqueued together any number of times.

    Attributes:
        raw: the driver's.
        allocations: that it reads and writes.
        work: in it, to be counted.
        calls: the same in its order.
    """

    raw: Any
    allocations: tuple[Allocation, ...]
    work: GraphWork
    calls: tuple[Call, ...]


class Device(Closing):
    """One device: checks and counts every call, and passes it on to its driver.

    Attributes:
        name: as in --device, `cuda:0` or `emulated`.
        compute, copy: the streams that every device has for kernels, and for what is sent to it in bulk.
        crossing: the stream of what crosses the bus between the nodes of a run.
        tally: what was done, but for the work of graphs that `counters` has not added yet.
        log: everything asked of the device, in order, while it is a list; None by default.
        has_graphs: whether runs are to capture what they enqueue; set by whoever opens the device.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver, self.facts, self.name = driver, driver.facts, driver.facts.name
        self.tally = Counters()
        self._uncounted: list[GraphWork] = []
        self.log: list[Call] | None = None
        self.allocations: dict[int, Allocation] = {}
        self.pinned_allocations: dict[int, Allocation] = {}
        self.closed, self.has_graphs = False, True
        self._captured: dict[int, Allocation] | None = None
        self._failures: dict[str, int] = {}
        self.compute, self.copy = self.stream("compute"), self.stream("copy")
        self.crossing = self.stream("crossing")

    @property
    def is_emulated(self) -> bool:
        """Whether it is no card."""
        return self.name.partition(":")[0] == "emulated"

    @property
    def counters(self) -> Counters:
        """What was done; not for another thread than the one that runs graphs."""
        for work in self._uncounted:
            self.tally.add_work(work.counted, work.launched)
            work.launched = 0
        self._uncounted.clear()
        return self.tally

    # Memory

    def empty(self, shape: ArrayShape, dtype: DTypeLike) -> Buffer:
        """Uninitialised device memory.

        Raises:
            DoesNotFitError: there is not that much left.
        """
        allocation = self._allocate(bytes_of(shape, dtype))
        return Buffer(allocation, 0, shape_of(shape), np.dtype(dtype), self.driver.address(allocation.array))

    def _allocate(self, n_bytes: int) -> Allocation:
        self._begin("alloc")
        array = self.driver.allocate(n_bytes)
        allocation = Allocation(self, array, array)
        self.allocations[id(allocation)] = allocation
        self._weigh()
        return allocation

    def free(self, allocation: Allocation) -> None:
        """Free an allocation; freeing it twice is refused."""
        allocation.check(self)
        del self.allocations[id(allocation)]
        self.driver.release(allocation.array)
        allocation.array, allocation.handle, allocation.alive = None, None, False
        with suppress(DeviceError):  # a lost device cannot be weighed
            self._weigh()

    def pinned(self, shape: ArrayShape, dtype: DTypeLike, also: Sequence[Owner] = ()) -> Pinned:
        """Uninitialised page-locked host memory.

        Args:
            also: other devices that copy from and to it, and whose kernels read it.

        Raises:
            DoesNotFitError: the host does not give that much.
        """
        n_bytes = bytes_of(shape, dtype)
        try:
            self._begin("alloc")
            array, handle = self.driver.allocate_pinned(n_bytes)
        except DoesNotFitError as error:
            bound = error.bound or str(error.value)
            raise DoesNotFitError(
                "page-locked host memory", f"{n_bytes} bytes", bound, "lower -b, or take --device cpu"
            ) from error
        allocation = Allocation(self, array, handle, also=tuple(also))
        for other in also:
            other.driver.know_pinned(array)
        self.pinned_allocations[id(allocation)] = allocation
        self.tally.pinned_bytes += array.nbytes
        return Pinned(allocation, 0, shape_of(shape), np.dtype(dtype), array.ctypes.data)

    def free_pinned(self, allocation: Allocation) -> None:
        """Free page-locked memory; freeing it twice is refused."""
        allocation.check(self)
        self.tally.pinned_bytes -= allocation.array.nbytes
        del self.pinned_allocations[id(allocation)]
        for other in allocation.also:
            other.driver.forget_pinned(allocation.array)
        self.driver.release_pinned(allocation.handle)
        allocation.array, allocation.handle, allocation.alive = None, None, False

    def load_kernels(self, weight_types: Iterable[GGMLQuantizationType]) -> int:
        """Load all kernels for these types of weights; bytes of memory that are not free any more.

        Raises:
            DeviceError: a type that the device has no kernels for, or the device fails.
        """
        self.check_open()
        free = self.driver.free_and_total()[0]
        self.driver.load_types(sorted({weight_type_row(kind).ending for kind in weight_types}))
        return max(0, free - self.driver.free_and_total()[0])

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory: left and in all."""
        self.check_open()
        return self.driver.free_and_total()

    # Order

    def stream(self, name: str) -> Stream:
        """Another stream; the name is for the log."""
        self.check_open()
        return Stream(self, name)

    def event(self, external: bool = False) -> Event:
        """An event that nobody recorded yet; an external one has its meaning outside of graphs, too."""
        self.check_open()
        return Event(self, external)

    def synchronize(self) -> None:
        """Wait on the host until the device has done everything."""
        self.check_open()
        self.tally.host_waits += 1
        self.note("host waits", "all")
        self.driver.wait_all()

    # Work

    def upload(self, buffer: Buffer, host: Pinned, stream: Stream) -> None:
        """Enqueue a copy from the host; both sides have as many bytes."""
        if self._failures or self.closed or stream.device is not self:
            self._begin("h2d", stream)
        self._check_copy(buffer, host)
        self.tally.h2d_calls += 1
        self.tally.h2d_bytes += host.n_bytes
        if self.log is not None:
            self.note("h2d", stream.name, host.n_bytes)
        self.driver.upload(buffer.address, host.address, host.n_bytes, stream.raw)

    def download(self, host: Pinned, buffer: Buffer, stream: Stream) -> None:
        """Enqueue a copy to the host; both sides have as many bytes."""
        if self._failures or self.closed or stream.device is not self:
            self._begin("d2h", stream)
        self._check_copy(buffer, host)
        self.tally.d2h_calls += 1
        self.tally.d2h_bytes += host.n_bytes
        if self.log is not None:
            self.note("d2h", stream.name, host.n_bytes)
        self.driver.download(host.address, buffer.address, host.n_bytes, stream.raw)

    def launch(
        self, kernel: str, grid: Size, block: Size, arguments: Sequence[Any], stream: Stream, shared: int = 0
    ) -> None:
        """Enqueue a kernel: `prepare` and `run` in one call."""
        self.run(self.prepare(kernel, grid, block, arguments, shared), stream)

    def prepare(
        self, kernel: str, grid: Size, block: Size, arguments: Sequence[Any], shared: int = 0
    ) -> Prepared:
        """Check a launch against the kernel's signature and the limits of every card.

        Args:
            kernel: its name in the sources.
            grid, block: an int or up to three of them, x first.
            arguments: a Buffer for each pointer, a number for each value. A pointer to `const` may also be page-locked
                memory, which the kernel reads over the bus: it is the launch's as it would be a copy's.
            shared: bytes of dynamic shared memory.

        Raises:
            DeviceError: unknown kernel; wrong count, type, width or alignment; an empty or too large
                launch; a buffer that was freed or is another device's.
        """
        self.check_open()
        signature = find(self.driver.signatures, kernel)
        check_size(kernel, grid, block, shared)
        check_count(signature, arguments)
        pairs = list(zip(signature.parameters, arguments, strict=True))
        values = [self._argument(signature, parameter, value) for parameter, value in pairs]
        used = {id(a.allocation): a.allocation for a in arguments if isinstance(a, Memory)}
        host = tuple((a.address, a.n_bytes) for a in arguments if isinstance(a, Pinned))
        launch = Launch(kernel, three(grid), three(block), tuple(values), shared, host)
        host_bytes = sum(n_bytes for _, n_bytes in host)
        return Prepared(kernel, tuple(used.values()), self.driver.prepare(launch), host_bytes)

    def run(self, prepared: Prepared, stream: Stream) -> None:
        """Enqueue a prepared launch."""
        if self._failures or self.closed or stream.device is not self:  # this is called a dozen times a layer
            self._begin("launch", stream)
        for allocation in prepared.allocations:
            if allocation.device is not self or not allocation.alive:
                allocation.check(self)
        self.tally.launches[prepared.kernel] += 1
        self.tally.h2d_bytes += prepared.host_bytes
        if self.log is not None:
            self.note(prepared.kernel, stream.name, prepared.host_bytes)
        if self._captured is not None:
            self._captured |= {id(used): used for used in prepared.allocations}
        prepared.enqueue(stream.raw)

    # Graphs

    @property
    def is_capturing(self) -> bool:
        """Whether what is enqueued is written down for a graph."""
        return self._captured is not None

    def capture(self, enqueue: Callable[[], object], stream: Stream) -> CapturedGraph:
        """A graph of what `enqueue` enqueues on a stream; nothing of it is done or counted yet.

        Streams that follow it meanwhile belong to the graph, and it has to follow them in the end.

        Raises:
            CaptureError: the device has no graphs, or no room for one, or something other than copies and launches was
                asked for.
        """
        self.check_open()
        tally, log, failures = self.tally, self.log, self._failures
        # what is held stays there for other threads to read
        self.tally, self.log = Counters(live_bytes=tally.live_bytes), []
        self._failures, self._captured = {}, {}
        try:
            free = self.driver.free_and_total()[0]
            self.driver.begin_capture(stream.raw)
            try:
                enqueue()
            except BaseException:
                with suppress(DeviceError, DoesNotFitError):  # what went wrong first is said
                    self.driver.end_capture(stream.raw)
                raise
            raw = self.driver.end_capture(stream.raw)
            tally.graph_captures += 1
            tally.graph_bytes += max(0, free - self.driver.free_and_total()[0])
            work = GraphWork(self.tally)
            return CapturedGraph(raw, tuple(self._captured.values()), work, tuple(self.log))
        except (DeviceError, DoesNotFitError) as error:
            said, remedy = f"{error.thing}: {error.value}", error.next_step
            remedy = remedy if "--no-graphs" in remedy else "add --no-graphs"
            raise CaptureError(
                f"graph of {self.name}", said, error.bound or "not captured", remedy
            ) from error
        finally:
            self.tally, self.log, self._failures, self._captured = tally, log, failures, None

    def run_graph(self, graph: CapturedGraph, stream: Stream) -> None:
        """Enqueue a graph; its work is counted as if it had been enqueued piece by piece."""
        if self._failures or self.closed or stream.device is not self:
            self._begin_all(graph, stream)
        for allocation in graph.allocations:
            if allocation.device is not self or not allocation.alive:
                allocation.check(self)
        self.tally.graph_launches += 1
        if not graph.work.launched:  # adding up a dozen kernels takes longer than all else here
            self._uncounted.append(graph.work)
        graph.work.launched += 1
        if self.log is not None:
            self.note("graph", stream.name)
            self.log += graph.calls
        self.driver.launch_graph(graph.raw, stream.raw)

    def _begin_all(self, graph: CapturedGraph, stream: Stream) -> None:
        """What every piece of a graph would have asked first."""
        for call in graph.calls:
            if call.what not in ("record", "wait"):
                self._begin(call.what if call.what in FAILURES else "launch", stream)

    # Tests and statistics

    def fail_at(self, kind: str, n: int) -> None:
        """Make the n-th call of a kind from now on fail, once: for tests.

        Args:
            kind: "alloc" (device or pinned memory), "launch", "h2d" or "d2h".
            n: 1 is the next call.
        """
        if kind not in FAILURES:
            raise SettingError("kind of failure", kind, f"one of {', '.join(FAILURES)}")
        self._failures[kind] = n

    def note(self, what: str, stream: str, n_bytes: int = 0) -> None:
        """Write down what was asked, if there is a log."""
        if self.log is not None:
            self.log.append(Call(what, stream, n_bytes))

    def close(self) -> None:
        """Wait for the device, free everything, and refuse all further calls.

        A device that was lost closes too; its counters then stay as they were.
        """
        if self.closed:
            return
        with suppress(DeviceError):  # a lost device has nothing to wait for
            self.driver.wait_all()
        for pinned in list(self.pinned_allocations.values()):
            self.free_pinned(pinned)
        for allocation in list(self.allocations.values()):
            self.free(allocation)
        self.closed = True
        with suppress(DeviceError):
            self.driver.close()

    # Checks

    def check_open(self) -> None:
        """Refuse a closed device."""
        if self.closed:
            raise DeviceError(f"device {self.name}", "closed", "it takes no further calls", "open it again")

    def _begin(self, kind: str, stream: Stream | None = None) -> None:
        self.check_open()
        if stream is not None and stream.device is not self:
            raise DeviceError("stream", stream.name, f"belongs to another device than {self.name}")
        if kind in self._failures:
            self._failures[kind] -= 1
            if self._failures[kind] == 0:
                del self._failures[kind]
                raise _failure(kind)

    def _weigh(self) -> None:
        self.tally.live_bytes = self.driver.used_bytes()
        self.tally.peak_bytes = max(self.tally.peak_bytes, self.tally.live_bytes)

    def _check_copy(self, buffer: Buffer, host: Pinned) -> None:
        if not isinstance(buffer, Buffer) or not isinstance(host, Pinned):
            kinds = f"{type(buffer).__name__} and {type(host).__name__}"
            raise DeviceError("copy", kinds, "needs a Buffer and a Pinned buffer of the device")
        buffer.allocation.check(self)
        host.allocation.check(self)
        if self._captured is not None:
            self._captured |= {id(side.allocation): side.allocation for side in (buffer, host)}
        if buffer.n_bytes != host.n_bytes:
            raise DeviceError("copy", f"{host.n_bytes} bytes on the host", f"{buffer.n_bytes} on the device")

    def _argument(self, signature: Signature, parameter: Parameter, value: Any) -> Any:
        if not parameter.pointer:
            return scalar(signature, parameter, value)
        thing = f"argument {parameter.name} of {signature.kernel}"
        if not isinstance(value, Buffer | Pinned):
            raise DeviceError(thing, type(value).__name__, "a Buffer is wanted")
        if isinstance(value, Pinned) and not parameter.const:
            raise DeviceError(thing, "page-locked memory", "kernels only read it: a pointer to const")
        value.allocation.check(self)
        if parameter.code != "V" and value.dtype != np.dtype(parameter.code):
            raise DeviceError(thing, value.dtype, f"a pointer to {np.dtype(parameter.code)} is wanted")
        if value.address % parameter.alignment:
            raise DeviceError(thing, hex(value.address), f"needs {parameter.alignment}-byte alignment")
        return np.uint64(value.address)


def _failure(kind: str) -> DeviceError | DoesNotFitError:
    if kind == "alloc":
        return DoesNotFitError("device memory", "none left", "as fail_at asked", "lower --vram-budget")
    return DeviceError(kind, "failed", "as fail_at asked", "try again")
