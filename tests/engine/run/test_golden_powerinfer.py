"""Logits against PowerInfer's own: its predictors, its threshold, its transposed down product."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.engine.model.load import load_model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert

Logits = NDArray[np.float32]


@pytest.mark.parametrize("architecture", ["llama", "bamboo", "falcon", "opt"])
@pytest.mark.parametrize(("kind", "bound"), [("f16", 2e-3), ("q4_0", 2.5e-2)])
@pytest.mark.parametrize("which", ["sparse", "all_active"])
@pytest.mark.parametrize("step", [1, 40])
def test_logits_equal_the_recording(
    architecture: str,
    kind: str,
    bound: float,
    which: str,
    step: int,
    data: Path,
    distance: Callable[[Logits, Logits], float],
    logits_of: Callable[[Executor, NDArray[np.int32], int], Logits],
) -> None:
    name = f"{architecture}-{kind}"
    recorded = np.load(data / "powerinfer" / f"{name}.npz")
    with open_gguf(data / "powerinfer" / f"{name}.powerinfer.gguf") as file:
        model = load_model(file)
        if which == "all_active":
            model = dataclasses.replace(model, sparse_threshold=-100.0)
        with Executor(plan_for_cpu(model, Wanted("predictor", 64, 40, "f32")), file, 2) as executor:
            logits = logits_of(executor, recorded["ids"], step)
            listed = executor.counts[..., 0].sum(1)
    assert distance(logits, recorded[f"logits_{which}_{'single' if step == 1 else 'batch'}"]) <= bound
    if step == 1:
        active = recorded["active"].sum((1, 2)) if which == "sparse" else [40 * 1024] * model.n_layer
        assert listed.tolist() == list(active)


@pytest.mark.parametrize("architecture", ["llama", "bamboo", "falcon", "opt"])
@pytest.mark.parametrize("sparsity", ["off", "exact"])
@pytest.mark.parametrize("step", [1, 7])
def test_modes_without_the_predictor_equal_all_active(
    architecture: str,
    sparsity: str,
    step: int,
    data: Path,
    distance: Callable[[Logits, Logits], float],
    logits_of: Callable[[Executor, NDArray[np.int32], int], Logits],
) -> None:
    recorded = np.load(data / "powerinfer" / f"{architecture}-f16.npz")
    with (
        open_gguf(data / "powerinfer" / f"{architecture}-f16.powerinfer.gguf") as file,
        Executor(plan_for_cpu(load_model(file), Wanted(sparsity, 64, 40, "f32")), file, 2) as executor,
    ):
        logits = logits_of(executor, recorded["ids"], step)
    assert distance(logits, recorded["logits_all_active_single"]) <= 2e-3


@pytest.mark.parametrize("architecture", ["llama", "bamboo", "falcon", "opt"])
def test_a_requantised_file_runs(
    architecture: str,
    tmp_path: Path,
    data: Path,
    distance: Callable[[Logits, Logits], float],
    logits_of: Callable[[Executor, NDArray[np.int32], int], Logits],
) -> None:
    """In Q8_0, with predictors in Q5_0: PowerInfer's rule."""
    recorded = np.load(data / "powerinfer" / f"{architecture}-f16.npz")
    convert(data / "powerinfer" / f"{architecture}-f16.powerinfer.gguf", None, tmp_path / "q.gguf", "q8_0")
    with (
        open_gguf(tmp_path / "q.gguf") as file,
        Executor(plan_for_cpu(load_model(file), Wanted("predictor", 64, 40, "f32")), file, 2) as executor,
    ):
        logits = logits_of(executor, recorded["ids"], 1)
        listed = executor.counts[..., 0].sum(1)
    assert distance(logits, recorded["logits_sparse_single"]) <= 3e-2
    assert listed.tolist() == list(recorded["active"].sum((1, 2)))


@pytest.mark.parametrize(
    "kind", [GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q5_0, GGMLQuantizationType.Q5_1]
)
@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_a_sparse_ffn_runs_in_every_block_type(
    architecture: str,
    kind: GGMLQuantizationType,
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    distance: Callable[[Logits, Logits], float],
    logits_of: Callable[[Executor, NDArray[np.int32], int], Logits],
) -> None:
    """Beside the same numbers in F32: what differs is the rounding of inputs."""
    source, ids = (
        data / "powerinfer" / f"{architecture}-f16.powerinfer.gguf",
        np.arange(1, 12, dtype=np.int32),
    )
    rounded, widened = tmp_path / "rounded.gguf", tmp_path / "widened.gguf"
    with monkeypatch.context() as patch:
        patch.setattr(
            "hotcold.gguf_io.convert.requantise.output_type",
            lambda name, *_: kind if ".ffn_" in name else GGMLQuantizationType.F16,
        )
        convert(source, None, rounded, "q4_0")
    convert(rounded, None, widened, "f32")
    logits = []
    for path in (rounded, widened):
        for step in (1, 7):
            with open_gguf(path) as file:
                model = dataclasses.replace(load_model(file), sparse_threshold=-100.0)
                with Executor(plan_for_cpu(model, Wanted("predictor", 64, 40, "f32")), file, 2) as executor:
                    logits.append(logits_of(executor, ids, step))
    assert max(distance(logits[0], logits[2]), distance(logits[1], logits[3])) <= 3e-2
    assert distance(logits[0], logits[1]) <= 1e-5
