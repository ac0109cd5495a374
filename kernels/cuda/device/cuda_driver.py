"""The driver for a card: CuPy only, one thin call each.

CuPy is imported when a device is opened, never before: CPU use pays nothing for it.
"""

import ctypes
import functools
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hotcold.errors import DeviceError, DoesNotFitError, FileError, HotcoldError
from hotcold.kernels.cuda.device.cache import quiet_directory
from hotcold.kernels.cuda.device.driver import CaptureError, Facts, Launch
from hotcold.kernels.cuda.device.nvrtc import build_code
from hotcold.kernels.cuda.device.signatures import Signature, read_signatures
from hotcold.kernels.cuda.device.units import Kernels, of_type, unit_of, untyped

INSTALL = "pip install cupy-cuda12x (or cupy-cuda13x), or use --device cpu"
NO_FOLDER = "set CUPY_CACHE_DIR to a folder that can be written, or use --device cpu"
OUT_OF_MEMORY, IS_TAKEN = 2, 46
"""cudaErrorMemoryAllocation, cudaErrorDevicesUnavailable."""
EXTERNAL = 1
"""CU_EVENT_RECORD_EXTERNAL and cudaEventWaitExternal: an event of a graph that is seen from outside."""
F = TypeVar("F", bound=Callable[..., Any])


def load_cupy() -> Any:
    """The module cupy; DeviceError if it is not installed or does not import.

    CuPy makes the folder of its cache when it is imported, card or no card: it is in ours, unless
    CUPY_CACHE_DIR names another.
    """
    try:
        if not os.environ.get("CUPY_CACHE_DIR"):
            os.environ["CUPY_CACHE_DIR"] = str(quiet_directory() / "cupy")
        return importlib.import_module("cupy")
    except (ImportError, OSError, FileError) as error:
        remedy = NO_FOLDER if isinstance(error, OSError) and error.filename is not None else INSTALL
        raise DeviceError("CuPy", "not importable", str(error), remedy) from error


def translated(method: F) -> F:
    """Let CuPy's errors leave as ours."""

    @functools.wraps(method)
    def call(self: "CudaDriver", *arguments: Any) -> Any:
        try:
            self.card.use()  # the current device is a thread's own
            return method(self, *arguments)
        except self.cuda_errors as error:
            raise _our_error(self.facts.name, method.__name__, error) from error

    return call  # type: ignore[return-value]  # of the same signature


def _our_error(device: str, call: str, error: Exception) -> HotcoldError:
    no_memory = getattr(error, "status", None) == OUT_OF_MEMORY or "OutOfMemory" in type(error).__name__
    if no_memory:
        return DoesNotFitError(f"memory of {device}", error, "", "lower --vram-budget")
    return DeviceError(f"{device}, {call}", error, "CUDA failed", "see the driver's log (dmesg)")


def cannot_open(card: str, error: Exception) -> HotcoldError:
    """What CUDA says of a card on which no context can be made, as an error of ours."""
    status = getattr(error, "status", None)
    if status == OUT_OF_MEMORY:
        remedy = "end what fills it (see nvidia-smi), or use --device cpu"
        return DoesNotFitError(f"memory of {card}", error, "there is no room for a CUDA context", remedy)
    if status == IS_TAKEN:
        remedy = "end the program that has it (see nvidia-smi), or use --device cpu"
        return DeviceError(card, error, "it is in exclusive mode, or busy", remedy)
    return DeviceError(card, error, "it does not answer", "see nvidia-smi, or use --device cpu")


def argument_maker(cupy: Any) -> Callable[[Any], Any]:
    """What makes a number ready for a launch.

    CuPy makes a `CScalar` of every argument of every launch, which costs more than the launch itself where there
    are twenty; it takes one that is ready as it is. The class is private: without it, numbers stay what they are.
    """
    maker = getattr(getattr(getattr(cupy, "_core", None), "_scalar", None), "CScalar", None)
    return maker if callable(maker) else lambda number: number


def load_libcuda() -> Any:
    """The CUDA driver's own library, for the one call that CuPy lacks: cuEventRecordWithFlags, of CUDA 11.1.

    Raises:
        CaptureError: no library, or an old one.
    """
    name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
        library.cuEventRecordWithFlags.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
    except (OSError, AttributeError) as error:
        raise CaptureError(
            "CUDA driver",
            error,
            "the host cannot wait for a part of a graph",
            "update it, or add --no-graphs",
        ) from error
    return library


