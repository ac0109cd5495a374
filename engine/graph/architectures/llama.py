"""Llama: RMSNorm, rotary grouped-query attention, gated FFN (Touvron et al., 2023).

A sparse FFN reads its predictor's mask from the residual after attention, before its norm, as
PowerInfer trains it.
"""

from hotcold.engine.graph.architectures.blocks import expert_ffn, gated_ffn, mask, router, self_attention
from hotcold.engine.graph.graph import Graph
from hotcold.engine.model.model import Model


def build(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model."""
    append(graph, model, sparsity, model.ffn_activation)


def append(graph: Graph, model: Model, sparsity: str, activation: str, *, interleaved: bool = True) -> None:
    """Append the whole model with this activation of its gated FFN and this pairing of its rotation."""
    eps = model.norm_eps
    x = graph.add("embed", model.token_embd, name="inp_embd")
    for i, layer in enumerate(model.layers):
        n = graph.add("rms_norm", x, layer.attn_norm, eps=eps, name="attn_norm", layer=i)
        a = self_attention(graph, model, layer, n, i, interleaved)
        x = graph.add("add", a, x, name="ffn_inp", layer=i)
        listed = mask(graph, model, layer, x, i, sparsity)
        n = graph.add("rms_norm", x, layer.ffn_norm, eps=eps, name="ffn_norm", layer=i)
        if layer.ffn_gate_inp is None:
            h = gated_ffn(graph, layer, n, listed, i, activation, sparsity)
        else:
            h = expert_ffn(graph, model, layer, n, router(graph, model, layer, n, i), i, activation, sparsity)
        x = graph.add("add", h, x, name="l_out", layer=i)
    x = graph.add("rms_norm", x, model.output_norm, eps=eps, name="result_norm")
    graph.add("logits", model.output, x, name="result_output")
