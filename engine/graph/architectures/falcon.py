"""Falcon: attention and FFN side by side, LayerNorm, rotation of halves (Almazrouei et al., 2023).

The 7 B model has one norm for both; the 40 B model has attn_norm_2 for attention and attn_norm for
the FFN. A predictor reads the layer's input before any norm.
"""

from hotcold.engine.graph.architectures.blocks import ffn, mask, self_attention
from hotcold.engine.graph.graph import Graph
from hotcold.engine.model.model import Model


def build(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model."""
    eps = model.norm_eps
    x = graph.add("embed", model.token_embd, name="inp_embd")
    for i, layer in enumerate(model.layers):
        n = graph.add(
            "layer_norm", x, layer.attn_norm, layer.attn_norm_bias, eps=eps, name="attn_norm", layer=i
        )
        n_attention = n
        if layer.attn_norm_2 is not None:
            second = (layer.attn_norm_2, layer.attn_norm_2_bias)
            n_attention = graph.add("layer_norm", x, *second, eps=eps, name="attn_norm_2", layer=i)
        a = self_attention(graph, model, layer, n_attention, i, interleaved=False)
        listed = mask(graph, model, layer, x, i, sparsity)
        h = ffn(graph, layer, n, listed, i, model.ffn_activation, sparsity)
        h = graph.add("add", h, a, name="ffn_attn", layer=i)
        x = graph.add("add", h, x, name="l_out", layer=i)
    norm = (model.output_norm, model.output_norm_bias)
    x = graph.add("layer_norm", x, *norm, eps=eps, name="result_norm")
    graph.add("logits", model.output, x, name="result_output")
