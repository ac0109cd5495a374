"""Perplexity: the definition, and the bundled model's recorded value."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hotcold import load
from hotcold.engine.measure import perplexity
from hotcold.engine.measure.traffic import token_bytes
from hotcold.engine.model.model_path import model_path
from hotcold.errors import DoesNotFitError, SettingError

TinyModel = Callable[[str, bool], Path]


def recorded_definition(path: Path, tiny: Path, sparsity: str) -> float:
    """As reference.json defines it: runs of 255 ids behind BOS, the last 128 of each scored."""
    text = (tiny / "valid_excerpt.txt").read_bytes()
    with load(path, n_ctx=256, sparsity=sparsity) as engine:
        ids = np.array(engine.tokenizer.encode(text)[1:], np.int32)
        total, n = 0.0, len(ids) // 255
        for i in range(n):
            chunk = np.concatenate([[1], ids[255 * i : 255 * i + 255]]).astype(np.int32)
            logits = engine.logits(chunk)[127:255]
            total += perplexity.negative_log_likelihoods(logits, chunk[128:]).sum()
    return float(np.exp(total / (128 * n)))


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("outtype", "predictors", "sparsity", "key", "share"),
    [
        ("f16", False, "off", "value", 0.005),
        ("f16", False, "exact", "value", 0.005),
        ("f16", True, "predictor", "with_predictor_mask_at_threshold_0", 0.005),
        ("q8_0", True, "exact", "value", 0.01),
        ("q8_0", True, "predictor", "with_predictor_mask_at_threshold_0", 0.01),
    ],
)
def test_the_bundled_model_has_its_recorded_perplexity(
    outtype: str, predictors: bool, sparsity: str, key: str, share: float, tiny_model: TinyModel, tiny: Path
) -> None:
    recorded = json.loads((tiny / "reference.json").read_text())["perplexity"][key]
    value = recorded_definition(tiny_model(outtype, predictors), tiny, sparsity)
    assert abs(value / recorded - 1) <= share


@pytest.mark.parametrize("sparsity", ["exact", "off"])
def test_the_bundled_mixture_has_its_recorded_perplexity(sparsity: str, tiny: Path) -> None:
    """torch's, of the same file with its blocks widened."""
    name = "tiny-moe-austen"
    recorded = json.loads((tiny.parent / name / "reference.json").read_text())["perplexity"]["value"]
    assert recorded_definition(model_path(name), tiny, sparsity) == pytest.approx(recorded, rel=0.01)


def test_of_a_mixture_the_chosen_experts_are_looked_at(tiny: Path) -> None:
    """Two of eight; dense, all of their neurons are computed."""
    text, shares = (tiny / "valid_excerpt.txt").read_bytes()[:3000], {}
    for mode in ("off", "exact"):
        with load("tiny-moe-austen", n_ctx=128, sparsity=mode) as engine:
            shares[mode] = perplexity.measure(engine, text).activity.shares(engine.model.n_neurons)
    assert shares["off"] == (0.25, 0.25)
    assert shares["exact"][0] == 0.25 and shares["exact"][1] < 0.1


def test_modes_agree_and_report_what_they_read(tiny: Path) -> None:
    text = (tiny / "valid_excerpt.txt").read_bytes()[:6000]
    results = {}
    for mode in ("off", "exact", "predictor"):
        with load(n_ctx=128, sparsity=mode) as engine:
            results[mode] = perplexity.measure(engine, text)
            dense, n_ff = token_bytes(engine.model), engine.model.n_ff
    exact, predicted = results["exact"], results["predictor"]
    assert exact.value == pytest.approx(results["off"].value, rel=1e-3)
    assert predicted.value == pytest.approx(exact.value, rel=0.03)
    assert results["off"].activity.bytes_a_token == dense
    assert exact.activity.shares(n_ff)[0] == 1
    recorded = json.loads((tiny / "reference.json").read_text())["active"]
    assert exact.activity.shares(n_ff)[1] == pytest.approx(recorded["mean"], rel=0.2)
    listed = np.mean(recorded["predicted_per_layer"])
    assert predicted.activity.shares(n_ff)[0] == pytest.approx(listed, rel=0.2)
    assert predicted.activity.shares(n_ff)[1] < predicted.activity.shares(n_ff)[0]
    assert exact.activity.bytes_a_token < dense


