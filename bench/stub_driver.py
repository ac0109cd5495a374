"""Drivers for a Device that computes nothing: what is left is the host's own time.

`StubDriver` does nothing at all. `SleepingDriver` takes the time that it is told, in a thread that leaves
the processor to others, as a card would.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.kernels.cpu.program import aligned
from hotcold.kernels.cuda.device.driver import Facts, Launch
from hotcold.kernels.cuda.device.signatures import Signature
from hotcold.kernels.cuda.device.units import Kernels
from hotcold.kernels.formats import granules

MEMORY_BYTES = 64 << 30
"""What a stub says it has; pages are taken from the host when they are touched."""


class StubDriver:
    """A driver whose copies and kernels are nothing, for `Device`."""

    def __init__(self) -> None:
        self.signatures: Mapping[str, Signature] = Kernels()
        self.facts = Facts("stub", "a device that computes nothing")
        self._used = 0

    def allocate(self, n_bytes: int) -> NDArray[np.uint8]:
        """Bytes of the host's memory, at a multiple of 64, in whole granules."""
        self._used += granules(n_bytes)
        return aligned(n_bytes)

    def release(self, array: Any) -> None:
        """Forget them."""
        self._used -= granules(array.nbytes)

    def used_bytes(self) -> int:
        """Bytes handed out."""
        return self._used

    def free_and_total(self) -> tuple[int, int]:
        """Bytes left and in all."""
        return MEMORY_BYTES - self._used, MEMORY_BYTES

    def address(self, array: Any) -> int:
        """Where an array begins."""
        return int(array.ctypes.data)

    def allocate_pinned(self, n_bytes: int) -> tuple[NDArray[np.uint8], object]:
        """Ordinary memory."""
        return aligned(n_bytes), None

    def release_pinned(self, handle: Any) -> None:
        """Nothing to do."""

    def know_pinned(self, array: Any) -> None:
        """Nothing to do."""

    def forget_pinned(self, array: Any) -> None:
        """Nothing to do."""

    def new_stream(self) -> Any:
        """Nothing."""
        return None

    def new_event(self) -> Any:
        """Nothing."""
        return None

    def record(self, event: Any, stream: Any) -> None:
        """Nothing to mark."""

    def stream_wait(self, stream: Any, event: Any) -> None:
        """Nothing to wait for."""

    def record_external(self, event: Any, stream: Any) -> None:
        """Nothing to mark."""

    def wait_external(self, stream: Any, event: Any) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: Any) -> None:
        """Nothing to wait for."""

    def wait_stream(self, stream: Any) -> None:
        """Nothing to wait for."""

    def wait_all(self) -> None:
        """Nothing to wait for."""

    def upload(self, address: int, host: int, n_bytes: int, stream: Any) -> None:
        """No copy."""

    def download(self, host: int, address: int, n_bytes: int, stream: Any) -> None:
        """No copy."""

    def prepare(self, launch: Launch) -> Callable[[Any], None]:
        """A launch of nothing."""
        return _nothing

    def close(self) -> None:
        """Nothing to give back."""

    def load_types(self, endings: Any) -> None:
        """There are no kernels."""

    def begin_capture(self, stream: Any) -> None:
        """Nothing to write down."""

    def end_capture(self, stream: Any) -> Any:
        """Nothing was written down."""
        return ()

    def launch_graph(self, graph: Any, stream: Any) -> None:
        """Nothing to do."""


class SleepingDriver(StubDriver):
    """A stub whose streams are threads, and whose kernels take their time there, asleep.

    Attributes:
        seconds: how long a launch takes, by the beginning of the kernel's name; others take no time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self._lines: list[_Line] = []
        self._captured: list[Callable[[], Any]] | None = None

    def new_stream(self) -> "_Line":
        """A thread with a queue."""
        self._lines.append(_Line())
        return self._lines[-1]

    def new_event(self) -> "_Mark":
        """Passed at once until it is recorded."""
        return _Mark()

    def record(self, event: Any, stream: Any) -> None:
        """Pass it when the stream has come so far."""

        def mark() -> None:
            event.passed = threading.Event()
            stream.work.put(event.passed.set)

        self._now_or_captured(mark)

    def stream_wait(self, stream: Any, event: Any) -> None:
        """Let the stream's thread wait."""
        self._now_or_captured(lambda: stream.work.put(event.passed.wait))

    def record_external(self, event: Any, stream: Any) -> None:
        """The same: events are recorded anew by each launch of a graph."""
        self.record(event, stream)

    def wait_external(self, stream: Any, event: Any) -> None:
        """The same."""
        self.stream_wait(stream, event)

    def _now_or_captured(self, enqueue: Callable[[], Any]) -> None:
        if self._captured is not None:
            self._captured.append(enqueue)
        else:
            enqueue()

    def wait_event(self, event: Any) -> None:
        """Wait for the other thread."""
        event.passed.wait()

    def wait_stream(self, stream: Any) -> None:
        """Wait for the other thread to be idle."""
        mark = _Mark()
        self.record(mark, stream)
        mark.passed.wait()

    def wait_all(self) -> None:
        """Wait for all threads to be idle."""
        for line in self._lines:
            self.wait_stream(line)

    def prepare(self, launch: Launch) -> Callable[[Any], None]:
        """A launch that sleeps."""

        def sleep() -> None:
            seconds = next((s for name, s in self.seconds.items() if launch.kernel.startswith(name)), 0.0)
            if seconds:
                time.sleep(seconds)

        return lambda stream: self._now_or_captured(lambda: stream.work.put(sleep))

    def begin_capture(self, stream: Any) -> None:
        """Keep what comes, of all streams."""
        self._captured = []

    def end_capture(self, stream: Any) -> Any:
        """What came."""
        captured, self._captured = self._captured, None
        return captured

    def launch_graph(self, graph: Any, stream: Any) -> None:
        """Do it in its order, in the streams that it was captured in."""
        for enqueue in graph:
            enqueue()

    def close(self) -> None:
        """End the threads."""
        for line in self._lines:
            line.work.put(None)
            line.thread.join()


class _Mark:
    """An event; what was never recorded has been passed."""

    def __init__(self) -> None:
        self.passed = threading.Event()
        self.passed.set()


class _Line:
    """A stream: what is put there is done in order, in a thread."""

    def __init__(self) -> None:
        self.work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while (work := self.work.get()) is not None:
            work()


def _nothing(stream: Any) -> None:
    pass
