"""`hotcold tune`: which modes, from which bytes and speeds; how near it comes is bench's and the docs' business."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from threshold_models import model_file

from hotcold import load
from hotcold.engine.measure import tune
from hotcold.engine.measure.activity import Activity
from hotcold.engine.measure.traffic import ffn_bytes


@pytest.fixture(autouse=True)
def in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "SECONDS", 0.0)


def test_all_modes_of_the_bundled_model() -> None:
    shown = run("tune", "--json", "-t", "1", "--vram-budget", "6MiB", "--card", "rtx3060")
    assert shown.returncode == 0, shown.stderr
    modes = json.loads(shown.stdout)["modes"]
    assert [each["mode"] for each in modes] == ["off", "exact", "predictor"]
    off, exact, predictor = modes
    assert off["predicted"] == off["measured"] and off["error"] == 0 and off["computed"] == 1
    assert predictor["computed"] < exact["computed"] < 0.3
    assert predictor["n_bytes"] < exact["n_bytes"] < off["n_bytes"]
    assert all(0 < each["on_card"] < 1 and 0 < each["measured"] < 1 for each in modes)
    assert 0 < exact["predicted"] < off["predicted"]


def test_the_table_names_the_fastest() -> None:
    shown = run("tune", "-t", "1")
    assert shown.returncode == 0
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["mode", "off", "exact", "predictor"]
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "fastest by the prediction: --sparsity " in shown.stderr


def test_a_silu_model_without_thresholds_runs_in_one_mode(tmp_path: Path) -> None:
    path, _ = model_file(tmp_path, "llama")
    shown = run("tune", "-m", str(path), "--json", "-t", "1")
    assert [each["mode"] for each in json.loads(shown.stdout)["modes"]] == ["off"]


@pytest.mark.parametrize("arguments", [("--vram-budget", "6MiB"), ("--card", "rtx3060")])
def test_a_budget_without_a_card_is_refused(arguments: tuple[str, str]) -> None:
    shown = run("tune", *arguments)
    assert shown.returncode == 2 and "add the other" in shown.stderr


def test_a_line_through_nodes() -> None:
    n_bytes = np.array([100.0, 400.0, 900.0])
    start, of_byte = tune._line(n_bytes, 3e-6 + 2e-9 * n_bytes)
    assert start == pytest.approx(3e-6) and of_byte == pytest.approx(2e-9)
    start, of_byte = tune._line(n_bytes, 3e-9 * n_bytes - 1e-7)  # starts before it begins: bytes alone
    assert start == 0 and of_byte == pytest.approx((3e-9 * 1400 - 3e-7) / 1400)


def test_bytes_of_each_layer() -> None:
    with load(n_ctx=8, threads=1) as engine:
        listed = tuple(100.0 * (i + 1) for i in range(6))
        firing = tuple(50.0 * (i + 1) for i in range(6))
        found = tune._ffn_bytes(engine, Activity(listed, firing, 0.0))
        wanted = [ffn_bytes(*each) for each in zip(engine.model.layers, listed, firing, strict=True)]
    assert found == pytest.approx(wanted)