def usable_cards(cupy: Any) -> int:
    """How many cards CUDA shows.

    Raises:
        DeviceError: no driver, a driver older than CuPy's CUDA, or no card.
    """
    runtime = cupy.cuda.runtime
    needs, has = runtime.runtimeGetVersion() // 1000, runtime.driverGetVersion() // 1000
    if has == 0:
        raise DeviceError("CUDA driver", "none", "a card needs one", "install it, or use --device cpu")
    if has < needs:
        remedy = "update it, install CuPy for the older CUDA, or use --device cpu"
        raise DeviceError("CUDA driver", f"for CUDA {has}", f"CuPy needs CUDA {needs}", remedy)
    try:
        count = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        raise DeviceError("CUDA", error, "no card answers", "see nvidia-smi, or use --device cpu") from error
    if count == 0:
        raise DeviceError("CUDA", "no card", "CUDA_VISIBLE_DEVICES may hide it", "use --device cpu")
    return count


class CudaDriver:
    """Runs kernels on a card.

    Args:
        index: which of the visible cards.
        source: the program; by default all kernels, a unit of them at a time.
        cupy: the module to call; tests pass a stub.
        libcuda: the driver's library, loaded when it is first needed; tests pass a stub.
    """

    def __init__(
        self, index: int = 0, source: str | None = None, cupy: Any = None, libcuda: Any = None
    ) -> None:
        self.cupy, self.libcuda = load_cupy() if cupy is None else cupy, libcuda
        count = usable_cards(self.cupy)
        if not 0 <= index < count:
            bound = f"there are {count}, the last is cuda:{count - 1}"
            raise DeviceError("device", f"cuda:{index}", bound, "choose one that `hotcold devices` shows")
        cuda = self.cupy.cuda
        self.cuda_errors = (
            cuda.runtime.CUDARuntimeError,
            cuda.driver.CUDADriverError,
            cuda.memory.OutOfMemoryError,
        )
        try:
            self.card = cuda.Device(index)
            self.facts = card_facts(self.cupy, index)
            self._open(source)
        except self.cuda_errors as error:
            raise cannot_open(f"cuda:{index}", error) from error

    def _open(self, source: str | None) -> None:
        self.source = source
        self.signatures: Mapping[str, Signature] = Kernels() if source is None else read_signatures(source)
        self.card.use()
        self.pool = self.cupy.cuda.MemoryPool()
        self.modules: dict[str, Any] = {}  # by their source
        self.functions: dict[str, Any] = {}
        self.to_argument = argument_maker(self.cupy)
        self._module(untyped().source if source is None else source)

    def _module(self, source: str) -> Any:
        """A compiled program on the card."""
        if source not in self.modules:
            code = build_code(source, self.facts.architecture)
            self.modules[source] = self.cupy.RawModule(path=str(code))
        return self.modules[source]

    def _function(self, kernel: str) -> Any:
        if kernel not in self.functions:
            unit = unit_of(kernel) if self.source is None else None
            source = unit.source if unit is not None else self.source or ""
            self.functions[kernel] = self._module(source).get_function(kernel)
        return self.functions[kernel]

    @translated
    def load_types(self, endings: Iterable[str]) -> None:
        """Their modules, and every kernel of them: CUDA brings a kernel to the card when it is first asked for."""
        for unit in map(of_type, endings):
            module = self._module(unit.source)
            for kernel in unit.signatures:
                module.get_function(kernel)

    # Memory

    @translated
    def allocate(self, n_bytes: int) -> Any:
        """A `cupy.ndarray` of bytes from a pool of our own, so that its size is ours alone."""
        return self.cupy.ndarray((n_bytes,), np.uint8, self.pool.malloc(n_bytes))

    def release(self, array: Any) -> None:
        """CuPy frees the memory when the last array over it is gone."""

    @translated
    def used_bytes(self) -> int:
        """Bytes that the pool holds of the card's memory, after giving back what nobody uses."""
        self.pool.free_all_blocks()
        return int(self.pool.total_bytes())

    @translated
    def free_and_total(self) -> tuple[int, int]:
        """Bytes left on the card for all programs, and in all."""
        free, total = self.cupy.cuda.runtime.memGetInfo()
        return int(free), int(total)

    def address(self, array: Any) -> int:
        """The device pointer."""
        return int(array.data.ptr)

    @translated
    def allocate_pinned(self, n_bytes: int) -> tuple[NDArray[np.uint8], object]:
        """cudaHostAlloc, without CuPy's pool: freed when it is released.

        With unified addresses, which every 64-bit system has, the pointer is one for the host and for kernels of all
        cards, whatever the flags (CUDA C Programming Guide, page-locked host memory).
        """
        pointer = self.cupy.cuda.PinnedMemoryPointer(self.cupy.cuda.PinnedMemory(n_bytes), 0)
        return np.frombuffer(pointer, np.uint8, n_bytes), pointer

    def release_pinned(self, handle: Any) -> None:
        """Freed when the last view is gone."""
        del handle

    def know_pinned(self, array: NDArray[np.uint8]) -> None:
        """Page-locked memory is one for all of a process's cards, by CUDA's unified addresses: kernels read it too."""

    def forget_pinned(self, array: NDArray[np.uint8]) -> None:
        """The same."""

    # Streams and events

    @translated
    def new_stream(self) -> Any:
        """Non-blocking: no hidden order with the default stream."""
        return self.cupy.cuda.Stream(non_blocking=True)

    @translated
    def new_event(self) -> Any:
        """Without timing, which would slow waits."""
        return self.cupy.cuda.Event(disable_timing=True)

    @translated
    def record(self, event: Any, stream: Any) -> None:
        """cudaEventRecord."""
        event.record(stream)

    @translated
    def stream_wait(self, stream: Any, event: Any) -> None:
        """cudaStreamWaitEvent."""
        stream.wait_event(event)

    @translated
    def record_external(self, event: Any, stream: Any) -> None:
        """cuEventRecordWithFlags, which makes a node of the graph."""
        self.libcuda = load_libcuda() if self.libcuda is None else self.libcuda
        status = self.libcuda.cuEventRecordWithFlags(event.ptr, stream.ptr, EXTERNAL)
        if status:
            raise CaptureError("event in a graph", f"CUresult {status}", "", "add --no-graphs")

    @translated
    def wait_external(self, stream: Any, event: Any) -> None:
        """cudaStreamWaitEvent, which makes a node of the graph."""
        self.cupy.cuda.runtime.streamWaitEvent(stream.ptr, event.ptr, EXTERNAL)

    @translated
    def wait_event(self, event: Any) -> None:
        """cudaEventSynchronize."""
        event.synchronize()

    @translated
    def wait_stream(self, stream: Any) -> None:
        """cudaStreamSynchronize."""
        stream.synchronize()

    @translated
    def wait_all(self) -> None:
        """cudaDeviceSynchronize."""
        self.card.synchronize()

    # Work

    @translated
    def upload(self, address: int, host: int, n_bytes: int, stream: Any) -> None:
        """cudaMemcpyAsync to the card."""
        runtime = self.cupy.cuda.runtime
        runtime.memcpyAsync(address, host, n_bytes, runtime.memcpyHostToDevice, stream.ptr)

    @translated
    def download(self, host: int, address: int, n_bytes: int, stream: Any) -> None:
        """cudaMemcpyAsync from the card."""
        runtime = self.cupy.cuda.runtime
        runtime.memcpyAsync(host, address, n_bytes, runtime.memcpyDeviceToHost, stream.ptr)

    @translated
    def prepare(self, launch: Launch) -> Callable[[Any], None]:
        """cuLaunchKernel with everything but the stream.

        Pointers come as numbers: a prepared launch keeps no memory alive that was freed.
        """
        kernel = self._function(launch.kernel).kernel
        arguments = tuple(map(self.to_argument, launch.arguments))

        def enqueue(stream: Any) -> None:
            kernel(launch.grid, launch.block, arguments, launch.shared, stream)

        return functools.partial(self._enqueue, enqueue)

    @translated
    def _enqueue(self, enqueue: Callable[[Any], None], stream: Any) -> None:
        enqueue(stream)

    @translated
    def begin_capture(self, stream: Any) -> None:
        """cudaStreamBeginCapture."""
        if not hasattr(stream, "begin_capture"):
            raise CaptureError(
                "CuPy", self.cupy.__version__, "it has no graphs", "update it, or add --no-graphs"
            )
        stream.begin_capture()

    @translated
    def end_capture(self, stream: Any) -> Any:
        """cudaStreamEndCapture, cudaGraphInstantiate, and cudaGraphUpload, which would fail at the first launch."""
        graph = stream.end_capture()
        graph.upload(stream)
        return graph

    @translated
    def launch_graph(self, graph: Any, stream: Any) -> None:
        """cudaGraphLaunch."""
        graph.launch(stream)

    @translated
    def local_bytes(self, kernel: str) -> int:
        """Bytes of local memory of each thread of a kernel: 0 unless its registers spill."""
        return int(self._function(kernel).local_size_bytes)

    @translated
    def close(self) -> None:
        """Give the pool's memory back."""
        self.pool.free_all_blocks()


def card_facts(cupy: Any, index: int) -> Facts:
    """What a card is called, its architecture and its multiprocessors."""
    properties = cupy.cuda.runtime.getDeviceProperties(index)
    name = properties["name"]
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    architecture = 10 * properties["major"] + properties["minor"]
    return Facts(f"cuda:{index}", text, architecture, properties["multiProcessorCount"])
