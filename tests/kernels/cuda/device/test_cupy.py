"""The installed CuPy: it has what the driver calls, and writes nowhere but into our cache."""

import importlib
import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import left_in

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device import cuda_driver
from hotcold.kernels.cuda.device.cuda_driver import CudaDriver
from hotcold.kernels.cuda.device.nvrtc import Nvrtc, build_code


@pytest.fixture
def cupy() -> Any:
    return pytest.importorskip("cupy")


NAMES = {
    "__version__",
    "ndarray",
    "RawModule",
    "cuda.Device",
    "cuda.Event",
    "cuda.MemoryPool",
    "cuda.PinnedMemory",
    "cuda.PinnedMemoryPointer",
    "cuda.Stream",
    "cuda.driver.CUDADriverError",
    "cuda.memory.OutOfMemoryError",
    "cuda.runtime.CUDARuntimeError",
    "cuda.runtime.driverGetVersion",
    "cuda.runtime.getDeviceCount",
    "cuda.runtime.getDeviceProperties",
    "cuda.runtime.memGetInfo",
    "cuda.runtime.memcpyAsync",
    "cuda.runtime.memcpyDeviceToHost",
    "cuda.runtime.memcpyHostToDevice",
    "cuda.runtime.runtimeGetVersion",
    "cuda.runtime.streamWaitEvent",
}


def used_names() -> set[str]:
    """Every name under cupy in cuda_driver.py, with its two short hands `cuda` and `runtime`."""
    text = re.sub(r"^from hotcold.*$", "", Path(cuda_driver.__file__).read_text(), flags=re.MULTILINE)
    text = text.replace("runtime = self.cupy.cuda.runtime", "")
    text = text.replace("runtime = cupy.cuda.runtime", "")
    text = text.replace("cuda = self.cupy.cuda", "")
    found = re.findall(
        r"\b(cupy|cuda|runtime)\.((?:\w+\.)*\w+)", re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    )
    under = {"cupy": "", "cuda": "cuda.", "runtime": "cuda.runtime."}
    return {under[root] + name for root, name in found}


def test_the_list_of_names_is_complete() -> None:
    assert used_names() == NAMES


def test_every_name_exists(cupy: Any) -> None:
    for name in NAMES:
        place = cupy
        for part in name.split("."):
            place = getattr(place, part)


def test_signatures_are_cupys(cupy: Any) -> None:
    cuda = cupy.cuda
    inspect.signature(cuda.Stream.__init__).bind(None, non_blocking=True)
    inspect.signature(cuda.Event.__init__).bind(None, disable_timing=True)
    inspect.signature(cuda.Event.record).bind(None, None)
    inspect.signature(cuda.Event.synchronize).bind(None)
    inspect.signature(cuda.Stream.wait_event).bind(None, None)
    inspect.signature(cuda.Stream.synchronize).bind(None)
    assert all(hasattr(cuda.Stream, name) for name in ("begin_capture", "end_capture"))
    assert all(
        f"Graph.{call}(self, stream=None)" in getattr(cuda.Graph, call).__doc__
        for call in ("launch", "upload")
    )
    inspect.signature(cuda.PinnedMemory).bind(512)
    assert "PinnedMemoryPointer(mem, ptrdiff_t offset)" in cuda.PinnedMemoryPointer.__doc__
    assert "str path=None" in cupy.RawModule.__doc__
    assert isinstance(inspect.getattr_static(cupy.RawKernel, "kernel"), types.GetSetDescriptorType | property)
    arguments = "(intptr_t dst, intptr_t src, size_t size, int kind, intptr_t stream)"
    assert arguments in cuda.runtime.memcpyAsync.__doc__
    wait = "(intptr_t stream, intptr_t event, unsigned int flags=0)"
    assert wait in cuda.runtime.streamWaitEvent.__doc__
    assert (cuda.runtime.memcpyHostToDevice, cuda.runtime.memcpyDeviceToHost) == (1, 2)
    assert "~Stream.ptr" in cuda.Stream.__doc__ and "~Event.ptr" in cuda.Event.__doc__
    assert issubclass(cuda.runtime.CUDARuntimeError, Exception)
    assert cuda.runtime.CUDARuntimeError(cuda_driver.OUT_OF_MEMORY).status == cuda_driver.OUT_OF_MEMORY
    assert "emory" in str(cuda.runtime.CUDARuntimeError(cuda_driver.OUT_OF_MEMORY))


