"""The CUDA driver without a card: on a stand-in for CuPy, and against the installed CuPy's names."""

import importlib
import inspect
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stub_cupy
from stub_cupy import StubCupy

from hotcold.errors import DeviceError, DoesNotFitError, HotcoldError
from hotcold.kernels.cuda.device import cache, cuda_driver
from hotcold.kernels.cuda.device.cuda_driver import CudaDriver
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.nvrtc import Nvrtc, build_code
from hotcold.kernels.cuda.device.slabs import allocate_slabs
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

Open = Callable[..., Device]
Put = Callable[..., Any]
Get = Callable[..., Any]


# On the stand-in: what the driver passes to CuPy is executed


def test_a_kernel_runs(open_stub: Open, seam_source: str, put: Put, get: Get) -> None:
    device = open_stub(source=seam_source)
    x, y = put(device, np.arange(8, dtype="f4")), device.empty(8, "f4")
    device.launch("scale", 1, 32, (x, y, 2.5, 8), device.compute)
    assert (get(device, y) == np.arange(8) * 2.5).all()


def test_every_scalar_type_arrives_as_it_was_sent(open_stub: Open, seam_source: str, get: Get) -> None:
    device = open_stub(source=seam_source)
    sent = [0.5, -7, 2**32 - 1, 255, -128, 65535, -32768, 0.25, -(2**40), 2**50, 1e-300, True]
    out = device.empty(12, "f8")
    device.launch("widths", 1, 32, (out, *sent), device.compute)
    assert get(device, out).tolist() == [float(v) for v in sent]


@pytest.mark.parametrize(("policy", "seed"), [("eager", 0), ("late", 0), ("random", 1), ("random", 2)])
def test_streams_and_events_order_work(open_stub: Open, seam_source: str, policy: str, seed: int) -> None:
    device = open_stub(source=seam_source, policy=policy, seed=seed)
    staging, out, x = device.pinned(4, "f4"), device.pinned(4, "f4"), device.empty(4, "f4")
    uploaded, done = device.event(), device.event()
    for step in range(3):
        uploaded.synchronize()
        staging.array[:] = step
        device.copy.wait(done)
        device.upload(x, staging, device.copy)
        uploaded.record(device.copy)
        device.compute.wait(uploaded)
        device.launch("scale", 1, 32, (x, x, 2.0, 4), device.compute)
        device.download(out, x, device.compute)
        done.record(device.compute)
        done.synchronize()
        assert (out.array == 2 * step).all()


def test_a_missing_wait_shows_here_too(open_stub: Open, seam_source: str) -> None:
    device = open_stub(source=seam_source)
    staging, x, y = device.pinned(4, "f4"), device.empty(4, "f4"), device.empty(4, "f4")
    out = device.pinned(4, "f4")
    staging.array[:] = 1
    device.upload(x, staging, device.copy)
    device.launch("scale", 1, 32, (x, y, 2.0, 4), device.compute)
    device.download(out, y, device.compute)
    device.compute.synchronize()
    assert np.isnan(out.array).all()


def test_slabs_are_one_array_each_and_planes_are_views(
    open_stub: Open, seam_source: str, put: Put, get: Get
) -> None:
    device = open_stub(source=seam_source)
    slabs = allocate_slabs(device, weights=4096, kv_cache=0, arena=1000)
    assert slabs.weights is not None and slabs.arena is not None and slabs.kv_cache is None
    assert len(device.allocations) == 2 and device.counters.live_bytes == 4096 + 1024
    root, planes = slabs.weights.array, [slabs.weights.view(64 * i, (4, 4), "f4") for i in range(3)]
    for i, plane in enumerate(planes):
        array = plane.array
        assert isinstance(array, stub_cupy.Array) and (array.shape, array.dtype) == ((4, 4), np.float32)
        assert array.data.mem is root.data.mem and array.data.ptr == root.data.ptr + 64 * i == plane.address
    host = device.pinned((4, 4), "f4")
    host.array[:] = 7
    device.upload(planes[1], host, device.compute)
    device.launch("scale", 1, 32, (planes[1], planes[2], 2.0, 16), device.compute)
    assert (get(device, planes[2]) == 14).all()
    del root, array  # an array that somebody keeps, keeps the memory
    slabs.free()
    assert device.counters.live_bytes == 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_slabs_are_all_or_nothing(open_stub: Open, seam_source: str, n: int) -> None:
    device = open_stub(source=seam_source)
    device.fail_at("alloc", n)
    with pytest.raises(DoesNotFitError):
        allocate_slabs(device, 512, 512, 512)
    assert device.counters.live_bytes == 0 and not device.allocations


