"""The driver without a card: the CUDA sources, compiled by g++ and run on the CPU."""

import ctypes
import functools
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.errors import DeviceError, SettingError
from hotcold.kernels.cuda.device.driver import CaptureError, Facts, KernelFault, Launch
from hotcold.kernels.cuda.device.signatures import Signature, read_signatures
from hotcold.kernels.cuda.device.units import Kernels, unit_of
from hotcold.kernels.cuda.emulator.build import BUILDS, build, find_compiler
from hotcold.kernels.cuda.emulator.capture import Capture, Graph
from hotcold.kernels.cuda.emulator.memory import POISON, Allocator
from hotcold.kernels.cuda.emulator.streams import Enqueue, Mark, Streams, Work, WorkQueue

MESSAGE_BYTES = 1000
MEMORY_BYTES = 8 << 30
"""What the emulated device says it has; pages are taken from the host when they are touched."""
N_SM = 4
"""Multiprocessors that it says it has, so that small matrices are cut as large ones are on a card."""
_one_launch = threading.Lock()
"""Fibers and signal handlers belong to the process."""
_stacks = ctypes.c_void_p()
"""Of the fibers, which all libraries use in turn; null before the first."""


@dataclass(frozen=True)
class Library:
    """Compiled kernels, and the number of each."""

    path: Path
    code: ctypes.CDLL
    kernels: dict[str, int]


