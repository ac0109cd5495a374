"""Kernels that read page-locked memory where it lies: the right bytes, counted, and refused where there are none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.add import HAS_OTHER, add, merge
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.calls import Call
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.driver import KernelFault
from hotcold.kernels.cuda.sum_groups import sum_groups

Open = Callable[..., Device]
Put = Callable[[Device, NDArray[np.generic]], Buffer]
Get = Callable[[Device, Buffer], NDArray[np.generic]]
POLICIES = ("eager", "late", "ahead", "random")
N = 300


@pytest.fixture(params=["stub", *POLICIES, pytest.param("cuda", marks=pytest.mark.gpu)])
def opened(request: pytest.FixtureRequest, open_emulated: Open, open_stub: Open) -> Device:
    if request.param == "cuda":
        card: Device = request.getfixturevalue("card")
        return card
    return open_stub() if request.param == "stub" else open_emulated(policy=request.param)


@pytest.mark.parametrize("in_graph", [False, True])
def test_both_merges_read_what_the_host_has_written(
    in_graph: bool, opened: Device, put: Put, get: Get
) -> None:
    """Again and again, as the CPU's part of a split layer: what is there when the launch comes."""
    hot, host = put(opened, np.arange(N, dtype="f4")), opened.pinned(N, "f4")
    y = [opened.empty(N, "f4") for _ in range(2)]
    last = hot, y[0], host, y[0], y[0]
    launches = (
        merge(1, N, HAS_OTHER).prepare(opened, (*last, N, HAS_OTHER)),
        sum_groups(1, 1, N, HAS_OTHER).prepare(opened, (hot, y[1], host, y[1], y[1], 1, N, HAS_OTHER)),
    )

    def work() -> None:
        for launch in launches:
            opened.run(launch, opened.compute)

    graph = opened.capture(work, opened.compute) if in_graph else None
    before = opened.counters.h2d_calls, opened.counters.h2d_bytes
    for value in (1, 5, 9):
        host.array[:] = value
        if graph is None:
            work()
        else:
            opened.run_graph(graph, opened.compute)
        opened.compute.synchronize()
        for each in y:
            assert (get(opened, each) == np.arange(N) + value).all()
    after = opened.counters.h2d_calls, opened.counters.h2d_bytes
    assert (after[0] - before[0], after[1] - before[1]) == (0, 3 * 2 * 4 * N)


def adding(device: Device, n: int = N) -> tuple[Any, Any, Buffer]:
    """y = host + x, prepared, with the page-locked memory and y."""
    x, y, host = device.empty(N, "f4"), device.empty(N, "f4"), device.pinned(n, "f4")
    return add(N).prepare(device, (host, x, y, N)), host, y


def test_a_log_has_the_bytes(open_emulated: Open) -> None:
    device = open_emulated()
    launch, _, _ = adding(device)
    device.log = []
    device.run(launch, device.compute)
    assert device.log == [Call("add", "compute", 4 * N)]


def test_a_host_that_writes_too_early_is_seen(open_emulated: Open, get: Get) -> None:
    """The launch is late: it reads what it should not have found any more."""
    device = open_emulated(policy="late")
    host, x, y = device.pinned(N, "f4"), device.empty(N, "f4"), device.empty(N, "f4")
    host.array[:] = 1
    device.upload(x, host, device.compute)
    device.compute.synchronize()
    device.launch("add", 2, 256, (host, x, y, N), device.compute)
    host.array[:] = 7  # nobody has waited
    assert (get(device, y) == 8).all()


def test_what_a_kernel_writes_is_never_the_hosts(open_emulated: Open) -> None:
    device = open_emulated()
    x, host = device.empty(N, "f4"), device.pinned(N, "f4")
    with pytest.raises(DeviceError, match="argument y of add: page-locked memory .kernels only read it"):
        add(N).prepare(device, (x, x, host, N))


def test_a_host_pointer_that_nobody_page_locked_is_refused(open_emulated: Open) -> None:
    device = open_emulated()
    x = device.empty(N, "f4")
    with pytest.raises(DeviceError, match="ndarray .a Buffer is wanted"):
        add(N).prepare(device, (np.zeros(N, "f4"), x, x, N))


def test_another_device_reads_it_where_it_is_made_for_both(open_emulated: Open, get: Get) -> None:
    first, second = open_emulated(index=0), open_emulated(index=1)
    alone, both = first.pinned(N, "f4"), first.pinned(N, "f4", [second])
    x, y = second.empty(N, "f4"), second.empty(N, "f4")
    with pytest.raises(DeviceError, match="of another device"):
        add(N).prepare(second, (alone, x, y, N))
    both.array[:] = 2
    second.upload(x, both, second.compute)
    second.run(add(N).prepare(second, (both, x, y, N)), second.compute)
    assert (get(second, y) == 4).all()


def test_freed_memory_is_refused_launched_and_in_a_graph(opened: Device) -> None:
    launch, host, _ = adding(opened)
    graph = opened.capture(lambda: opened.run(launch, opened.compute), opened.compute)
    host.free()
    with pytest.raises(DeviceError, match="freed"):
        opened.run(launch, opened.compute)
    with pytest.raises(DeviceError, match="freed"):
        opened.run_graph(graph, opened.compute)


@pytest.mark.parametrize("in_graph", [False, True])
def test_memory_that_is_freed_before_the_kernel_has_run_is_a_fault(
    in_graph: bool, open_emulated: Open
) -> None:
    device = open_emulated(policy="late")
    launch, host, _ = adding(device)
    if in_graph:
        graph = device.capture(lambda: device.run(launch, device.compute), device.compute)
        device.run_graph(graph, device.compute)
    else:
        device.run(launch, device.compute)
    host.free()
    with pytest.raises(KernelFault, match="kernel add runs after page-locked memory that it reads was freed"):
        device.compute.synchronize()


def test_a_read_beyond_its_end_is_a_fault(open_emulated: Open) -> None:
    device = open_emulated(policy="late")
    launch, _, _ = adding(device, n=8)
    device.run(launch, device.compute)
    with pytest.raises(KernelFault, match="byte 32 of a buffer of 32 bytes"):
        device.compute.synchronize()