def test_live_bytes_are_the_pools(open_stub: Open, seam_source: str) -> None:
    device = open_stub(source=seam_source)
    a, b = device.empty(1000, "u1"), device.empty(513, "u1")
    assert device.counters.live_bytes == 2048
    prepared = device.prepare("scale", 1, 32, (device.empty(8, "f4"), device.empty(8, "f4"), 1.0, 8))
    for buffer in (a, b):
        buffer.free()
    assert (device.counters.live_bytes, device.counters.peak_bytes) == (1024, 3072)
    device.close()  # the prepared launch is still there, and keeps nothing alive
    assert device.counters.live_bytes == 0 and prepared.kernel == "scale"


def test_memory_runs_out(open_stub: Open, seam_source: str) -> None:
    device = open_stub(source=seam_source, memory=4096)
    with pytest.raises(DoesNotFitError, match="cuda:0.*4096 bytes left.*lower --vram-budget"):
        device.empty(4097, "u1")
    assert device.memory() == (4096, 4096)


def test_without_cupys_own_scalars_numbers_stay_numbers(
    compiler: str, nvrtc: Nvrtc, seam_source: str, put: Put, get: Get
) -> None:
    cupy = StubCupy(EmulatedDriver(seam_source))
    del cupy._core
    with Device(CudaDriver(source=seam_source, cupy=cupy)) as device:
        x, y = put(device, np.arange(4, dtype="f4")), device.empty(4, "f4")
        device.launch("scale", 1, 32, (x, y, 2.0, 4), device.compute)
        assert get(device, y).tolist() == [0, 2, 4, 6]


def test_a_cuda_error_is_ours_and_the_device_still_closes(
    compiler: str, nvrtc: Nvrtc, seam_source: str, put: Put
) -> None:
    cupy = StubCupy(EmulatedDriver(seam_source))
    device = Device(CudaDriver(source=seam_source, cupy=cupy))
    x, y, host = put(device, np.ones(8, "f4")), device.empty(1, "f4"), device.pinned(1, "f4")
    device.launch("peek", 1, 32, (x, y, 8), device.compute)
    with pytest.raises(DeviceError, match="cuda:0, wait_all: cudaError 700") as caught:
        device.synchronize()
    assert caught.value.exit_code == 5
    for call in (lambda: device.empty(1, "f4"), lambda: device.upload(y, host, device.compute), device.event):
        with pytest.raises(DeviceError, match="cudaError 700"):
            call()
    device.close()  # CUDA answers every call with the same error; none of them gets out
    assert device.closed and not device.allocations and not device.pinned_allocations


def test_the_chosen_card_is_used_and_named(open_stub: Open, seam_source: str) -> None:
    device = open_stub(index=2, cards=3, source=seam_source)
    device.empty(8, "f4")
    assert device.name == "cuda:2" and device.facts.description == "stub card 2"
    assert device.facts.architecture == 86
    assert isinstance(device.driver, CudaDriver) and set(device.driver.cupy.used) == {2}