class EmulatedDriver:
    """Runs kernels on the CPU, checks them, and delays enqueued work as a card may.

    Args:
        source: the program; by default all kernels, a unit of them at a time.
        build_kind: `fast`, `checked` (traps undefined behaviour) or `races` (slow).
        policy: when enqueued work runs: `eager`, `late`, `ahead` or `random`.
        order: of threads and blocks: 0 forward, 1 backward, else a seed. With 1, buffers begin at a
            guard page instead of ending at one.
        seed: of the `random` policy.
        memory: bytes of device memory.
        index: of the device, where there are several; None for the one that is called "emulated".
    """

    def __init__(
        self,
        source: str | None = None,
        build_kind: str = "checked",
        policy: str = "late",
        order: int = 0,
        seed: int = 0,
        memory: int = MEMORY_BYTES,
        index: int | None = None,
    ) -> None:
        if build_kind not in BUILDS:
            raise SettingError("build of the emulated device", build_kind, f"one of {', '.join(BUILDS)}")
        find_compiler()
        self.source, self.build_kind = source, build_kind
        self.signatures: Mapping[str, Signature] = Kernels() if source is None else read_signatures(source)
        self.libraries: dict[str, Library] = {}  # by their source
        self.last: Library | None = None
        self.streams, self.memory = Streams(policy, seed), Allocator(memory, at_start=order == 1)
        self.host = Allocator(memory, at_start=order == 1)
        self.order, self.lost = order, ""
        self.capture: Capture | None = None  # of the graph that is being made
        name = "emulated" if index is None else f"emulated:{index}"
        self.facts = Facts(name, "emulated device on the CPU (for checking, not for speed)", n_sm=N_SM)

    # Memory

    def allocate(self, n_bytes: int) -> NDArray[np.uint8]:
        """Poisoned bytes between guard pages."""
        self._check_no_capture("an allocation")
        return self.memory.allocate(n_bytes)

    def release(self, array: Any) -> None:
        """Take back what `allocate` returned; later use of it faults."""
        self.memory.release(array)

    def used_bytes(self) -> int:
        """Bytes taken from the device's memory."""
        return self.memory.used

    def free_and_total(self) -> tuple[int, int]:
        """Bytes left and bytes in all."""
        return self.memory.total - self.memory.used, self.memory.total

    def address(self, array: Any) -> int:
        """Where an array begins."""
        return int(array.ctypes.data)

    def allocate_pinned(self, n_bytes: int) -> tuple[NDArray[np.uint8], object]:
        """Host memory, poisoned and guarded too."""
        self._check_no_capture("an allocation")
        array = self.host.allocate(n_bytes)
        return array, array

    def release_pinned(self, handle: Any) -> None:
        """Take back what `allocate_pinned` returned."""
        self.host.release(handle)

    def know_pinned(self, array: NDArray[np.uint8]) -> None:
        """Copies from and to another device's page-locked memory are let through, and kernels that read it."""
        self.host.others[array.ctypes.data] = array.nbytes

    def forget_pinned(self, array: NDArray[np.uint8]) -> None:
        """No more of them."""
        del self.host.others[array.ctypes.data]

    # Streams and events

    def new_stream(self) -> WorkQueue:
        """A stream that is ordered with no other."""
        return self.streams.new()

    def new_event(self) -> Mark:
        """An event that nobody recorded yet."""
        return Mark()

    def record(self, event: Mark, stream: WorkQueue) -> None:
        """Mark the end of a stream; within a capture, a place in the graph."""
        if (capture := self._capture_of(stream)) is not None:
            capture.record(event, stream)
            return
        self._check_no_capture("an event of another stream")
        event.record(stream)

    def stream_wait(self, stream: WorkQueue, event: Mark) -> None:
        """Later work of the stream comes after the event, which lets it join the event's capture."""
        capture = self.capture
        if capture is not None and (stream in capture.done or event in capture.seen):
            capture.wait(stream, event)
            return
        self._check_no_capture("a wait of another stream")
        _check_not_captured(event)
        stream.wait(event)

    def record_external(self, event: Mark, stream: WorkQueue) -> None:
        """Each launch of the graph records the event."""
        self._within(stream).record_external(event, stream)

    def wait_external(self, stream: WorkQueue, event: Mark) -> None:
        """Each launch of the graph waits for what the event has recorded."""
        self._within(stream).wait_external(stream, event)

    def _capture_of(self, stream: WorkQueue) -> Capture | None:
        """The capture that a stream belongs to."""
        return self.capture if self.capture is not None and stream in self.capture.done else None

    def _within(self, stream: WorkQueue) -> Capture:
        """The same, which has to be there."""
        capture = self._capture_of(stream)
        if capture is None:
            raise CaptureError(
                "external event", "of a stream that is not captured", "CUDA knows it in graphs alone"
            )
        return capture

    def wait_event(self, event: Mark) -> None:
        """The host waits for an event."""
        self._check_no_capture("a wait")
        _check_not_captured(event)
        self._check_alive()
        event.synchronize()

    def wait_stream(self, stream: WorkQueue) -> None:
        """The host waits for all work of a stream."""
        self._check_no_capture("a wait")
        self._check_alive()
        stream.run_to(stream.n_added)

    def wait_all(self) -> None:
        """The host waits for everything."""
        for stream in self.streams.all:
            self.wait_stream(stream)

    # Work

    def upload(self, address: int, host: int, n_bytes: int, stream: WorkQueue) -> None:
        """Copy later, when the host may already have changed its side."""
        self._copy_later(stream, lambda: self._copy(address, host, n_bytes, host, address), host, n_bytes)

    def download(self, host: int, address: int, n_bytes: int, stream: WorkQueue) -> None:
        """Copy later; until then the host reads poison."""

        def poison() -> None:
            ctypes.memset(host, POISON, n_bytes)

        copy = functools.partial(self._copy, host, address, n_bytes, host, address)
        self._copy_later(stream, copy, host, n_bytes, poison)

    def _copy_later(
        self, stream: WorkQueue, copy: Work, host: int, n_bytes: int, first: Work = lambda: None
    ) -> None:
        """Enqueue a copy; `first` is done on the host at once, as often as the copy is enqueued."""
        if self._capture_of(stream) is not None and not self.host.covers(host, n_bytes):
            raise CaptureError("copy in a graph", f"{n_bytes} bytes", "the host's memory is not page-locked")

        def enqueue(to: WorkQueue) -> None:
            first()
            self._enqueue(to, copy)

        self._now_or_captured(stream, enqueue)

    def _now_or_captured(self, stream: WorkQueue, enqueue: Enqueue) -> None:
        """Enqueue work, or keep it for the graph that is being made."""
        if (capture := self._capture_of(stream)) is not None:
            capture.add(stream, enqueue)
        else:
            enqueue(stream)

    def _copy(self, to: int, source: int, n_bytes: int, host: int, address: int) -> None:
        if not self.memory.covers(address, n_bytes) or not self.host.covers(host, n_bytes):
            self._lose(f"a copy of {n_bytes} bytes runs after its memory was freed")
        ctypes.memmove(to, source, n_bytes)

    def prepare(self, launch: Launch) -> Callable[[WorkQueue], None]:
        """A launch with its arguments laid out, to be enqueued any number of times."""
        library, values = self._library(launch.kernel), [_c_value(argument) for argument in launch.arguments]
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        sizes = (
            (ctypes.c_uint * 3)(*launch.grid),
            (ctypes.c_uint * 3)(*launch.block),
            ctypes.c_size_t(launch.shared),
        )

        def run(keep: object = values) -> None:
            if not all(self.host.covers(*place) for place in launch.host):
                self._lose(f"kernel {launch.kernel} runs after page-locked memory that it reads was freed")
            said = ctypes.create_string_buffer(MESSAGE_BYTES)
            with _one_launch:
                self.last = library
                failed = library.code.emulator_launch(
                    library.kernels[launch.kernel],
                    *sizes,
                    addresses,
                    self.order,
                    said,
                    ctypes.c_size_t(MESSAGE_BYTES),
                )
            if failed:
                self._lose(said.value.decode(errors="replace"))

        return lambda stream: self._now_or_captured(stream, lambda to: self._enqueue(to, run))

    def load_types(self, endings: Iterable[str]) -> None:
        """Kernels take none of this device's memory."""

    # Graphs

    def begin_capture(self, stream: WorkQueue) -> None:
        """From here on the stream's work is written down."""
        self._check_alive()
        self._check_no_capture("another capture")
        self.capture = Capture(stream)

    def end_capture(self, stream: WorkQueue) -> Graph:
        """What was written down."""
        capture, self.capture = self.capture, None
        if capture is None:
            raise CaptureError("capture", "ended", "none was begun")
        return capture.end(stream, self.streams)

    def launch_graph(self, graph: Graph, stream: WorkQueue) -> None:
        """Enqueue it piece by piece, in its order."""
        self._check_no_capture("a graph")
        graph.launch(stream)

    def _check_no_capture(self, what: str) -> None:
        """CUDA ends a capture in which this is asked for."""
        if self.capture is not None:
            raise CaptureError(
                "capture", what, "a graph holds copies and launches alone", "ask before or after"
            )

    def _library(self, kernel: str) -> Library:
        """The compiled unit that a kernel is in."""
        unit = unit_of(kernel) if self.source is None else None
        source = unit.source if unit is not None else self.source or ""
        if source not in self.libraries:
            signatures = unit.signatures if unit is not None else self.signatures
            path = build(source, self.build_kind)
            code = _load(path)
            self.libraries[source] = Library(path, code, _kernels(code, signatures))
        return self.libraries[source]

    def touched(self) -> tuple[int, int]:
        """Bytes of device memory that the last launch read and wrote, each once; `races` build only."""
        bytes_read, bytes_written, totals = ctypes.c_size_t(), ctypes.c_size_t(), [0, 0]
        if self.last is None:
            return 0, 0
        for block in self.memory.blocks.values():
            place = ctypes.c_void_p(block.address), ctypes.c_size_t(block.n_bytes)
            counts = ctypes.byref(bytes_read), ctypes.byref(bytes_written)
            self.last.code.emulator_touched(*place, *counts)
            totals = [totals[0] + bytes_read.value, totals[1] + bytes_written.value]
        return totals[0], totals[1]

    def close(self) -> None:
        """Drop enqueued work."""
        self.streams.drop()

    # Faults

    def _enqueue(self, stream: WorkQueue, work: Callable[[], None]) -> None:
        self._check_alive()
        stream.enqueue(work)

    def _check_alive(self) -> None:
        if self.lost:
            raise DeviceError(self.facts.name, "lost", f"after {self.lost}", "open it again")

    def _lose(self, message: str) -> None:
        """A fault ends the device, as it ends a CUDA context."""
        self.streams.drop()
        self.lost = self._explained(message)
        raise KernelFault(self.lost)

    def _explained(self, message: str) -> str:
        """Program counters as source lines, addresses as bytes of buffers."""
        message = re.sub(r"pc\+0x([0-9a-f]+)", lambda m: self._line(int(m[1], 16)), message)
        return re.sub(r"(to|byte) 0x([0-9a-f]+)", lambda m: self._place(m[1], int(m[2], 16)), message)

    def _line(self, pc: int) -> str:
        """`file:line` of a return address, by binutils, which every g++ comes with."""
        tool = shutil.which("addr2line")
        if tool is None or self.last is None:
            return f"pc+{pc:#x}"
        command = [tool, "-e", str(self.last.path), hex(pc - 1)]
        said = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
        return os.path.basename(said.split(" ")[0]) or f"pc+{pc:#x}"

    def _place(self, word: str, address: int) -> str:
        found = self.memory.describe(address) or self.host.describe(address)
        before = "to " if word == "to" else ""
        return f"{before}{found}" if found else f"{word} {address:#x}"


