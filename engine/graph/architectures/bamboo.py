"""Bamboo: llama (Mistral) whose FFN is relu(gate n) * relu(up n) (Song et al., 2024, as PowerInfer runs it)."""

from hotcold.engine.graph.architectures import llama
from hotcold.engine.graph.graph import Graph
from hotcold.engine.model.model import Model


def build(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model."""
    llama.append(graph, model, sparsity, "relu_both")