@pytest.mark.parametrize(
    ("options", "index", "word"),
    [
        ({"driver_version": 0}, 0, "CUDA driver: none"),
        ({"driver_version": 11080}, 0, "for CUDA 11 .CuPy needs CUDA 12.*update it"),
        ({"driver_version": 12040}, 1, "cuda:1 .there are 1, the last is cuda:0"),
        ({"driver_version": 13000, "runtime_version": 13000, "cards": 2}, -1, "cuda:-1"),
        ({"cards": 0}, 0, "no card.*CUDA_VISIBLE_DEVICES"),
    ],
)
def test_what_cannot_run_is_said_with_its_remedy(options: dict[str, int], index: int, word: str) -> None:
    nothing: Any = _NoDevice()
    cupy = StubCupy(nothing, **options)
    with pytest.raises(DeviceError, match=word) as caught:
        CudaDriver(index, cupy=cupy)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("status", "kind", "problem"),
    [
        (2, DoesNotFitError, "memory of cuda:1: cudaError 2 .there is no room for a CUDA context.; end what"),
        (46, DeviceError, "cuda:1: cudaError 46 .it is in exclusive mode, or busy.; end the program"),
        (700, DeviceError, "cuda:1: cudaError 700 .it does not answer.; see nvidia-smi, or use --device cpu"),
    ],
)
def test_a_card_that_does_not_open_is_named(
    nvrtc: Nvrtc, seam_source: str, status: int, kind: type[HotcoldError], problem: str
) -> None:
    nothing: Any = _NoDevice()
    cupy = StubCupy(nothing, cards=2)
    cupy.statuses[1] = status
    with pytest.raises(kind, match=problem):
        CudaDriver(1, source=seam_source, cupy=cupy)


class _NoDevice:
    free_and_total = staticmethod(lambda: (0, 0))


def test_a_missing_cupy_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match="CuPy: not importable.*pip install cupy-cuda12x"):
        CudaDriver()


def test_cupy_is_not_imported_with_the_module() -> None:
    code = "import sys, hotcold.kernels.cuda.device.cuda_driver; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Against the installed CuPy


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
    assert "launch" in dir(cuda.Graph)
    inspect.signature(cuda.PinnedMemory).bind(512)
    assert "PinnedMemoryPointer(mem, ptrdiff_t offset)" in cuda.PinnedMemoryPointer.__doc__
    assert "str path=None" in cupy.RawModule.__doc__
    assert isinstance(inspect.getattr_static(cupy.RawKernel, "kernel"), types.GetSetDescriptorType | property)
    arguments = "(intptr_t dst, intptr_t src, size_t size, int kind, intptr_t stream)"
    assert arguments in cuda.runtime.memcpyAsync.__doc__
    assert (cuda.runtime.memcpyHostToDevice, cuda.runtime.memcpyDeviceToHost) == (1, 2)
    assert "~Stream.ptr" in cuda.Stream.__doc__
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


def left_in(folder: Path, code: str, **environment: str) -> list[str]:
    """What a process leaves in a folder that is its home and its place for temporary files."""
    places = {name: str(folder) for name in ("HOME", "TMPDIR")}
    without = {
        name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "CUPY_CACHE_DIR")
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=without | places | environment)
    return sorted(path.name for path in folder.iterdir())


LOOK = "from hotcold.kernels.cuda.device.cuda_driver import load_cupy\nload_cupy()"


def test_cupy_writes_into_our_cache_alone(tmp_path: Path) -> None:
    pytest.importorskip("cupy")
    assert left_in(tmp_path, LOOK, XDG_CACHE_HOME=str(tmp_path / "cache")) == ["cache"]
    assert [path.name for path in (tmp_path / "cache" / "hotcold").iterdir()] == ["cupy"]
    assert left_in(tmp_path, LOOK, CUPY_CACHE_DIR=str(tmp_path / "own")) == ["cache", "own"]


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


@pytest.mark.parametrize("error", [OSError(13, "Permission denied"), ImportError("no such library")])
def test_cupy_that_cannot_be_imported_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(DeviceError, match=f"CuPy: not importable.*{error.args[-1]}"):
        cuda_driver.load_cupy()


def test_a_run_without_a_cache_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "from hotcold.kernels.cuda.device.cache import cached\n"
        "path = cached('kernels', 'abc', '.so', lambda: b'code')\n"
        "assert path.read_bytes() == b'code' and path == cached('kernels', 'abc', '.so', lambda: 1 / 0)"
    )
    assert left_in(tmp_path, code, HOME="/proc/none") == []


def test_a_full_disk_keeps_a_kernel_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def full(path: Path, content: bytes) -> None:
        if path.is_relative_to(tmp_path):
            raise DoesNotFitError(f"writing {path}", "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr(cache, "write_whole", full)
    path = cache.cached("kernels", "def", ".so", lambda: b"code")
    assert path.read_bytes() == b"code" and not list((tmp_path / "hotcold").iterdir())
