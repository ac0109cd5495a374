"""Which neurons are computed: by the file, the setting and the environment."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from hotcold.engine.model.sparsity import resolve_sparsity, resolve_threshold
from hotcold.errors import SettingError


def model(activation: str = "relu", transposed: bool = True, predictors: bool = False) -> Any:
    layer = SimpleNamespace(ffn_down_t="weight" if transposed else None, ffn_down_exps_t=None)
    layers = (layer, layer)
    return SimpleNamespace(ffn_activation=activation, has_predictors=predictors, layers=layers, experts=None)


@pytest.mark.parametrize(
    ("kind", "wanted", "mode"),
    [
        (model(predictors=True), "auto", "predictor"),
        (model(), "auto", "exact"),
        (model(transposed=False), "auto", "off"),
        (model("silu", transposed=False), "auto", "off"),
        (model(predictors=True), "exact", "exact"),
        (model(predictors=True), "off", "off"),
        (model(predictors=True), "predictor", "predictor"),
    ],
)
def test_sparsity_follows_the_file(kind: Any, wanted: str, mode: str) -> None:
    resolved, why = resolve_sparsity(kind, wanted)
    assert resolved == mode
    assert why


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        (model(), "predictor", "sparsity: predictor .*no predictors"),
        (model("silu", transposed=False), "exact", "sparsity: exact .*SiLU: only"),
        (model(transposed=False), "exact", "sparsity: exact .*no ffn_down_t"),
        (model(), "some", "sparsity: some .*auto, exact, off, predictor, threshold"),
        (model(), "threshold", "is ReLU, thresholds are for SiLU and GELU.; use exact"),
    ],
)
def test_sparsity_that_the_file_cannot_run_in_is_refused(kind: Any, wanted: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        resolve_sparsity(kind, wanted)


def test_threshold_is_the_flag_then_the_environment_then_the_file() -> None:
    environment = {"LLAMA_SPARSE_PRED_THRESHOLD": "-0.25"}
    assert resolve_threshold(0.0, 0.5, environment=environment) == 0.0
    assert resolve_threshold(None, 0.5, environment=environment) == -0.25
    assert resolve_threshold(None, 0.5, environment={}) == 0.5


@pytest.mark.parametrize("text", ["junk", "", "1_0", "nan", "inf", "-inf", "0,5", "1e999", "1e39"])
def test_a_bad_threshold_in_the_environment_is_named(text: str) -> None:
    with pytest.raises(SettingError, match=f"^LLAMA_SPARSE_PRED_THRESHOLD: .*{text}.*finite"):
        resolve_threshold(None, 0.5, environment={"LLAMA_SPARSE_PRED_THRESHOLD": text})


@pytest.mark.parametrize("value", [math.nan, math.inf, "much", True, -(10**39)])
def test_a_bad_threshold_is_named(value: Any) -> None:
    with pytest.raises(SettingError, match=f"^sparse_pred_threshold: {value}"):
        resolve_threshold(value, 0.5)


def test_a_threshold_of_thousands_of_digits_is_refused() -> None:
    with pytest.raises(SettingError, match="^sparse_pred_threshold: a number of thousands of digits"):
        resolve_threshold(10**5000, 0.5)


@pytest.mark.parametrize("mode", ["off", "exact", "threshold"])
def test_a_threshold_for_predictors_that_do_not_run_is_refused(mode: str) -> None:
    """One of the environment is for all models, and stays without effect here."""
    with pytest.raises(SettingError, match=f"^sparse_pred_threshold: 0.5 .changes nothing .* is {mode}"):
        resolve_threshold(0.5, 0.0, mode, {})
    assert resolve_threshold(None, 0.0, mode, {"LLAMA_SPARSE_PRED_THRESHOLD": "0.5"}) == 0.5
