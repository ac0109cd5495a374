"""Every allocation, launch and copy of a run fails once: a clear error, no leak, the next run works."""

from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.errors import DeviceError, DoesNotFitError
from hotcold.kernels import ref
from hotcold.kernels.cuda.device.buffers import Buffer, Pinned, Stream
from hotcold.kernels.cuda.device.device import Device, Prepared
from hotcold.kernels.cuda.device.driver import KernelFault
from hotcold.kernels.cuda.device.slabs import Slabs, allocate_slabs
from hotcold.kernels.cuda.matvec import matvec
from hotcold.kernels.cuda.rms_norm import rms_norm

pytestmark = pytest.mark.slow

Array = NDArray[np.float32]
Open = Callable[..., Device]
N, N_LAYERS = 64, 3
RNG = np.random.default_rng(0)
X, NORM = RNG.standard_normal((1, N)).astype("f4"), RNG.standard_normal(N).astype("f4")
WEIGHTS = [(RNG.standard_normal((N, N)) / 8).astype("f4") for _ in range(N_LAYERS)]


def want() -> NDArray[np.float64]:
    x = X
    for w in WEIGHTS:
        x = ref.mul_mat(w, ref.rms_norm(x, NORM, 1e-5).astype("f4")).astype("f4")
    return x.astype("f8")


def run(device: Device) -> Array:
    """A small engine: slabs, staging, weights up, three layers, the answer down; then all freed."""
    slabs: Slabs | None = None
    pinned: list[Pinned] = []
    try:
        slabs = allocate_slabs(device, 4 * N * N * N_LAYERS + 4 * N, 256, 8 * N)
        pinned += [device.pinned(N * N, "f4")]
        pinned += [device.pinned((1, N), "f4")]
        assert slabs.weights is not None and slabs.arena is not None
        weights = [
            load(device, slabs.weights, i, array, pinned[0]) for i, array in enumerate([*WEIGHTS, NORM])
        ]
        return decode(device, weights, slabs.arena, *pinned)
    finally:
        device.synchronize()
        for host in pinned:
            host.free()
        if slabs is not None:
            slabs.free()


def load(device: Device, slab: Buffer, i: int, array: Array, staging: Pinned) -> Buffer:
    weight, part = slab.view(4 * N * N * i, array.size, "f4"), staging.view(0, array.size, "f4")
    part.array[:] = array.ravel()
    device.upload(weight, part, device.copy)
    device.copy.synchronize()
    return weight


def decode(device: Device, weights: list[Buffer], arena: Buffer, staging: Pinned, host: Pinned) -> Array:
    x, normed, done = arena.view(0, (1, N), "f4"), arena.view(4 * N, (1, N), "f4"), device.event()
    given = staging.view(0, (1, N), "f4")
    given.array[:] = X
    device.upload(x, given, device.compute)
    for w in weights[:-1]:
        rms_norm(1, N).launch(device, (x, weights[-1], normed, N, 1e-5), device.compute)
        matvec(GGMLQuantizationType.F32, 1, N, N).launch(
            device, (w, normed, x, x, x, N, N, 0), device.compute
        )
    device.download(host, x, device.compute)
    done.record(device.compute)
    done.synchronize()
    return np.array(host.array)


def is_right(got: Array) -> bool:
    return bool(np.abs(got - want()).max() < 1e-4)


def calls_of(device: Device) -> dict[str, int]:
    """How often each kind of call is made by one run."""
    before = device.counters
    counted = {"h2d": before.h2d_calls, "d2h": before.d2h_calls, "launch": before.launches.total()}
    assert is_right(run(device))
    after = device.counters
    made = {"h2d": after.h2d_calls, "d2h": after.d2h_calls, "launch": after.launches.total()}
    return {"alloc": 5} | {kind: made[kind] - counted[kind] for kind in made}


@pytest.fixture(params=["emulated-late", "emulated-eager", "emulated-random", "stub-late"])
def working(request: pytest.FixtureRequest) -> Device:
    driver, policy = request.param.split("-")
    device: Device = request.getfixturevalue(f"open_{driver}")(policy=policy)
    return device


def test_each_call_fails_once(working: Device) -> None:
    calls = calls_of(working)
    assert calls == {"alloc": 5, "h2d": 5, "d2h": 1, "launch": 6}
    for kind, n_calls in calls.items():
        for n in range(1, n_calls + 1):
            working.fail_at(kind, n)
            with pytest.raises(DoesNotFitError if kind == "alloc" else DeviceError, match="fail_at"):
                run(working)
            assert working.counters.live_bytes == working.counters.pinned_bytes == 0, (kind, n)
            assert is_right(run(working)), (kind, n)


@pytest.mark.parametrize("memory", range(0, 50 << 10, 1 << 10))
def test_memory_of_any_size_is_enough_or_named(open_emulated: Open, memory: int) -> None:
    device = open_emulated(memory=memory)
    planned = 49 * 1024 + 512 + 512 + 512  # the slabs in whole granules of 512 bytes
    if memory < planned:
        with pytest.raises(DoesNotFitError, match="bytes left"):
            run(device)
    else:
        assert is_right(run(device)) and device.counters.peak_bytes == planned
    assert device.counters.live_bytes == device.counters.pinned_bytes == 0


@pytest.mark.parametrize("n", range(1, 7))
def test_a_device_lost_in_the_middle_leaks_nothing(
    open_emulated: Open, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th launch reads outside its buffers: everything after it fails, and closing frees all."""
    device = open_emulated(policy="eager")
    launch, seen = device.run, 0

    def broken(prepared: Prepared, stream: Stream) -> None:
        nonlocal seen
        seen += 1
        if seen == n:
            x = device.empty(4, "f4")
            prepared = device.prepare("add", 1, 256, (x, x, x, 5))
        launch(prepared, stream)

    monkeypatch.setattr(device, "run", broken)
    with pytest.raises(DeviceError, match="lost") as caught:
        run(device)
    assert isinstance(caught.value.__context__, KernelFault)
    device.close()
    assert device.counters.live_bytes == device.counters.pinned_bytes == 0
