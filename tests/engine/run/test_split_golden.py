"""Quantised models, and logits that PowerInfer recorded, with the neurons on both sides."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from split_runs import (
    BUDGETS,
    Case,
    Logits,
    cpu_logits,
    mixed_logits,
    model_of,
    on_device,
    plan_named,
    plan_with,
    some_neurons,
)

from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import open_gguf
from hotcold.kernels.cuda.device.device import Device

pytestmark = pytest.mark.pairwise
Distance = Callable[[Logits, Logits], float]
LogitsOf = Callable[[Executor, NDArray[np.int32], int], Logits]
ALL_ACTIVE = -100.0
ARCHITECTURES = ("llama", "bamboo", "falcon", "opt")
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "budget", [pytest.param(name, marks=slow) for name in BUDGETS if "17" not in name] + ["dense + 17%"]
)
@pytest.mark.parametrize(
    "outtype",
    ["q8_0", "q4_0", *(pytest.param(outtype, marks=slow) for outtype in ("q4_k_m", "iq4_nl", "q2_k"))],
)
def test_the_bundled_model_quantised(
    outtype: str,
    budget: str,
    tiny_model: Callable[[str, bool], Path],
    split_device: Device,
    distance: Distance,
) -> None:
    with open_gguf(tiny_model(outtype, True)) as file:
        model, case = model_of(file, 2, sparse_threshold=ALL_ACTIVE), Case("predictor")
        plan = plan_named(model, case, budget)
        with on_device(plan, file, split_device) as executor:
            assert split_device.counters.live_bytes == plan.totals.used
            assert distance(mixed_logits(executor), cpu_logits(model, file, case)) <= 1.5e-2


@pytest.mark.parametrize("n_hot", [300, 1024])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_powerinfers_quantised_models(
    architecture: str, n_hot: int, data: Path, split_device: Device, distance: Distance
) -> None:
    path = data / "powerinfer" / f"{architecture}-q4_0.powerinfer.gguf"
    with open_gguf(path) as file:
        model, case = model_of(file, sparse_threshold=ALL_ACTIVE), Case("predictor")
        with on_device(plan_with(model, case, some_neurons(model, n_hot)), file, split_device) as executor:
            assert distance(mixed_logits(executor), cpu_logits(model, file, case)) <= 1.5e-2


@pytest.mark.parametrize(("kind", "bound"), [("f16", 2e-3), ("q4_0", 2.5e-2)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("which", ["sparse", "all_active"])
@pytest.mark.parametrize(
    ("step", "n_tokens", "n_hot"),
    [
        (1, 4, 500),
        (16, 16, 500),
        *(pytest.param(step, 40, n, marks=slow) for step in (1, 40) for n in (0, 10, 500, 1024)),
        pytest.param(7, 40, 500, marks=slow),
    ],
)
def test_logits_equal_powerinfers(
    architecture: str,
    kind: str,
    bound: float,
    which: str,
    step: int,
    n_tokens: int,
    n_hot: int,
    data: Path,
    split_device: Device,
    distance: Distance,
    logits_of: LogitsOf,
) -> None:
    name = f"{architecture}-{kind}"
    recorded = np.load(data / "powerinfer" / f"{name}.npz")
    with open_gguf(data / "powerinfer" / f"{name}.powerinfer.gguf") as file:
        model, case = model_of(file), Case("predictor", n_ctx=64, n_batch=40)
        if which == "all_active":
            model = replace(model, sparse_threshold=ALL_ACTIVE)
        with on_device(plan_with(model, case, some_neurons(model, n_hot)), file, split_device) as executor:
            logits = logits_of(executor, recorded["ids"][:n_tokens], step)
    wanted = recorded[f"logits_{which}_{'single' if step == 1 else 'batch'}"][:n_tokens]
    assert distance(logits, wanted) <= bound
