"""SmallThinker: ReLU-gated experts, whose router reads the layer's input before any norm (Song et al., 2025).

Of four layers three have a window and rotate; the first sees all, by no positions at all. A file may have a profile of
the head, which says for a token by itself which rows of it to compute.
"""

from hotcold.engine.graph.architectures.blocks import expert_ffn, router, self_attention
from hotcold.engine.graph.graph import Graph
from hotcold.engine.model.model import Model

PERIOD = 4  # of so many layers the first does not rotate, in a model with windows and more layers


def build(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model."""
    eps = model.norm_eps
    x = graph.add("embed", model.token_embd, name="inp_embd")
    for i, layer in enumerate(model.layers):
        chosen = router(graph, model, layer, x, i)
        n = graph.add("rms_norm", x, layer.attn_norm, eps=eps, name="attn_norm", layer=i)
        rotates = model.windows is None or model.n_layer == PERIOD or i % PERIOD != 0
        a = self_attention(graph, model, layer, n, i, interleaved=False, rotates=rotates)
        x = graph.add("add", a, x, name="ffn_inp", layer=i)
        n = graph.add("rms_norm", x, layer.ffn_norm, eps=eps, name="ffn_norm", layer=i)
        h = expert_ffn(graph, model, layer, n, chosen, i, model.ffn_activation, sparsity)
        x = graph.add("add", h, x, name="l_out", layer=i)
    x = graph.add("rms_norm", x, model.output_norm, eps=eps, name="result_norm")
    profile = None
    if model.lists_head_rows and graph.n_tokens == 1:
        profile = graph.add("mul_mat", model.head_fc1, x, name="head_profile_in")
        profile = graph.add("mul_mat", model.head_fc2, profile, name="head_profile")
    graph.add("logits", model.output, x, profile, name="result_output")
