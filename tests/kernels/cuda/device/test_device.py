"""The seam: memory, arguments, counters, failures, on the emulated device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hotcold.errors import DeviceError, DoesNotFitError, SettingError
from hotcold.kernels.cuda.device.calls import Call
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.driver import KernelFault

Open = Callable[..., Device]
Put = Callable[..., Any]
Get = Callable[..., Any]


@pytest.fixture
def device(open_emulated: Open, seam_source: str) -> Device:
    return open_emulated(source=seam_source)


def test_a_kernel_runs_on_uploaded_data(device: Device, put: Put, get: Get) -> None:
    x, y = put(device, np.arange(8, dtype="f4")), device.empty(8, "f4")
    device.launch("scale", 1, 32, (x, y, 2.5, 8), device.compute)
    assert (get(device, y) == np.arange(8) * 2.5).all()


def test_every_scalar_type_arrives_as_it_was_sent(device: Device, get: Get) -> None:
    sent = [0.5, -7, 2**32 - 1, 255, -128, 65535, -32768, 0.25, -(2**40), 2**50, 1e-300, True]
    out = device.empty(12, "f8")
    device.launch("widths", 1, 32, (out, *sent), device.compute)
    assert get(device, out).tolist() == [float(v) for v in sent]


def test_fresh_memory_is_poison(device: Device, get: Get) -> None:
    assert np.isnan(get(device, device.empty((3, 5), "f4"))).all()
    assert np.isnan(device.pinned(4, "f4").array).all()


def test_shared_memory_is_poison(device: Device, put: Put, get: Get) -> None:
    out = put(device, np.zeros(2, "u4"))
    device.launch("untouched", 1, 32, (put(device, np.arange(4, dtype="u4")), out), device.compute, shared=16)
    assert get(device, out).tolist() == [1, 2**32 - 1]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({0: "ids"}, "argument x of scale: int32 .a pointer to float32"),
        ({1: np.zeros(8, "f4")}, "argument y of scale: ndarray .a Buffer"),
        ({2: "x"}, "argument by of scale"),
        ({3: 8.0}, "argument n of scale: 8.0"),
    ],
)
def test_wrong_arguments_are_refused(device: Device, change: dict[int, Any], word: str) -> None:
    buffers = {"x": device.empty(8, "f4"), "ids": device.empty(8, "i4")}
    arguments: list[Any] = [buffers["x"], buffers["x"], 2.0, 8]
    for at, value in change.items():
        arguments[at] = buffers[value] if isinstance(value, str) else value
    with pytest.raises(DeviceError, match=word):
        device.launch("scale", 1, 32, arguments, device.compute)
    assert not device.counters.launches


def test_a_vector_pointer_must_be_aligned(device: Device) -> None:
    words, out = device.empty(8, "u4"), device.empty(2, "u4")
    with pytest.raises(DeviceError, match="argument x of untouched.*needs 16-byte alignment"):
        device.launch("untouched", 1, 32, (words.view(4, 4, "u4"), out), device.compute, shared=16)


def test_views_are_views(device: Device, put: Put, get: Get) -> None:
    slab = put(device, np.zeros(64, "u1"))
    x, y = slab.view(16, 4, "f4"), slab.view(32, (2, 2), "f4")
    assert x.array.base is not None and np.shares_memory(x.array, slab.array)
    host = device.pinned(4, "f4")
    host.array[:] = 3
    device.upload(x, host, device.compute)
    device.launch("scale", 1, 32, (x, y, 2.0, 4), device.compute)
    assert (get(device, y) == 6).all() and (get(device, slab)[:16] == 0).all()


@pytest.mark.parametrize(
    ("offset", "shape", "dtype"), [(-4, 1, "f4"), (61, 1, "f4"), (64, 1, "u1"), (0, 17, "f4"), (2, 1, "f4")]
)
def test_views_outside_or_askew_are_refused(device: Device, offset: int, shape: int, dtype: str) -> None:
    with pytest.raises(DeviceError, match="view"):
        device.empty(64, "u1").view(offset, shape, dtype)


@pytest.mark.parametrize("shape", [0, (3, 0), (-1, -1), -4])
def test_a_buffer_of_nothing_is_refused(device: Device, shape: int) -> None:
    with pytest.raises(DeviceError, match="has no bytes"):
        device.empty(shape, "f4")
    with pytest.raises(DeviceError, match="has no bytes"):
        device.pinned(shape, "f4")


def test_a_freed_buffer_is_refused_everywhere(device: Device) -> None:
    x, y, host = device.empty(8, "f4"), device.empty(8, "f4"), device.pinned(8, "f4")
    part = x.view(0, 4, "f4")
    prepared = device.prepare("scale", 1, 32, (x, y, 1.0, 8))
    x.free()
    uses: list[Callable[[], object]] = [
        lambda: device.upload(x, host, device.compute),
        lambda: device.download(host, x, device.compute),
        lambda: device.launch("scale", 1, 32, (part, y, 1.0, 4), device.compute),
        lambda: device.run(prepared, device.compute),
        lambda: part.array,
        lambda: part.view(0, 1, "f4"),
        x.free,
    ]
    for use in uses:
        with pytest.raises(DeviceError, match="freed"):
            use()
    host.free()
    for use in (host.free, lambda: host.array, lambda: device.upload(y, host, device.compute)):
        with pytest.raises(DeviceError, match="freed"):
            use()


def test_another_devices_buffer_is_refused(device: Device, open_emulated: Open, seam_source: str) -> None:
    other = open_emulated(source=seam_source)
    x, y = device.empty(8, "f4"), other.empty(8, "f4")
    with pytest.raises(DeviceError, match="another device"):
        device.launch("scale", 1, 32, (x, y, 1.0, 8), device.compute)
    with pytest.raises(DeviceError, match="another device"):
        device.upload(x, other.pinned(8, "f4"), device.compute)
    with pytest.raises(DeviceError, match="another device"):
        device.launch("scale", 1, 32, (x, x, 1.0, 8), other.compute)
    with pytest.raises(DeviceError, match="event: of another device"):
        device.event().record(other.compute)
    with pytest.raises(DeviceError, match="event: of another device"):
        device.compute.wait(other.event())


def test_copies_must_match_and_be_pinned(device: Device) -> None:
    x = device.empty(8, "f4")
    with pytest.raises(DeviceError, match="28 bytes on the host .32 on the device"):
        device.upload(x, device.pinned(7, "f4"), device.compute)
    with pytest.raises(DeviceError, match="Pinned"):
        device.upload(x, np.zeros(8, "f4"), device.compute)  # type: ignore[arg-type]


def test_counters_say_what_happened(device: Device, put: Put, get: Get) -> None:
    x, y = put(device, np.ones(8, "f4")), device.empty(8, "f4")
    for _ in range(3):
        device.launch("scale", 1, 32, (x, y, 2.0, 8), device.compute)
    event = device.event()
    event.record(device.compute)
    device.copy.wait(event)
    get(device, y)
    c = device.counters
    assert (c.h2d_calls, c.h2d_bytes, c.d2h_calls, c.d2h_bytes) == (1, 32, 1, 32)
    assert dict(c.launches) == {"scale": 3} and c.host_waits == 2 and c.stream_waits == 1


def test_live_and_peak_bytes_are_the_allocators(device: Device) -> None:
    a, b = device.empty(1000, "u1"), device.empty(513, "u1")
    assert device.counters.live_bytes == device.driver.used_bytes() == 2048
    a.free()
    assert (device.counters.live_bytes, device.counters.peak_bytes) == (1024, 2048)
    b.free()
    assert (device.counters.live_bytes, device.counters.peak_bytes) == (0, 2048)


def test_the_log_has_everything_in_order(device: Device, put: Put) -> None:
    x, host, event = put(device, np.ones(8, "f4")), device.pinned(8, "f4"), device.event()
    device.log = []
    device.launch("scale", 1, 32, (x, x, 2.0, 8), device.compute)
    event.record(device.compute)
    device.copy.wait(event)
    device.download(host, x, device.copy)
    device.copy.synchronize()
    assert device.log == [
        Call("scale", "compute"),
        Call("record", "compute"),
        Call("wait", "copy"),
        Call("d2h", "copy", 32),
        Call("host waits", "copy"),
    ]


def test_memory_runs_out(open_emulated: Open, seam_source: str) -> None:
    device = open_emulated(source=seam_source, memory=4096)
    first = device.empty(2048, "u1")
    with pytest.raises(DoesNotFitError, match="2049.*2048 of 4096 bytes left"):
        device.empty(2049, "u1")
    assert device.memory() == (2048, 4096) and device.counters.live_bytes == 2048
    first.free()
    device.empty(4096, "u1")


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("kind", ["alloc", "launch", "h2d", "d2h"])
def test_the_nth_call_fails_once(device: Device, kind: str, n: int) -> None:
    x, host = device.empty(8, "f4"), device.pinned(8, "f4")
    calls: dict[str, Callable[[], object]] = {
        "alloc": lambda: device.empty(8, "f4"),
        "launch": lambda: device.launch("scale", 1, 32, (x, x, 1.0, 8), device.compute),
        "h2d": lambda: device.upload(x, host, device.compute),
        "d2h": lambda: device.download(host, x, device.compute),
    }
    device.fail_at(kind, n)
    for i in range(1, 5):
        if i == n:
            with pytest.raises((DeviceError, DoesNotFitError), match="fail_at"):
                calls[kind]()
        else:
            calls[kind]()
    device.synchronize()


def test_an_unknown_failure_is_refused(device: Device) -> None:
    with pytest.raises(SettingError, match="copy.*alloc, launch, h2d, d2h"):
        device.fail_at("copy", 1)


def test_a_closed_device_refuses_everything(device: Device) -> None:
    x, host, event = device.empty(8, "f4"), device.pinned(8, "f4"), device.event()
    device.close()
    device.close()
    calls: list[Callable[[], object]] = [
        lambda: device.empty(8, "f4"),
        lambda: device.pinned(8, "f4"),
        lambda: device.upload(x, host, device.compute),
        lambda: device.launch("scale", 1, 32, (x, x, 1.0, 8), device.compute),
        lambda: device.stream("s"),
        device.event,
        device.memory,
        device.synchronize,
        device.compute.synchronize,
        lambda: device.compute.wait(event),
        lambda: event.record(device.compute),
        event.synchronize,
    ]
    for call in calls:
        with pytest.raises(DeviceError, match="closed"):
            call()
    assert device.counters.live_bytes == device.counters.pinned_bytes == 0


def test_a_fault_ends_the_device(device: Device, put: Put) -> None:
    x, y = put(device, np.ones(8, "f4")), device.empty(1, "f4")
    device.launch("peek", 1, 32, (x, y, 8), device.compute)
    with pytest.raises(KernelFault, match=r"kernel peek, block \(0,0,0\), thread \(3,0,0\).*seam.cu:1\d"):
        device.synchronize()
    with pytest.raises(DeviceError, match="lost.*kernel peek"):
        device.launch("scale", 1, 32, (x, x, 1.0, 8), device.compute)
    with pytest.raises(DeviceError, match="lost"):
        device.synchronize()


@pytest.mark.parametrize(("order", "at"), [(0, 8), (1, -1)])
def test_both_ends_of_a_buffer_are_guarded(
    open_emulated: Open, seam_source: str, put: Put, order: int, at: int
) -> None:
    device = open_emulated(source=seam_source, order=order)
    x, y = put(device, np.ones(8, "f4")), device.empty(1, "f4")
    device.launch("peek", 1, 32, (x, y, at), device.compute)
    with pytest.raises(KernelFault, match=f"byte {4 * at} of a buffer of 32 bytes"):
        device.synchronize()


def test_a_kernel_that_still_uses_freed_memory_faults(device: Device, put: Put) -> None:
    x, y = put(device, np.ones(8, "f4")), device.empty(1, "f4")
    device.launch("peek", 1, 32, (x, y, 0), device.compute)  # enqueued: `late` runs it below
    x.free()
    with pytest.raises(KernelFault, match="byte 0 of a freed buffer of 32 bytes"):
        device.synchronize()


def test_devices_launch_from_several_threads(
    open_emulated: Open, seam_source: str, put: Put, get: Get
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def work(seed: int) -> bool:
        device = open_emulated(source=seam_source)
        x, y = put(device, np.full(64, seed, "f4")), device.empty(64, "f4")
        for _ in range(50):
            device.launch("scale", 1, 32, (x, y, 2.0, 64), device.compute)
            device.synchronize()
        return bool((get(device, y) == 2 * seed).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
