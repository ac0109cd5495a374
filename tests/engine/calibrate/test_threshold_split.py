"""A split layer with thresholds: the CPU's neurons are left out by them, the device's never."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from split_runs import Case, budget_bytes, cpu_executor, on_device, plan_with, some_neurons, split_plan
from threshold_models import IDS, forward, model_file

from hotcold.engine.calibrate.levels import none_yet
from hotcold.engine.graph.graph import COLD, HOT
from hotcold.engine.model.load import load_model
from hotcold.engine.plan.traffic import token_traffic
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import open_gguf
from hotcold.kernels.cuda.device.device import Device

CASE = Case("threshold")


def logits(executor: Executor, step: int) -> NDArray[np.float32]:
    out = np.zeros((len(IDS), executor.model.n_vocab), np.float32)
    for i in range(0, len(IDS), step):
        executor.run(IDS[i : i + step], i, out[i : i + step])
    return out


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_only_the_cold_neurons_have_thresholds(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split_device: Device
) -> None:
    path, source = model_file(tmp_path, kind, sparse_layout=kind == "llama")
    _, thresholds = forward(source, IDS, monkeypatch)
    with open_gguf(path) as file:
        for name, numbers in thresholds.items():
            file.add(name, numbers)
        model = load_model(file)
        hot = some_neurons(model, 24 if kind == "llama" else 2)
        plan = plan_with(model, CASE, hot)
        with on_device(plan, file, split_device) as executor:
            nodes = [
                p.node for p in plan.decode.placed.nodes if p.node.op in ("sparse_gated_ffn", "expert_ffn")
            ]
            assert {node.rows: node.find_weight("threshold") is None for node in nodes} == {
                HOT: True,
                COLD: False,
            }
            got = [logits(executor, step) for step in (1, 4)]
        with cpu_executor(model, file, CASE) as executor:
            everywhere = logits(executor, 4)
        for numbers, ids in zip(thresholds.values(), hot, strict=True):
            numbers[ids] = 0
        with cpu_executor(model, file, CASE) as executor:
            wanted = logits(executor, 4)
    for each in got:
        assert np.allclose(each, wanted, rtol=1e-4, atol=1e-5)
    assert not np.allclose(everywhere, wanted, rtol=1e-4, atol=1e-5)


def test_a_device_that_holds_all_computes_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split_device: Device
) -> None:
    path, source = model_file(tmp_path, "llama")
    _, thresholds = forward(source, IDS, monkeypatch)
    with open_gguf(path) as file:
        for name, numbers in thresholds.items():
            file.add(name, numbers)
        model = load_model(file)
        plan = split_plan(model, CASE, budget_bytes(model, CASE, "everything"))
        entries = [each for each in plan.weights if each.role == "threshold"]
        assert [each.side for each in entries] == ["cpu", "cpu"] and not any(
            each.device_bytes for each in entries
        )
        with on_device(plan, file, split_device) as executor:
            got = logits(executor, 3)
        for numbers in thresholds.values():
            numbers[...] = 0
        with cpu_executor(model, file, CASE) as executor:
            assert np.allclose(got, logits(executor, 4), rtol=1e-4, atol=1e-5)


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
