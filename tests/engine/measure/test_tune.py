"""`hotcold tune`: which modes, from which bytes and speeds; how near it comes is bench's and the docs' business."""

import errno
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
from commands import run
from threshold_models import model_file

from hotcold import load
from hotcold.engine.measure import probes, tune
from hotcold.engine.measure.activity import Activity
from hotcold.engine.measure.probes import Neurons, Probes, Rows
from hotcold.engine.measure.token_time import token_seconds, touched_bytes
from hotcold.errors import FileError
from hotcold.kernels.cpu.team import Team


@pytest.fixture(autouse=True)
def in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "SECONDS", 0.0)
    monkeypatch.setattr(probes, "SECONDS", 0.0)
    monkeypatch.setattr(probes, "MOST_BYTES", 1 << 20)


def test_all_modes_of_the_bundled_model() -> None:
    shown = run("tune", "--json", "-t", "1", "--vram-budget", "6MiB", "--card", "rtx3060")
    assert shown.returncode == 0, shown.stderr
    modes = json.loads(shown.stdout)["modes"]
    assert [each["mode"] for each in modes] == ["off", "exact", "predictor"]
    off, exact, predictor = modes
    assert off["computed"] == 1
    assert predictor["computed"] < exact["computed"] < 0.3
    assert predictor["n_bytes"] < exact["n_bytes"] < off["n_bytes"]
    assert all(0 < each["on_card"] < 1 and 0 < each["measured"] < 1 for each in modes)
    assert 0 < exact["predicted"] < off["predicted"]
    assert all(-0.9 < each["error"] < 9 for each in modes)  # how near it comes is bench/tune.py's business


def test_the_table_names_the_fastest() -> None:
    """And what two cards would take."""
    shown = run("tune", "-t", "1", "--vram-budget", "4MiB,4MiB", "--card", "rtx3060")
    assert shown.returncode == 0
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["mode", "off", "exact", "predictor"]
    assert shown.stdout.splitlines()[0].endswith("  rtx3060")
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "fastest by the prediction: --sparsity " in shown.stderr


def test_a_silu_model_without_thresholds_runs_in_one_mode(tmp_path: Path) -> None:
    path, _ = model_file(tmp_path, "llama")
    shown = run("tune", "-m", str(path), "--json", "-t", "1")
    assert [each["mode"] for each in json.loads(shown.stdout)["modes"]] == ["off"]


def test_a_card_runs_the_function_that_was_named(tmp_path: Path) -> None:
    path, _ = model_file(tmp_path, "llama")
    card = ("--vram-budget", "1MiB", "--card", "rtx3060")
    shown = run("tune", "-m", str(path), "--json", "-t", "1", "--ffn-activation", "relu", *card)
    assert shown.returncode == 0, shown.stderr
    assert [each["mode"] for each in json.loads(shown.stdout)["modes"]] == ["off", "exact"]


@pytest.mark.parametrize("arguments", [("--vram-budget", "6MiB"), ("--card", "rtx3060")])
def test_a_budget_without_a_card_is_refused(arguments: tuple[str, str]) -> None:
    shown = run("tune", *arguments)
    assert shown.returncode == 2 and "add the other" in shown.stderr


def test_probes_measure_once_and_leave_their_rings_when_they_go() -> None:
    """Without waiting for a collection of garbage: a ring may be large."""
    with Team(1) as team:
        probes = Probes(team, 0, [np.zeros(1 << 20, np.uint8)])
        assert probes.walk() == probes.walk() > 0
        alive = weakref.ref(probes)
        del probes
        assert alive() is None


class Priced:
    """Probes whose figures are given: nothing for a start, for rows and neurons what their bytes or numbers cost."""

    n_threads = 1

    def walk(self) -> float:
        return 3.0

    def rows(self, type_id: int, k: int) -> Rows:
        return Rows((0.0, float(k)), (0.0, float(k)))

    def neurons(self, types: tuple[int, ...], k: int, activation: int, pieces: int) -> Neurons:
        return Neurons((0.0, 0.0), 1.0, 100.0, (10_000.0,) * 3)

    def vectors(self, records: list[dict[str, int]]) -> float:
        return 0.0


def test_a_token_is_the_sum_of_its_records() -> None:
    """Products by rows and lengths, neurons by what a prompt lists and fires."""
    with load(n_ctx=80, n_batch=8, threads=1, sparsity="exact") as engine:
        model = engine.model
        firing = tuple(50.0 * (i + 1) for i in range(model.n_layer))
        listed = (float(model.n_ff),) * model.n_layer
        found = token_seconds(engine, Activity(listed, firing, 0.0), Priced(), 2.0)  # type: ignore[arg-type]
        weights = [w for layer in model.layers for w in (layer.attn_q, layer.attn_k, layer.attn_v)]
        weights += [layer.attn_output for layer in model.layers] + [model.output]
        rows = sum(weight.n_rows * weight.ne[0] for weight in weights)
        assert found == pytest.approx(5 + rows + sum(listed) + 10_000 * sum(firing))
        ffns = [w.n_bytes for layer in model.layers for w in layer.ffn_matrices]
        norms = [w.n_bytes for layer in model.layers for w in (layer.attn_norm, layer.ffn_norm) if w]
        read = sum(w.n_bytes for w in weights) + sum(ffns) + sum(norms) + model.output_norm.n_bytes
        assert touched_bytes(engine) == read


def test_lengths_between_two_powers_of_two_lie_between_their_figures() -> None:
    asked: list[int] = []

    def figures(k: int) -> np.ndarray:
        asked.append(k)
        return np.array([float(k)])

    assert probes.at_length(1024, figures)[0] == 1024 and asked == [1024]
    assert probes.at_length(1280, figures)[0] == pytest.approx(1280) and asked[1:] == [1024, 2048]


def test_a_line_begins_at_zero_or_above() -> None:
    assert probes._line((10, 30), (4.0, 8.0)) == pytest.approx((2.0, 0.2))
    assert probes._line((10, 30), (1.0, 9.0)) == pytest.approx((0.0, 0.3))
    assert probes._line((10, 30), (9.0, 3.0)) == pytest.approx((0.0, 0.1))


def test_a_disk_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(FileError, match="temporary file.*cannot be written: No space left"):
        probes._mapped(4096)
