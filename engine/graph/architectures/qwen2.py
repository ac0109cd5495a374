"""Qwen2: llama with biases on queries, keys and values, and a rotation of halves (Yang et al., 2024)."""

from hotcold.engine.graph.architectures import llama
from hotcold.engine.graph.graph import Graph
from hotcold.engine.model.model import Model


def build(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model."""
    llama.append(graph, model, sparsity, model.ffn_activation, interleaved=False)
