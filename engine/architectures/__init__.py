"""One function an architecture: from a model's weights to its graph."""

from collections.abc import Callable

from hotcold.engine.architectures import llama
from hotcold.engine.graph import Graph
from hotcold.engine.model import Model
from hotcold.errors import FileError

BUILD: dict[str, Callable[[Graph, Model, str], None]] = {"llama": llama.build}


def build(model: Model, n_tokens: int, sparsity: str) -> Graph:
    """The model's graph for n_tokens tokens.

    Args:
        sparsity: "off", "exact" (skip neurons whose gate is not positive) or "predictor" (look only at
            those that the predictor lists).

    Raises:
        FileError: an architecture without a graph.
    """
    if model.architecture not in BUILD:
        raise FileError("architecture of the model", model.architecture, f"known: {', '.join(BUILD)}")
    graph = Graph(n_tokens)
    BUILD[model.architecture](graph, model, sparsity)
    return graph
