"""Graphs of copies and launches: captured once, done as often as they are launched, and nothing else in them."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.add import add
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import CapturedGraph, Device
from hotcold.kernels.cuda.device.driver import CaptureError

Open = Callable[..., Device]
Put = Callable[[Device, NDArray[np.generic]], Buffer]
Get = Callable[[Device, Buffer], NDArray[np.generic]]
POLICIES = ("eager", "late", "random")
N = 40


@pytest.fixture(params=["stub", *POLICIES])
def opened(request: pytest.FixtureRequest, open_emulated: Open, open_stub: Open) -> Device:
    return open_stub() if request.param == "stub" else open_emulated(policy=request.param)


def doubling(device: Device, x: Buffer) -> CapturedGraph:
    """x = x + x."""
    launch = add(N).prepare(device, (x, x, x, N))
    return device.capture(lambda: device.run(launch, device.compute), device.compute)


def test_a_graph_is_done_when_it_is_launched(opened: Device, put: Put, get: Get) -> None:
    x = put(opened, np.ones(N, "f4"))
    graph = doubling(opened, x)
    assert get(opened, x)[0] == 1 and opened.counters.launches["add"] == 0
    for _ in range(3):
        opened.run_graph(graph, opened.compute)
    assert (get(opened, x) == 8).all()
    assert (opened.counters.launches["add"], opened.counters.graph_launches) == (3, 3)


def test_copies_in_a_graph_take_what_is_there_then(opened: Device) -> None:
    up, down, x = opened.pinned(N, "f4"), opened.pinned(N, "f4"), opened.empty(N, "f4")
    launch = add(N).prepare(opened, (x, x, x, N))

    def work() -> None:
        opened.upload(x, up, opened.compute)
        opened.run(launch, opened.compute)
        opened.download(down, x, opened.compute)

    graph = opened.capture(work, opened.compute)
    for value in (1, 5):
        up.array[:] = value
        opened.run_graph(graph, opened.compute)
        opened.compute.synchronize()
        assert (down.array == 2 * value).all()
    counted = opened.counters
    assert (counted.h2d_calls, counted.d2h_calls, counted.h2d_bytes) == (2, 2, 8 * N)


def test_a_graphs_copy_is_late_like_any_other(open_emulated: Open) -> None:
    """Who does not wait for it reads poison, at the second time too."""
    device = open_emulated(policy="late")
    up, down, x = device.pinned(N, "f4"), device.pinned(N, "f4"), device.empty(N, "f4")
    up.array[:] = 3

    def work() -> None:
        device.upload(x, up, device.compute)
        device.download(down, x, device.compute)

    graph = device.capture(work, device.compute)
    for _ in range(2):
        device.run_graph(graph, device.compute)
        assert np.isnan(down.array).all()
        device.compute.synchronize()
        assert (down.array == 3).all()


FORBIDDEN: dict[str, Callable[[Device, Buffer], object]] = {
    "an allocation": lambda device, x: device.empty(8, "f4"),
    "page-locked memory": lambda device, x: device.pinned(8, "f4"),
    "a wait for all": lambda device, x: device.synchronize(),
    "a wait for a stream": lambda device, x: device.compute.synchronize(),
    "a wait for another stream": lambda device, x: device.compute.wait(device.event()),
    "an event": lambda device, x: device.event().record(device.compute),
    "a wait for an event": lambda device, x: device.event().synchronize(),
    "another graph": lambda device, x: doubling(device, x),
    "a host's own memory": lambda device, x: device.driver.upload(
        x.address, np.zeros(N, "f4").ctypes.data, 4 * N, device.compute.raw
    ),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_cuda_does_not_capture_is_refused(what: str, open_emulated: Open, put: Put, get: Get) -> None:
    """And the device works on, without a graph."""
    device = open_emulated()
    x, other = put(device, np.ones(N, "f4")), put(device, np.ones(N, "f4"))
    with pytest.raises(CaptureError) as caught:
        device.capture(lambda: FORBIDDEN[what](device, other), device.compute)
    assert caught.value.exit_code == 5 and "--no-graphs" in str(caught.value)
    device.run_graph(doubling(device, x), device.compute)
    assert (get(device, x) == 2).all()


def test_a_graph_whose_memory_is_gone_is_refused(opened: Device, put: Put) -> None:
    x = put(opened, np.ones(N, "f4"))
    graph = doubling(opened, x)
    x.free()
    with pytest.raises(DeviceError, match="freed"):
        opened.run_graph(graph, opened.compute)


def test_a_graph_of_another_device_or_a_closed_one_is_refused(open_emulated: Open, put: Put) -> None:
    device, other = open_emulated(), open_emulated()
    graph = doubling(device, put(device, np.ones(N, "f4")))
    with pytest.raises(DeviceError):
        other.run_graph(graph, other.compute)
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        device.run_graph(graph, device.compute)


def test_a_failure_within_a_graph_is_its_failure(opened: Device, put: Put, get: Get) -> None:
    x = put(opened, np.ones(N, "f4"))
    graph = doubling(opened, x)
    opened.fail_at("launch", 2)
    opened.run_graph(graph, opened.compute)
    with pytest.raises(DeviceError, match="as fail_at asked"):
        opened.run_graph(graph, opened.compute)
    assert (get(opened, x) == 2).all()


def test_the_log_has_a_graph_and_its_parts(opened: Device, put: Put) -> None:
    graph = doubling(opened, put(opened, np.ones(N, "f4")))
    opened.log = []
    opened.run_graph(graph, opened.compute)
    assert [call.what for call in opened.log] == ["graph", "add"]
    opened.log = None


def test_a_cupy_without_graphs_says_so(open_stub: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    import stub_cupy

    monkeypatch.delattr(stub_cupy.Stream, "begin_capture")
    device = open_stub()
    with pytest.raises(CaptureError, match="no graphs"):
        device.capture(lambda: None, device.compute)
