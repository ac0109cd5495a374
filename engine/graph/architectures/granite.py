"""Granite (IBM, 2024): llama with multipliers of embedding, residual, scores and logits."""

from hotcold.engine.graph.architectures.blocks import (
    embedding,
    expert_ffn,
    gated_ffn,
    mask,
    router,
    scaled,
    self_attention,
)
from hotcold.engine.graph.graph import Graph
from hotcold.engine.model.model import Model


def build(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model."""
    eps, by, activation = model.norm_eps, model.multipliers, model.ffn_activation
    x = embedding(graph, model, by.embedding)
    for i, layer in enumerate(model.layers):
        n = graph.add("rms_norm", x, layer.attn_norm, eps=eps, name="attn_norm", layer=i)
        a = self_attention(graph, model, layer, n, i, interleaved=True, scale=by.attention)
        a = scaled(graph, a, by.residual, "attn_scaled", i)
        x = graph.add("add", a, x, name="ffn_inp", layer=i)
        listed = mask(graph, model, layer, x, i, sparsity)
        n = graph.add("rms_norm", x, layer.ffn_norm, eps=eps, name="ffn_norm", layer=i)
        if layer.ffn_gate_inp is None:
            h = gated_ffn(graph, layer, n, listed, i, activation, sparsity)
        else:
            h = expert_ffn(graph, model, layer, n, router(graph, model, layer, n, i), i, activation, sparsity)
        h = scaled(graph, h, by.residual, "ffn_scaled", i)
        x = graph.add("add", h, x, name="l_out", layer=i)
    x = graph.add("rms_norm", x, model.output_norm, eps=eps, name="result_norm")
    x = scaled(graph, x, 1 / by.logits, "result_scaled", None)
    graph.add("logits", model.output, x, name="result_output")
