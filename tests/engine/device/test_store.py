"""What loading puts on the device: every row of the plan, repacked, in pieces of any size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from split_runs import Case, model_of, plan_with, some_neurons

from hotcold.engine.device import staging as device_staging
from hotcold.engine.device.store import DeviceStore
from hotcold.engine.host.stores import HostStore
from hotcold.engine.plan.plan import Plan
from hotcold.gguf_io import open_gguf
from hotcold.kernels.cuda import planes
from hotcold.kernels.cuda.device.device import Device

Bytes = NDArray[np.uint8]


def wanted(plan: Plan, host: HostStore) -> Bytes:
    """The slab of weights, but for the index behind them."""
    packed = []
    for entry in plan.weights:
        if not entry.device_rows:
            continue
        rows = host.rows(entry.weight)
        if entry.device_rows < entry.n_rows and entry.layer is not None:
            rows = rows[plan.layers[entry.layer].hot]
        packed.append(np.empty(entry.device_bytes, np.uint8))
        planes.to_planes(rows, entry.weight.type, packed[-1])
    return np.concatenate(packed)


@pytest.mark.sample(5)
@pytest.mark.parametrize("outtype", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize(("staging", "n_threads"), [(32 << 20, 1), (10000, 2), (40000, 3)])
def test_every_row_of_the_plan_is_loaded(
    open_emulated: Callable[..., Device],
    tiny_model: Callable[[str, bool], Path],
    monkeypatch: pytest.MonkeyPatch,
    outtype: str,
    staging: int,
    n_threads: int,
) -> None:
    """Also where a part of the staging buffer holds a few rows only."""
    monkeypatch.setattr(device_staging, "STAGING_BYTES", staging)
    heard: list[tuple[int, int]] = []
    with open_gguf(tiny_model(outtype, True)) as file:
        model, host = model_of(file), HostStore(file)
        plan = plan_with(model, Case("predictor"), some_neurons(model, 77))
        device = open_emulated(build_kind="fast")
        store = DeviceStore(device, plan)
        store.load(host, lambda done, total, seconds: heard.append((done, total)), n_threads)
        want = wanted(plan, host)
        assert store.slabs.weights is not None
        assert store.slabs.weights.array[: want.size].tobytes() == want.tobytes()
        for split in plan.layers:
            assert store.neurons(split.layer).array.tolist() == split.hot.tolist()
        assert heard == sorted(heard) and heard[-1] == (want.size, want.size)
        store.free()
    assert device.counters.live_bytes == device.counters.pinned_bytes == 0
