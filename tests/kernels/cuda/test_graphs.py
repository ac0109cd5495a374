"""Graphs of copies and launches: captured once, done as often as they are launched, and nothing else in them."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.add import add
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import CapturedGraph, Device
from hotcold.kernels.cuda.device.driver import CaptureError
from hotcold.kernels.cuda.device.sources import SOURCES, program
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

Open = Callable[..., Device]
Put = Callable[[Device, NDArray[np.generic]], Buffer]
Get = Callable[[Device, Buffer], NDArray[np.generic]]
POLICIES = ("eager", "late", "ahead", "random")
N = 40
ADD = program(SOURCES / "add.cu")
"""NVRTC takes seconds for all kernels."""


@pytest.fixture(params=["stub", *POLICIES, pytest.param("cuda", marks=pytest.mark.gpu)])
def opened(request: pytest.FixtureRequest, open_emulated: Open, open_stub: Open) -> Device:
    if request.param == "cuda":
        card: Device = request.getfixturevalue("card")
        return card
    return open_stub(source=ADD) if request.param == "stub" else open_emulated(policy=request.param)


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
    for n in (3, 3, 4):  # however often they are looked at
        while opened.counters.graph_launches < n:
            opened.run_graph(graph, opened.compute)
        assert (opened.counters.launches["add"], opened.counters.graph_launches) == (n, n)


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


def test_the_bytes_that_are_held_can_be_read_meanwhile(open_emulated: Open, put: Put) -> None:
    """Another thread may ask for them at any time."""
    device, found = open_emulated(), list[int]()
    put(device, np.ones(N, "f4"))
    device.capture(lambda: found.append(device.tally.live_bytes), device.compute)
    assert found == [device.counters.live_bytes] and found[0] >= 4 * N


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
    "an event of a stream outside": lambda device, x: device.event().record(device.crossing),
    "a stream that is not joined": lambda device, x: device.crossing.follow(device.compute),
    "work behind the join": lambda device, x: joined_too_early(device, x),
    "a wait for an event of the graph": lambda device, x: waited_inside(device),
    "an external event of a stream outside": lambda device, x: device.event(external=True).record(
        device.crossing
    ),
    "a wait for an event": lambda device, x: device.event().synchronize(),
    "another graph": lambda device, x: doubling(device, x),
    "a host's own memory": lambda device, x: device.driver.upload(
        x.address, np.zeros(N, "f4").ctypes.data, 4 * N, device.compute.raw
    ),
}


def joined_too_early(device: Device, x: Buffer) -> None:
    launch = add(N).prepare(device, (x, x, x, N))
    device.crossing.follow(device.compute)
    device.compute.follow(device.crossing)
    device.run(launch, device.crossing)


def waited_inside(device: Device) -> None:
    event = device.event()
    event.record(device.compute)
    event.synchronize()


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


# Several streams in one graph


class Forked:
    """x doubled; then x copied down in another stream, with an event for the host, while y is doubled."""

    def __init__(self, device: Device, put: Put) -> None:
        self.device, self.event = device, device.event(external=True)
        self.x, self.y = put(device, np.ones(N, "f4")), put(device, np.ones(N, "f4"))
        self.down = device.pinned(N, "f4")
        first, second = (add(N).prepare(device, (each, each, each, N)) for each in (self.x, self.y))

        def work() -> None:
            device.run(first, device.compute)
            device.crossing.follow(device.compute)
            device.download(self.down, self.x, device.crossing)
            self.event.record(device.crossing)
            device.run(second, device.compute)
            device.compute.follow(device.crossing)

        self.graph = device.capture(work, device.compute)


def test_a_graph_forks_and_joins_and_the_host_waits_for_a_part_of_it(
    opened: Device, put: Put, get: Get
) -> None:
    forked = Forked(opened, put)
    for value in (2, 4, 8):
        opened.run_graph(forked.graph, opened.compute)
        forked.event.synchronize()
        assert (forked.down.array == value).all()
    assert (get(opened, forked.y) == 8).all()
    assert opened.counters.launches["add"] == 6 and opened.counters.d2h_calls == 3 + 1


def test_what_follows_a_graph_comes_after_all_of_it(opened: Device, put: Put) -> None:
    forked = Forked(opened, put)
    opened.run_graph(forked.graph, opened.compute)
    opened.compute.synchronize()
    assert (forked.down.array == 2).all()


def test_the_hosts_event_does_not_wait_for_the_kernels_beside(open_emulated: Open, put: Put) -> None:
    device = open_emulated(policy="late")
    forked = Forked(device, put)
    device.run_graph(forked.graph, device.compute)
    assert np.isnan(forked.down.array).all()
    forked.event.synchronize()
    assert (forked.down.array == 2).all() and (forked.y.array == 1).all()
    device.compute.synchronize()
    assert (forked.y.array == 2).all()


def test_each_launch_waits_for_what_was_recorded_before_it(opened: Device, get: Get, put: Put) -> None:
    x, y = (put(opened, np.ones(N, "f4")) for _ in range(2))
    up, event = opened.pinned(N, "f4"), opened.event(external=True)
    launch = add(N).prepare(opened, (x, x, y, N))

    def work() -> None:
        opened.compute.wait(event)
        opened.run(launch, opened.compute)

    graph = opened.capture(work, opened.compute)
    for value in (3, 5):
        up.array[:] = value
        opened.upload(x, up, opened.crossing)
        event.record(opened.crossing)
        opened.run_graph(graph, opened.compute)
        assert (get(opened, y) == 2 * value).all()


def test_an_unjoined_stream_is_named_as_cuda_names_it(open_emulated: Open, put: Put) -> None:
    device = open_emulated()
    x = put(device, np.ones(N, "f4"))
    for work in (lambda: device.crossing.follow(device.compute), lambda: joined_too_early(device, x)):
        with pytest.raises(CaptureError, match="1 stream not joined.*cudaErrorStreamCaptureUnjoined"):
            device.capture(work, device.compute)
    device.crossing.follow(device.compute)  # the streams are free again
    device.crossing.synchronize()


def test_nothing_outside_waits_for_a_place_in_a_graph(open_emulated: Open) -> None:
    device = open_emulated()
    event = device.event()
    device.capture(lambda: event.record(device.compute), device.compute)
    for wait in (event.synchronize, lambda: device.crossing.wait(event)):
        with pytest.raises(DeviceError, match="cudaErrorCapturedEvent"):
            wait()
    event.record(device.compute)
    event.synchronize()
    assert isinstance(device.driver, EmulatedDriver)
    with pytest.raises(CaptureError, match="not captured"):
        device.driver.record_external(event.raw, device.compute.raw)


def test_what_does_not_follow_the_graphs_stream_is_no_part_of_it(open_emulated: Open, put: Put) -> None:
    """It is done once, as CUDA does it."""
    device = open_emulated(policy="eager")
    x, down = put(device, np.ones(N, "f4")), device.pinned(N, "f4")
    launch = add(N).prepare(device, (x, x, x, N))

    def work() -> None:
        device.run(launch, device.compute)
        device.download(down, x, device.crossing)

    graph = device.capture(work, device.compute)
    for _ in range(2):
        device.run_graph(graph, device.compute)
        assert (down.array == 1).all()


def test_calls_for_an_event_that_is_seen_from_outside(open_stub: Open, put: Put) -> None:
    """CuPy has none that records it: the driver's library is asked."""
    device, calls = open_stub(source=ADD), list[tuple[int, int, int]]()
    driver: Any = device.driver
    record = driver.libcuda.cuEventRecordWithFlags

    def heard(*arguments: int) -> int:
        calls.append(arguments)  # type: ignore[arg-type]
        return int(record(*arguments))

    driver.libcuda = SimpleNamespace(cuEventRecordWithFlags=heard)
    forked = Forked(device, put)
    assert calls == [(forked.event.raw.ptr, device.crossing.raw.ptr, 1)]
    driver.libcuda.cuEventRecordWithFlags = lambda *arguments: 801
    with pytest.raises(CaptureError, match="CUresult 801"):
        Forked(device, put)
    device.run_graph(forked.graph, device.compute)
    device.synchronize()
    assert (forked.down.array == 2).all()


