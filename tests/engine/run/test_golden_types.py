"""Every block type and mixes of them: logits against llama.cpp's own, and against exact arithmetic."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.engine.model.load import load_model
from hotcold.engine.model.model import MATRIX_TYPES
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert
from hotcold.kernels.cpu import rows

Logits = NDArray[np.float32]

IQ2_AND_IQ1 = ("iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")
TYPES = ("q2_k", "q3_k", "iq4_nl", "mxfp4", "iq4_xs", "iq3_s", "iq3_xxs") + IQ2_AND_IQ1
MIXES = ("mix.q4_k_m", "n288.q4_k_m")
NAMES = [f"llama.{name}" for name in (*TYPES, "tq2_0", "tq1_0", *MIXES)]
OF_LLAMA_CPP, OF_EXACT, OF_EXACT_WIDENED = 5e-2, 3.5e-2, 1e-5  # relative RMS


@pytest.fixture(scope="module")
def recorded(data: Path) -> dict[str, NDArray[np.generic]]:
    found = dict(np.load(data / "llamacpp-types" / "logits.npz"))
    for end in ("", ".exact"):
        found[f"llama.tq1_0{end}"] = found[f"llama.tq2_0{end}"]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_the_recording(
    name: str,
    data: Path,
    recorded: dict[str, Logits],
    distance: Callable[[Logits, Logits], float],
    logits_of: Callable[[Executor, NDArray[np.int32], int], Logits],
) -> None:
    alone, together = (
        run(data / "llamacpp-types" / f"{name}.gguf", recorded, step, logits_of) for step in (1, 24)
    )
    assert distance(alone, recorded[name]) <= OF_LLAMA_CPP
    assert distance(alone, recorded[f"{name}.exact"]) <= OF_EXACT
    assert np.array_equal(alone, together)


@pytest.mark.parametrize("name", NAMES)
def test_its_numbers_in_f32_are_exact(
    name: str,
    tmp_path: Path,
    data: Path,
    recorded: dict[str, Logits],
    distance: Callable[[Logits, Logits], float],
    logits_of: Callable[[Executor, NDArray[np.int32], int], Logits],
) -> None:
    convert(data / "llamacpp-types" / f"{name}.gguf", None, tmp_path / "wide.gguf", "f32")
    logits = run(tmp_path / "wide.gguf", recorded, 24, logits_of)
    assert distance(logits, recorded[f"{name}.exact"]) <= OF_EXACT_WIDENED


def run(
    path: Path,
    recorded: dict[str, Logits],
    step: int,
    logits_of: Callable[[Executor, NDArray[np.int32], int], Logits],
) -> Logits:
    """The logits after each of the recording's tokens, `step` tokens a batch."""
    with (
        open_gguf(path) as file,
        Executor(plan_for_cpu(load_model(file), Wanted("off", 64, 24, "f32")), file, 2) as executor,
    ):
        return logits_of(executor, recorded["ids"].astype(np.int32), step)


def test_what_the_loader_takes_has_kernels() -> None:
    assert {int(kind) for kind in MATRIX_TYPES} == set(rows.TYPE_SIZE)
