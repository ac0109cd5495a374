"""Falcon and OPT: LayerNorm, an FFN of up, ReLU and down without a gate.

Falcon (Almazrouei et al., 2023) runs attention and FFN side by side, both from the layer's input; OPT
(Zhang et al., 2022) one after the other, with learned positions and no rotation. As PowerInfer has it,
a predictor reads the residual before the norm. Queries, keys and values are three matrices here.
These graphs are for planning: no kernels run a LayerNorm yet.
"""

from hotcold.engine.graph import Graph, Tensor
from hotcold.engine.model import Layer, Model


def falcon(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model."""
    x = graph.add("embed", model.token_embd, name="inp_embd")
    for i, layer in enumerate(model.layers):
        n = graph.add("layer_norm", x, layer.attn_norm, eps=model.norm_eps, name=f"attn_norm-{i}")
        inner = graph.add("layer_norm", x, layer.ffn_norm, eps=model.norm_eps, name=f"attn_norm_2-{i}")
        a = _attention(graph, model, layer, inner, i, rotate=True)
        h = _ffn(graph, model, layer, x, n, i, sparsity)
        a = graph.add("add", a, x, name=f"ffn_inp-{i}")
        x = graph.add("add", h, a, name=f"l_out-{i}")
    _head(graph, model, x)


def opt(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model; the rows of positions are added where tokens are embedded."""
    x = graph.add("embed", model.token_embd, name="inp_embd")
    for i, layer in enumerate(model.layers):
        n = graph.add("layer_norm", x, layer.attn_norm, eps=model.norm_eps, name=f"attn_norm-{i}")
        a = _attention(graph, model, layer, n, i, rotate=False)
        x = graph.add("add", a, x, name=f"ffn_inp-{i}")
        n = graph.add("layer_norm", x, layer.ffn_norm, eps=model.norm_eps, name=f"ffn_norm-{i}")
        h = _ffn(graph, model, layer, x, n, i, sparsity)
        x = graph.add("add", h, x, name=f"l_out-{i}")
    _head(graph, model, x)


def _attention(graph: Graph, model: Model, layer: Layer, n: Tensor, i: int, rotate: bool) -> Tensor:
    q = graph.add("mul_mat", layer.attn_q, n, name=f"Qcur-{i}")
    k = graph.add("mul_mat", layer.attn_k, n, name=f"Kcur-{i}")
    v = graph.add("mul_mat", layer.attn_v, n, name=f"Vcur-{i}")
    if rotate:
        rotation = {"head_dim": model.head_dim, "n_rot": model.n_rot, "interleaved": False}
        q = graph.add("rope", q, n_head=model.n_head, **rotation, name=f"Qrope-{i}")
        k = graph.add("rope", k, n_head=model.n_head_kv, **rotation, name=f"Krope-{i}")
    stored = graph.add("kv_store", k, v, layer=i, name=f"kv_store-{i}")
    shape = {"n_head": model.n_head, "n_head_kv": model.n_head_kv, "head_dim": model.head_dim}
    a = graph.add("attention", q, stored, layer=i, **shape, name=f"kqv_out-{i}")
    return graph.add("mul_mat", layer.attn_output, a, name=f"attn_out-{i}")


def _ffn(graph: Graph, model: Model, layer: Layer, x: Tensor, n: Tensor, i: int, sparsity: str) -> Tensor:
    act = {"activation": model.ffn_activation}
    mask: list[Tensor] = []
    if sparsity == "predictor" and layer.fc1 is not None and layer.fc2 is not None:
        threshold = model.sparse_threshold
        mask = [graph.add("predictor", x, layer.fc1, layer.fc2, threshold=threshold, name=f"mlp_pre_out-{i}")]
    if sparsity != "off" and layer.ffn_down_t is not None:
        return graph.add("sparse_ffn", n, *mask, layer.ffn_up, layer.ffn_down_t, **act, name=f"ffn_out-{i}")
    down = {"transposed": layer.ffn_down is None}
    return graph.add("dense_ffn", n, layer.ffn_up, layer.down, **act, **down, name=f"ffn_out-{i}")


def _head(graph: Graph, model: Model, x: Tensor) -> None:
    x = graph.add("layer_norm", x, model.output_norm, eps=model.norm_eps, name="result_norm")
    graph.add("logits", model.output, x, name="result_output")