def test_a_cuda_driver_without_such_events_says_so(
    open_stub: Open, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> Any:
        if "cuda" in Path(name).name:
            raise OSError(f"{name}: no such file")
        return load(name)

    device, load = open_stub(source=ADD), ctypes.CDLL
    device.driver.libcuda = None  # type: ignore[attr-defined]
    monkeypatch.setattr(ctypes, "CDLL", found)
    with pytest.raises(CaptureError, match="the host cannot wait for a part of a graph.*--no-graphs"):
        Forked(device, put)


def test_a_cupy_without_graphs_says_so(open_stub: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    import stub_cupy

    monkeypatch.delattr(stub_cupy.Stream, "begin_capture")
    device = open_stub(source=ADD)
    with pytest.raises(CaptureError, match="no graphs"):
        device.capture(lambda: None, device.compute)


def test_memory_that_a_graph_takes_is_measured(
    open_emulated: Open, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the driver's own, which no allocator counts."""
    device, left = open_emulated(), [3000, 1000, 1000, 1200]
    monkeypatch.setattr(device.driver, "free_and_total", lambda: (left.pop(0), 4000))
    x = put(device, np.ones(N, "f4"))
    for _ in range(2):  # the second gives back more than it takes
        device.capture(lambda: device.launch("add", 1, 32, (x, x, x, N), device.compute), device.compute)
    assert device.counters.graph_bytes == 2000
