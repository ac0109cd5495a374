"""Which neurons of the FFN are computed: the modes, what a file can run in, the predictors' threshold."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hotcold.engine.settings import finite_number, one_of
from hotcold.errors import SettingError

if TYPE_CHECKING:
    from hotcold.engine.model.model import Layer, Model

SPARSITY_CHOICES = ("auto", "exact", "off", "predictor", "threshold")
SMOOTH = ("silu", "gelu")
"""Functions without zeros of their own, of whose neurons thresholds say which matter."""
SPOKEN = {"relu": "ReLU", "silu": "SiLU", "gelu": "GELU"}
"""Functions of an FFN as people write them."""
THRESHOLD_VARIABLE = "LLAMA_SPARSE_PRED_THRESHOLD"


def resolve_sparsity(model: "Model", wanted: str) -> tuple[str, str]:
    """How the FFN runs, and why.

    Args:
        wanted: "auto", "exact", "off", "predictor" or "threshold", which is never a default. Auto takes the predictor
            where the file has one, exact for a ReLU model that keeps a row a neuron of its down projection, else off.

    Returns:
        ("off" | "exact" | "predictor" | "threshold", reason in words).

    Raises:
        SettingError: an unknown word, or a mode that this file cannot run in.
    """
    one_of("sparsity", wanted, SPARSITY_CHOICES)
    transposed = _has_row_a_neuron(model)
    relu = model.ffn_activation == "relu"
    if wanted == "off":
        return "off", "asked for"
    if wanted == "auto":
        if model.has_predictors:
            return "predictor", "the file has predictors"
        if can_be_exact(model):
            return "exact", "a ReLU model without predictors"
        return "off", f"{spoken(model.ffn_activation)} without predictors" if not relu else "no ffn_down_t"
    if wanted == "predictor" and not model.has_predictors:
        raise SettingError(
            "sparsity", wanted, "this file has no predictors", "use auto, or convert with them"
        )
    if wanted == "exact" and not relu:
        bound = f"the FFN is {spoken(model.ffn_activation)}: only ReLU has exact zeros"
        raise SettingError("sparsity", wanted, bound, "use off")
    if wanted == "threshold":
        _check_gate(model)
    if not transposed and model.experts is None:  # experts without spare the rows of `up` alone
        bound = "the file has no ffn_down_t tensors"
        step = "use off, or convert the model with hotcold convert"
        raise SettingError("sparsity", wanted, bound, step + " --sparse-layout" * (not relu))
    if wanted == "threshold" and not model.has_thresholds:
        bound = "the file has no thresholds"
        raise SettingError("sparsity", wanted, bound, "measure them first with hotcold calibrate")
    return wanted, "asked for"


def spoken(activation: str) -> str:
    """An FFN's function as people write it; one of a single architecture as its file has it."""
    return SPOKEN.get(activation, activation)


def sparsity_of(layer: "Layer", sparsity: str) -> str:
    """The mode that a layer runs in: exact where others use their predictors and it has none."""
    return "exact" if sparsity == "predictor" and layer.fc1 is None else sparsity


def _check_gate(model: "Model") -> None:
    """Refuse an FFN of whose neurons no threshold can say which matter."""
    if model.ffn_activation not in SMOOTH:
        bound = f"the FFN is {spoken(model.ffn_activation)}, thresholds are for SiLU and GELU"
        next_step = "use exact, which costs nothing" if model.ffn_activation == "relu" else "use off"
        raise SettingError("sparsity", "threshold", bound, next_step)
    if any(layer.ffn_gate is None and layer.ffn_gate_exps is None for layer in model.layers):
        raise SettingError("sparsity", "threshold", "the FFN has no gate to look at first", "use off")


def _has_row_a_neuron(model: "Model") -> bool:
    """Whether the down projection is transposed in every layer."""
    return all((layer.ffn_down_t or layer.ffn_down_exps_t) is not None for layer in model.layers)


def can_be_exact(model: "Model") -> bool:
    """Whether the model has exact zeros, and rows that they spare."""
    return model.ffn_activation == "relu" and _has_row_a_neuron(model)


def resolve_threshold(
    wanted: float | None,
    in_file: float,
    mode: str = "predictor",
    environment: Mapping[str, str] = os.environ,
) -> float:
    """Predictor outputs at or above this count as active: as set, else by the environment, else the file.

    Args:
        mode: as `resolve_sparsity` has it.

    Raises:
        SettingError: not a finite number, or one that is set where no predictor runs.
    """
    if wanted is not None:
        threshold = finite_number("sparse_pred_threshold", wanted)
        if mode != "predictor":
            bound = f"changes nothing without predictors, and the sparsity is {mode}"
            raise SettingError("sparse_pred_threshold", wanted, bound, "leave it out")
        return threshold
    if (text := environment.get(THRESHOLD_VARIABLE)) is not None:
        return finite_number(THRESHOLD_VARIABLE, text)
    return in_file
