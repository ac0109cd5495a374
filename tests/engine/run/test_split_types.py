"""Every block type and mixes of them on a device: logits against llama.cpp's own, and against exact arithmetic."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from split_runs import Case, Logits, budget_bytes, model_of, on_device, split_plan

from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert
from hotcold.kernels.cuda.device.device import Device

pytestmark = pytest.mark.pairwise
Distance = Callable[[Logits, Logits], float]
LogitsOf = Callable[[Executor, NDArray[np.int32], int], Logits]
QUICK = ("mix.q4_k_m",)
IQ2_AND_IQ1 = ("iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")
TYPES = ("q2_k", "q3_k", "iq4_nl", "mxfp4", "iq4_xs", "iq3_s", "iq3_xxs") + IQ2_AND_IQ1
NAMES = [
    *QUICK,
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("n288.q4_k_m", *TYPES, "tq2_0", "tq1_0")),
]
OLDER = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k")
]
BUDGETS = ("one layer", "dense", "everything")
OF_LLAMA_CPP, OF_EXACT, OF_EXACT_WIDENED = 5e-2, 3.5e-2, 1e-5  # relative RMS


@pytest.fixture
def folder(data: Path, name: str) -> Path:
    """Where a model of this name and its recording are."""
    found = (data / part for part in ("llamacpp-types", "llamacpp"))
    return next(path for path in found if (path / f"llama.{name}.gguf").is_file())


@pytest.fixture
def recorded(folder: Path) -> dict[str, NDArray[np.generic]]:
    found = dict(np.load(folder / "logits.npz"))
    if folder.name == "llamacpp":
        return found
    for end in ("", ".exact"):
        found[f"llama.tq1_0{end}"] = found[f"llama.tq2_0{end}"]
    return found


@pytest.fixture
def run(
    split_device: Device, logits_of: LogitsOf, recorded: dict[str, Logits]
) -> Callable[[Path, str, int], Logits]:
    """run(path, budget, step): the logits after each of the recording's tokens, `step` tokens a batch."""

    def logits(path: Path, budget: str, step: int) -> Logits:
        with open_gguf(path) as file:
            model, case = model_of(file), Case("off", n_ctx=64, n_batch=24)
            n_bytes = 1 << 30 if budget == "everything" else budget_bytes(model, case, budget)
            plan = split_plan(model, case, n_bytes)
            with on_device(plan, file, split_device) as executor:
                assert split_device.counters.live_bytes == plan.totals.used > 0
                if budget == "everything":
                    assert {entry.side for entry in plan.weights if entry.role != "embedding"} == {"gpu"}
                return logits_of(executor, recorded["ids"].astype(np.int32), step)

    return logits


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", [*NAMES, *OLDER])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("step", [1, 24])
def test_logits_equal_the_recording(
    name: str,
    budget: str,
    step: int,
    folder: Path,
    recorded: dict[str, Logits],
    distance: Distance,
    run: Callable[[Path, str, int], Logits],
) -> None:
    logits = run(folder / f"llama.{name}.gguf", budget, step)
    assert distance(logits, recorded[f"llama.{name}"]) <= OF_LLAMA_CPP
    assert distance(logits, recorded[f"llama.{name}.exact"]) <= OF_EXACT


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", BUDGETS)
def test_its_numbers_in_f32_are_exact(
    name: str,
    budget: str,
    tmp_path: Path,
    folder: Path,
    recorded: dict[str, Logits],
    distance: Distance,
    run: Callable[[Path, str, int], Logits],
) -> None:
    convert(folder / f"llama.{name}.gguf", None, tmp_path / "wide.gguf", "f32")
    logits = run(tmp_path / "wide.gguf", budget, 24)
    assert distance(logits, recorded[f"llama.{name}.exact"]) <= OF_EXACT_WIDENED