def _check_not_captured(event: Mark) -> None:
    """A place in a graph is none in a stream."""
    bound = "nothing outside of its graph can wait for it (cudaErrorCapturedEvent)"
    if event.captured:
        raise DeviceError("event", "recorded within a capture", bound, "make it an external one")


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise DeviceError("emulated device", path, f"does not load: {error}", "delete it") from error
    library.emulator_kernel.restype = library.emulator_signature.restype = ctypes.c_char_p
    library.emulator_stacks.restype = ctypes.c_void_p
    with _one_launch:
        _stacks.value = library.emulator_stacks(_stacks)
    return library


def _kernels(library: ctypes.CDLL, signatures: Mapping[str, Signature]) -> dict[str, int]:
    """Each kernel's number; what the compiler deduced must be what was read from the source."""
    numbers: dict[str, int] = {}
    while raw := library.emulator_kernel(len(numbers)):
        name = raw.decode()
        compiled, read = library.emulator_signature(len(numbers)).decode(), signatures[name].codes
        if compiled != read:
            raise DeviceError(
                f"signature of {name}", read, f"the compiler says {compiled}", "report this bug"
            )
        numbers[name] = len(numbers)
    return numbers


def _c_value(argument: np.generic) -> Any:
    if argument.dtype == np.float16:
        return ctypes.c_uint16(int(argument.view(np.uint16)))
    c_type: Any = np.ctypeslib.as_ctypes_type(argument.dtype.char)
    return c_type(argument.item())