def test_the_second_half_of_every_chunk_is_scored(tiny: Path) -> None:
    text = (tiny / "valid_excerpt.txt").read_bytes()[:3000]
    seen: list[tuple[int, int, float]] = []
    with load(n_ctx=100, n_batch=7) as engine:
        result = perplexity.measure(engine, text, lambda *state: seen.append(state))
        ids = np.array(engine.tokenizer.encode(text), np.int32)
        n = len(ids) // 100
        wanted = []
        for i in range(n):
            chunk = ids[100 * i : 100 * i + 100].copy()
            chunk[0] = 1
            logits = engine.logits(chunk)
            wanted.append(perplexity.negative_log_likelihoods(logits[50:99], chunk[51:]).sum())
    assert result.n_scored == 49 * n
    assert result.chunk_nlls == pytest.approx(wanted, rel=1e-3)
    assert result.value == pytest.approx(np.exp(np.sum(result.chunk_nlls) / result.n_scored))
    passed = [state[0] for state in seen]
    assert passed == sorted(passed) and passed[0] == 0 and {state[1] for state in seen} == {100 * n}
    assert set(range(0, 50, 7)) < set(passed) and passed[-1] == 100 * n
    values = [state[2] for state in seen]
    first = passed.index(100) + 1
    assert np.isnan(values[:first]).all() and np.isfinite(values[first:]).all() and values[-1] == result.value


def test_a_model_without_bos_scores_its_text_alone(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As files of Qwen2 and SmolLM2 ask for, which name a BOS and do not want it in front."""
    text = (tiny / "valid_excerpt.txt").read_bytes()[:900]
    with load(n_ctx=64) as engine:
        monkeypatch.setattr(engine.tokenizer, "add_bos", False)
        result = perplexity.measure(engine, text)
        ids = np.array(engine.tokenizer.encode(text), np.int32)
        assert engine.tokenizer.bos not in ids
        wanted = []
        for i in range(len(ids) // 64):
            chunk = ids[64 * i : 64 * i + 64]
            rows = engine.logits(chunk)[32:63]
            wanted.append(perplexity.negative_log_likelihoods(rows, chunk[33:]).sum())
    assert result.chunk_nlls == pytest.approx(wanted, rel=1e-3)


def test_likelihoods_of_hand_computed_rows() -> None:
    logits = np.log(np.array([[0.25, 0.75], [0.5, 0.5]], np.float32))
    nll = perplexity.negative_log_likelihoods(logits, np.array([1, 0], np.int32))
    assert nll == pytest.approx([-np.log(0.75), np.log(2)])


@pytest.mark.filterwarnings("error")
def test_a_single_id_tells_nothing_of_the_deviation() -> None:
    with load(n_ctx=4, threads=1) as engine:
        found = perplexity.measure(engine, b"It is a tru")
    assert found.n_scored == 1 and math.isinf(found.deviation)
    numbers = json.loads(json.dumps(found.numbers(), allow_nan=False))
    assert numbers["deviation"] is None and numbers["value"] == found.value


def test_a_short_text_is_refused() -> None:
    with (
        load(n_ctx=256) as engine,
        pytest.raises(DoesNotFitError, match=r"text: \d+ ids .*n_ctx = 256.*lower -c"),
    ):
        perplexity.measure(engine, b"Too short.")


def test_a_context_without_halves_is_refused() -> None:
    with load(n_ctx=3) as engine, pytest.raises(SettingError, match="n_ctx: 3 "):
        perplexity.measure(engine, b"Some text that is long enough.")
