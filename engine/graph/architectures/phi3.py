"""Phi-3: llama with a rotation of halves, often of a part of each head (Abdin et al., 2024).

Files name a window in which llama.cpp does not run it, and neither does hotcold.
"""

from hotcold.engine.graph.architectures import llama
from hotcold.engine.graph.graph import Graph
from hotcold.engine.model.model import Model


def build(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model."""
    llama.append(graph, model, sparsity, model.ffn_activation, interleaved=False)
