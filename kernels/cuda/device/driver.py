"""What a driver does for a Device: thin calls, nothing checked, nothing counted."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.signatures import Signature


class KernelFault(DeviceError):
    """A kernel did what no kernel may: the emulated device names it, its block, thread and line."""


class CaptureError(DeviceError):
    """A graph cannot be made: the driver or CuPy has none, or refuses what is in it."""


@dataclass(frozen=True)
class Facts:
    """What a device is.

    Attributes:
        name: as in --device.
        description: for people.
        architecture: its version, 90 for sm_90; 0 if it has none.
        n_sm: multiprocessors, each of which runs blocks of its own.
    """

    name: str
    description: str
    architecture: int = 0
    n_sm: int = 1


@dataclass(frozen=True)
class Launch:
    """A launch as a driver takes it, checked.

    Attributes:
        kernel: its name in the sources.
        grid, block: x, y, z.
        arguments: numbers of the very types that the kernel reads; pointers as uint64.
        shared: bytes of dynamic shared memory.
        host: addresses and bytes of page-locked memory that the kernel reads.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[np.generic, ...]
    shared: int
    host: tuple[tuple[int, int], ...] = ()


class Driver(Protocol):
    """CudaDriver or EmulatedDriver.

    Arrays are the driver's own: `cupy.ndarray` or NumPy arrays over the emulated memory. Streams and
    events are the driver's own, too. Copies and launches only enqueue.
    """

    signatures: Mapping[str, Signature]
    facts: Facts

    def allocate(self, n_bytes: int) -> Any:
        """A fresh array of bytes in device memory; DoesNotFitError if there is no room."""

    def release(self, array: Any) -> None:
        """Free what `allocate` returned."""

    def used_bytes(self) -> int:
        """Bytes that the driver's allocator holds at this moment."""

    def free_and_total(self) -> tuple[int, int]:
        """Bytes of device memory: left and in all."""

    def address(self, array: Any) -> int:
        """The device address of an array's first byte."""

    def allocate_pinned(self, n_bytes: int) -> tuple[NDArray[np.uint8], object]:
        """Page-locked host memory, and the handle to release it by."""

    def release_pinned(self, handle: Any) -> None:
        """Free page-locked memory."""

    def know_pinned(self, array: NDArray[np.uint8]) -> None:
        """Page-locked memory of another device's driver is one for this device too, for copies and for kernels."""

    def forget_pinned(self, array: NDArray[np.uint8]) -> None:
        """It is about to be freed."""

    def new_stream(self) -> Any:
        """A stream that is ordered with no other, the default stream included."""

    def new_event(self) -> Any:
        """An event."""

    def record(self, event: Any, stream: Any) -> None:
        """Mark the end of a stream as it is now."""

    def stream_wait(self, stream: Any, event: Any) -> None:
        """Later work of the stream runs after what the event has recorded up to now."""

    def record_external(self, event: Any, stream: Any) -> None:
        """Within a capture: each launch of the graph records the event, which the host may wait for."""

    def wait_external(self, stream: Any, event: Any) -> None:
        """Within a capture: each launch of the graph waits for what the event has recorded before it."""

    def wait_event(self, event: Any) -> None:
        """The host waits for what the event has recorded."""

    def wait_stream(self, stream: Any) -> None:
        """The host waits for all work of a stream."""

    def wait_all(self) -> None:
        """The host waits for all work of the device."""

    def upload(self, address: int, host: int, n_bytes: int, stream: Any) -> None:
        """Enqueue a copy from page-locked host memory to device memory, both given by address."""

    def download(self, host: int, address: int, n_bytes: int, stream: Any) -> None:
        """Enqueue a copy from device memory to page-locked host memory, both given by address."""

    def prepare(self, launch: Launch) -> Callable[[Any], None]:
        """What enqueues the launch when it is called with a stream, any number of times."""

    def load_types(self, endings: Iterable[str]) -> None:
        """Bring the kernels for some types of weights to the device, so that what they take there is taken."""

    def begin_capture(self, stream: Any) -> None:
        """From here on the stream's copies and launches are written down and not done.

        So are those of a stream that waits for an event of the capture, until the capture ends.
        """

    def end_capture(self, stream: Any) -> Any:
        """What was written down, as a graph; the stream has to wait for all others in it before."""

    def launch_graph(self, graph: Any, stream: Any) -> None:
        """Enqueue all of a graph; later work of the stream comes after all of it."""

    def close(self) -> None:
        """Give everything back."""
