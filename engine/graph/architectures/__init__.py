"""One function an architecture: from a model's weights to its graph."""

from collections.abc import Callable

from hotcold.engine.graph.architectures import (
    bamboo,
    falcon,
    gemma3,
    gpt_oss,
    granite,
    llama,
    opt,
    phi3,
    qwen2,
    qwen3,
    smallthinker,
)
from hotcold.engine.graph.graph import Graph
from hotcold.engine.model.model import Model
from hotcold.errors import FileError, SettingError

BUILD: dict[str, Callable[[Graph, Model, str], None]] = {
    "llama": llama.build,
    "bamboo": bamboo.build,
    "falcon": falcon.build,
    "opt": opt.build,
    "qwen2": qwen2.build,
    "qwen3": qwen3.build,
    "phi3": phi3.build,
    "granite": granite.build,
    "gemma3": gemma3.build,
    "qwen3moe": qwen3.build,
    "olmoe": qwen3.build,
    "qwen2moe": qwen2.build,
    "smallthinker": smallthinker.build,
    "granitemoe": granite.build,
    "gpt-oss": gpt_oss.build,
}
SPARSITIES = ("off", "exact", "predictor", "threshold")


def build(model: Model, n_tokens: int, sparsity: str) -> Graph:
    """The model's graph for n_tokens tokens, frozen.

    Args:
        sparsity: "off", "exact" (skip neurons whose gate, or `up` without one, is not positive) "predictor"
            (look only at those that the predictor lists) or "threshold" (skip those whose gate is below its
            threshold).

    Raises:
        FileError: an architecture without a graph.
        SettingError: a sparsity that is unknown or that the model's weights do not allow.
    """
    if model.architecture not in BUILD:
        raise FileError("architecture of the model", model.architecture, f"known: {', '.join(BUILD)}")
    if sparsity not in SPARSITIES:
        raise SettingError("sparsity of a graph", sparsity, f"known: {', '.join(SPARSITIES)}")
    lacks = _lacks(model, sparsity)
    if lacks is not None:
        raise SettingError("sparsity of a graph", sparsity, lacks, "use off")
    graph = Graph(n_tokens)
    BUILD[model.architecture](graph, model, sparsity)
    return graph.freeze()


def _lacks(model: Model, sparsity: str) -> str | None:
    """What keeps the model from running so; None if nothing does."""
    if sparsity == "off":
        return None
    if sparsity == "threshold":
        if not model.has_thresholds:
            return "the model has no thresholds"
    elif model.ffn_activation != "relu":
        return f"{model.ffn_activation} has no exact zeros"
    if model.experts is None and any(layer.ffn_down_t is None for layer in model.layers):
        return "a layer has no ffn_down_t"
    if sparsity == "predictor" and not model.has_predictors:
        return "the model has no predictors"
    return None
