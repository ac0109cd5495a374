"""Thresholds on both sides of a split: the device leaves out what the CPU would, and NumPy does."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from plan_checks import check_sums
from split_runs import Case, on_device, plan_named, plan_with, some_neurons, split_plan
from threshold_models import IDS, forward, model_file

from hotcold.engine.calibrate.levels import none_yet
from hotcold.engine.dump.report import as_json
from hotcold.engine.dump.text import totals_table
from hotcold.engine.graph.graph import COLD, HOT
from hotcold.engine.model.load import load_model
from hotcold.engine.plan.traffic import token_traffic
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import open_gguf
from hotcold.kernels.cuda.device.device import Device


def logits(executor: Executor, step: int) -> NDArray[np.float32]:
    out = np.zeros((len(IDS), executor.model.n_vocab), np.float32)
    for i in range(0, len(IDS), step):
        executor.run(IDS[i : i + step], i, out[i : i + step])
    return out


def error(got: NDArray[np.float32], wanted: NDArray[np.float64]) -> float:
    return float(np.sqrt(((got - wanted) ** 2).sum() / (wanted**2).sum()))


KINDS = [
    ("llama", True),
    pytest.param("gemma3", True, marks=pytest.mark.slow),
    ("qwen3_moe", True),
    pytest.param("qwen3_moe", False, marks=pytest.mark.slow),
]
"""Kinds of models, and whether a neuron has a row of down. Of the last one experts go whole."""


@pytest.mark.parametrize(("kind", "sparse_layout"), KINDS)
def test_both_sides_leave_out_what_numpy_leaves_out(
    kind: str, sparse_layout: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split_device: Device
) -> None:
    path, source = model_file(tmp_path, kind, sparse_layout=sparse_layout)
    wanted, thresholds = forward(source, IDS, monkeypatch)
    with open_gguf(path) as file:
        for name, numbers in thresholds.items():
            file.add(name, numbers)
        model = load_model(file)
        case = Case("threshold", n_batch=12)
        plans = [plan_with(model, case, some_neurons(model, model.n_units // n)) for n in (2, 3)]
        plans += [plan_named(model, case, name) for name in ("one layer", "dense + 17%", "everything")]
        for plan in plans:
            check_sums(plan)
            with on_device(plan, file, split_device) as executor:
                every = [logits(executor, step) for step in (1, 3, 12)]
            assert max(error(each, wanted) for each in every) < 1e-5
        nodes = [p.node for p in plans[0].decode.placed.nodes if p.node.op in FFNS]
        assert {node.rows for node in nodes if node.find_weight("threshold") is not None} == {HOT, COLD}


FFNS = "sparse_gated_ffn", "expert_ffn"


@pytest.mark.parametrize(("kind", "sparse_layout"), KINDS)
def test_a_token_has_the_bits_alone_that_it_has_in_a_batch(
    kind: str, sparse_layout: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split_device: Device
) -> None:
    """A device's kernels of one token and of several leave out the same, and add the rest in one order."""
    path, source = model_file(tmp_path, kind, sparse_layout=sparse_layout)
    _, thresholds = forward(source, IDS, monkeypatch)
    with open_gguf(path) as file:
        for name, numbers in thresholds.items():
            file.add(name, numbers)
        plan = plan_named(load_model(file), Case("threshold", n_batch=12), "everything")
        with on_device(plan, file, split_device) as executor:
            alone, *others = (logits(executor, step).view(np.int32) for step in (1, 3, 12))
    assert all(np.array_equal(alone, each) for each in others)


def test_a_plan_counts_the_thresholds_of_neurons_on_the_device(tmp_path: Path) -> None:
    path, _ = model_file(tmp_path, "llama")
    with open_gguf(path) as file:
        for name, numbers in none_yet(2, 96, 0).items():
            file.add(name, numbers)
        model = load_model(file)
    plans = {mode: plan_named(model, Case(mode), "everything") for mode in ("off", "threshold")}
    assert plans["off"].totals.thresholds == 0 and plans["threshold"].totals.thresholds == 2 * 4 * 96
    assert [layer.threshold_bytes for layer in plans["threshold"].layers] == [4 * 96] * 2
    report = as_json(plans["threshold"])
    assert report["totals"]["gpu"]["thresholds"] == 2 * 4 * 96
    assert report["layers"][1]["threshold_bytes"] == 4 * 96
    shown = {
        mode: list(totals_table(as_json(plan)["totals"]["gpu"], "it").columns[0].cells)
        for mode, plan in plans.items()
    }
    assert "their thresholds" in shown["threshold"] and "their thresholds" not in shown["off"]


def test_a_plan_says_what_a_token_reads_at_most(tmp_path: Path) -> None:
    """Thresholds are in no counts, so all rows are told, as those of a dense model."""
    path, _ = model_file(tmp_path, "llama")
    with open_gguf(path) as file:
        for name, numbers in none_yet(2, 96, 0).items():
            file.add(name, numbers)
        model = load_model(file)
    counts = [np.where(np.arange(96) < 90, 1, 100).astype(np.uint64)] * 2  # most neurons hardly matter
    plans = {mode: split_plan(model, Case(mode), 0, frequencies=counts) for mode in ("off", "threshold")}
    of_mode = {mode: token_traffic(plan).host_bytes for mode, plan in plans.items()}
    thresholds = sum(layer.ffn_threshold.n_bytes for layer in model.layers if layer.ffn_threshold is not None)
    assert of_mode["threshold"] == of_mode["off"] + thresholds > of_mode["off"]
