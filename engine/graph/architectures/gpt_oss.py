"""gpt-oss: experts with biases and a limited SwiGLU, sinks, and a window in every second layer (OpenAI, 2025).

The norm in front of the experts is called post_attention_norm.
"""

from hotcold.engine.graph.architectures.blocks import expert_ffn, router, self_attention
from hotcold.engine.graph.graph import Graph
from hotcold.engine.model.model import Model


def build(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model."""
    eps = model.norm_eps
    x = graph.add("embed", model.token_embd, name="inp_embd")
    for i, layer in enumerate(model.layers):
        n = graph.add("rms_norm", x, layer.attn_norm, eps=eps, name="attn_norm", layer=i)
        a = self_attention(graph, model, layer, n, i, interleaved=False)
        x = graph.add("add", a, x, name="ffn_inp", layer=i)
        n = graph.add("rms_norm", x, layer.post_attention_norm, eps=eps, name="attn_post_norm", layer=i)
        h = expert_ffn(
            graph, model, layer, n, router(graph, model, layer, n, i), i, model.ffn_activation, sparsity
        )
        x = graph.add("add", h, x, name="l_out", layer=i)
    x = graph.add("rms_norm", x, model.output_norm, eps=eps, name="result_norm")
    graph.add("logits", model.output, x, name="result_output")