def test_arrays_behave_as_the_seam_needs(cupy: Any) -> None:
    host = np.zeros(64, "u1")
    memory = cupy.cuda.UnownedMemory(host.ctypes.data, host.nbytes, host, 0)
    array = cupy.ndarray((64,), np.uint8, cupy.cuda.MemoryPointer(memory, 0))
    part = array[16:48].view(np.dtype("f4")).reshape((2, 4))
    assert (part.shape, part.dtype, part.nbytes) == ((2, 4), np.float32, 32)
    assert int(part.data.ptr) == host.ctypes.data + 16 and part.data.mem is memory


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_calls_get_past_argument_checks(cupy: Any, nvrtc: Nvrtc, seam_source: str) -> None:
    """Without a driver CuPy checks the arguments, then fails in CUDA: a TypeError would be ours.

    A launch converts its arguments only when it need not ask CUDA for the current stream before.
    """
    cuda = cupy.cuda
    if cuda.is_available():
        pytest.skip("a card is here: the gpu tests run the calls themselves")
    module = cupy.RawModule(path=str(build_code(seam_source, 80)))
    function = cuda.Function.__new__(cuda.Function)
    scalars = (np.uint64(1), np.float16(1), np.int32(1), np.uint32(1), np.bool_(True), np.float32(1))
    ready = tuple(map(cuda_driver.argument_maker(cupy), scalars))
    assert not any(isinstance(argument, np.generic) for argument in ready)

    def launch(*arguments: object) -> None:
        function((1, 1, 1), (32, 1, 1), arguments, 0, cuda.Stream.null)

    with pytest.raises(TypeError):
        launch("no number")
    calls: list[Callable[[], object]] = [
        lambda: cuda.Stream(non_blocking=True),
        lambda: cuda.Event(disable_timing=True),
        lambda: cuda.PinnedMemoryPointer(cuda.PinnedMemory(512), 0),
        lambda: cuda.MemoryPool().malloc(512),
        lambda: cuda.MemoryPool().free_all_blocks(),
        lambda: cuda.MemoryPool().total_bytes(),
        lambda: cuda.Device(0).use(),
        lambda: cuda.Device(0).synchronize(),
        lambda: cuda.runtime.getDeviceCount(),
        lambda: cuda.runtime.getDeviceProperties(0),
        lambda: cuda.runtime.memGetInfo(),
        lambda: cuda.runtime.memcpyAsync(1, 2, 3, cuda.runtime.memcpyHostToDevice, 0),
        lambda: cuda.runtime.streamWaitEvent(0, 1, cuda_driver.EXTERNAL),
        lambda: module.get_function("scale"),
        lambda: launch(*scalars),
        lambda: launch(*ready),
    ]
    for call in calls:
        with pytest.raises(cuda.runtime.CUDARuntimeError):
            call()
    assert isinstance(cuda.runtime.driverGetVersion(), int) and isinstance(
        cuda.runtime.runtimeGetVersion(), int
    )


def test_without_a_driver_the_error_says_so(cupy: Any) -> None:
    if cupy.cuda.is_available():
        pytest.skip("a card is here")
    with pytest.raises(DeviceError) as caught:
        CudaDriver()
    assert caught.value.exit_code == 5 and "--device cpu" in str(caught.value)


LOOK = "from hotcold.kernels.cuda.device.cuda_driver import load_cupy\nload_cupy()"


def test_cupy_writes_into_our_cache_alone(tmp_path: Path) -> None:
    pytest.importorskip("cupy")
    assert left_in(tmp_path, LOOK, XDG_CACHE_HOME=str(tmp_path / "cache")) == ["cache"]
    assert [path.name for path in (tmp_path / "cache" / "hotcold").iterdir()] == ["cupy"]
    assert left_in(tmp_path, LOOK, CUPY_CACHE_DIR=str(tmp_path / "own")) == ["cache", "own"]
    assert left_in(tmp_path, LOOK, XDG_CACHE_HOME=str(tmp_path / "cache"), CUPY_CACHE_DIR="") == [
        "cache",
        "own",
    ]


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("home", "left"),
    [(None, [".cache", ".cache/hotcold", ".cache/hotcold/cupy"]), ("/proc", []), ("relative", []), ("", [])],
)
def test_cupy_writes_nothing_of_its_own_into_a_home(
    tmp_path: Path, home: str | None, left: list[str]
) -> None:
    """Where there can be no cache of ours, what it makes goes at the end of the run."""
    pytest.importorskip("cupy")
    left_in(tmp_path, LOOK, **({} if home is None else {"HOME": home}))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == left


@pytest.mark.parametrize(
    "error, remedy",
    [
        (OSError(13, "Permission denied", "/of/cupy"), "set CUPY_CACHE_DIR"),
        (OSError("no such library"), "pip install cupy"),
        (ImportError("no such library"), "pip install cupy"),
    ],
)
def test_cupy_that_cannot_be_imported_is_named(
    error: Exception, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(DeviceError, match=f"CuPy: not importable.*{error.args[-1]}.*; {remedy}"):
        cuda_driver.load_cupy()
