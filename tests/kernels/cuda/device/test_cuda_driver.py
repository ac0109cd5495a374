"""The CUDA driver without a card, on a stand-in for CuPy."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import stub_cupy
from gguf import GGMLQuantizationType
from stub_cupy import StubCupy

from hotcold.errors import DeviceError, DoesNotFitError, HotcoldError
from hotcold.kernels.cuda.device.cuda_driver import CudaDriver
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.nvrtc import Nvrtc
from hotcold.kernels.cuda.device.slabs import allocate_slabs
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

Open = Callable[..., Device]
Put = Callable[..., Any]
Get = Callable[..., Any]


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


def test_kernels_of_a_type_are_asked_for_one_by_one(
    open_stub: Open, seam_source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which brings them to the card; what is not free any more is what they take."""
    device, asked = open_stub(source=seam_source), list[str]()
    driver: Any = device.driver
    free, total = driver.free_and_total()

    class Module:
        def get_function(self, name: str) -> None:
            asked.append(name)

    monkeypatch.setattr(driver, "_module", lambda source: Module())
    monkeypatch.setattr(driver, "free_and_total", lambda: (free - 1000 * len(asked), total))
    taken = device.load_kernels([GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_0])
    assert {"matvec_q4_0", "matmul_q4_0", "sparse_gated_ffn_q4_0"} <= set(asked)
    assert len(asked) == len(set(asked)) and taken == 1000 * len(asked)
    with pytest.raises(DeviceError, match="weight type on the device"):
        device.load_kernels([GGMLQuantizationType.I8])
