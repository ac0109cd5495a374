"""Gemma 3 (Gemma Team, 2025): norms in front of attention and FFN and behind them, and windows.

Of six layers five see a window, with a rotation of their own. The largest model scales its scores as if its
heads were n_embd / n_head wide.
"""

from hotcold.engine.graph.architectures.blocks import embedding, gated_ffn, mask, self_attention
from hotcold.engine.graph.graph import Graph
from hotcold.engine.model.model import Model
from hotcold.gguf_io.architectures.gemma3 import LAYERS_OF_27B


def build(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model."""
    eps = model.norm_eps
    scale = (model.n_embd / model.n_head) ** -0.5 if model.n_layer == LAYERS_OF_27B else None
    x = embedding(graph, model, model.n_embd**0.5)
    for i, layer in enumerate(model.layers):
        n = graph.add("rms_norm", x, layer.attn_norm, eps=eps, name="attn_norm", layer=i)
        a = self_attention(graph, model, layer, n, i, interleaved=False, scale=scale)
        a = graph.add("rms_norm", a, layer.post_attention_norm, eps=eps, name="attn_post_norm", layer=i)
        x = graph.add("add", a, x, name="sa_out", layer=i)
        listed = mask(graph, model, layer, x, i, sparsity)
        n = graph.add("rms_norm", x, layer.ffn_norm, eps=eps, name="ffn_norm", layer=i)
        h = gated_ffn(graph, layer, n, listed, i, model.ffn_activation, sparsity)
        h = graph.add("rms_norm", h, layer.post_ffw_norm, eps=eps, name="ffn_post_norm", layer=i)
        x = graph.add("add", h, x, name="l_out", layer=i)
    x = graph.add("rms_norm", x, model.output_norm, eps=eps, name="result_norm")
    graph.add("logits", model.output, x, name="result_output")
