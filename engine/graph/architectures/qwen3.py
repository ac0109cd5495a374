"""Qwen3: Qwen2 with a norm of each head of queries and keys in place of their biases (Yang et al., 2025)."""

from hotcold.engine.graph.architectures import llama
from hotcold.engine.graph.graph import Graph
from hotcold.engine.model.model import Model


def build(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model."""
    llama.append(graph, model, sparsity, model.ffn_activation, interleaved=False)
