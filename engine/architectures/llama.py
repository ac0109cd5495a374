"""Llama: RMSNorm, rotary grouped-query attention, gated FFN (Touvron et al., 2023).

A sparse FFN reads its predictor's mask from the residual after attention, before its norm, as
PowerInfer trains it.
"""

from hotcold.engine.graph import Graph, Tensor
from hotcold.engine.model import Layer, Model


def build(graph: Graph, model: Model, sparsity: str) -> None:
    """Append the whole model."""
    x = graph.add("embed", model.token_embd, name="inp_embd")
    for i, layer in enumerate(model.layers):
        x = attention(graph, model, layer, x, i)
        x = ffn(graph, model, layer, x, i, sparsity)
    x = graph.add("rms_norm", x, model.output_norm, eps=model.norm_eps, name="result_norm")
    graph.add("logits", model.output, x, name="result_output")


def attention(graph: Graph, model: Model, layer: Layer, x: Tensor, i: int) -> Tensor:
    """x + Wo attention(rope(Wq n), rope(Wk n), Wv n) with n = norm(x)."""
    heads, heads_kv = {"n_head": model.n_head}, {"n_head": model.n_head_kv}
    rotation = {"head_dim": model.head_dim, "n_rot": model.n_rot, "interleaved": True}
    factors = [model.rope_freqs] if model.rope_freqs is not None else []
    n = graph.add("rms_norm", x, layer.attn_norm, eps=model.norm_eps, name=f"attn_norm-{i}")
    q = graph.add("mul_mat", layer.attn_q, n, name=f"Qcur-{i}")
    k = graph.add("mul_mat", layer.attn_k, n, name=f"Kcur-{i}")
    v = graph.add("mul_mat", layer.attn_v, n, name=f"Vcur-{i}")
    q = graph.add("rope", q, *factors, **heads, **rotation, name=f"Qrope-{i}")
    k = graph.add("rope", k, *factors, **heads_kv, **rotation, name=f"Krope-{i}")
    stored = graph.add("kv_store", k, v, layer=i, name=f"kv_store-{i}")
    shape = {"n_head": model.n_head, "n_head_kv": model.n_head_kv, "head_dim": model.head_dim}
    a = graph.add("attention", q, stored, layer=i, **shape, name=f"kqv_out-{i}")
    a = graph.add("mul_mat", layer.attn_output, a, name=f"attn_out-{i}")
    return graph.add("add", a, x, name=f"ffn_inp-{i}")


def ffn(graph: Graph, model: Model, layer: Layer, x: Tensor, i: int, sparsity: str) -> Tensor:
    """x + down (act(gate n) * (up n)) with n = norm(x), over all neurons or those that fire."""
    act = {"activation": model.ffn_activation}
    matrices = (layer.ffn_gate, layer.ffn_up)
    mask: list[Tensor] = []
    if sparsity == "predictor" and layer.fc1 is not None and layer.fc2 is not None:
        threshold = model.sparse_threshold
        mask = [graph.add("predictor", x, layer.fc1, layer.fc2, threshold=threshold, name=f"mlp_pre_out-{i}")]
    n = graph.add("rms_norm", x, layer.ffn_norm, eps=model.norm_eps, name=f"ffn_norm-{i}")
    if sparsity != "off" and layer.ffn_down_t is not None:
        h = graph.add("sparse_ffn", n, *mask, *matrices, layer.ffn_down_t, **act, name=f"ffn_out-{i}")
    else:
        down = {"transposed": layer.ffn_down is None}
        h = graph.add("dense_ffn", n, *matrices, layer.down, **act, **down, name=f"ffn_out-{i}")
    return graph.add("add", h, x, name=f"l_out-{i}")
