"""OPT: learned positions, LayerNorm in front, biases everywhere, FFN without a gate (Zhang et al., 2022).

A predictor reads the residual after attention, before its norm. A neuron that it does not list adds
nothing, although its bias alone might fire.
"""

from hotcold.engine.graph.architectures.blocks import ffn, mask, self_attention
from hotcold.engine.graph.graph import Graph
from hotcold.engine.model.model import Model
from hotcold.gguf_io.architectures.opt import N_UNUSED_POSITIONS


def build(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model."""
    eps = model.norm_eps
    tokens = graph.add("embed", model.token_embd, name="tok_embd")
    positions = graph.add("positions", model.position_embd, first=N_UNUSED_POSITIONS, name="pos_embd")
    x = graph.add("add", tokens, positions, name="inp_embd")
    for i, layer in enumerate(model.layers):
        n = graph.add(
            "layer_norm", x, layer.attn_norm, layer.attn_norm_bias, eps=eps, name="attn_norm", layer=i
        )
        a = self_attention(graph, model, layer, n, i, interleaved=False)
        x = graph.add("add", a, x, name="ffn_inp", layer=i)
        listed = mask(graph, model, layer, x, i, sparsity)
        n = graph.add("layer_norm", x, layer.ffn_norm, layer.ffn_norm_bias, eps=eps, name="ffn_norm", layer=i)
        h = ffn(graph, layer, n, listed, i, model.ffn_activation, sparsity)
        x = graph.add("add", h, x, name="l_out", layer=i)
    norm = (model.output_norm, model.output_norm_bias)
    x = graph.add("layer_norm", x, *norm, eps=eps, name="result_norm")
    graph.add("logits", model.output, x, name="result_output")
