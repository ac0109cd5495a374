"""What architectures share: attention, a predictor's mask, and the two kinds of FFN.

Each appends to a graph and gives the result, before it joins the residual.
"""

from typing import Any

from hotcold.engine.graph.graph import Graph, Tensor
from hotcold.engine.model.model import Layer, Model


def self_attention(graph: Graph, model: Model, layer: Layer, n: Tensor, i: int, interleaved: bool) -> Tensor:
    """Wo attention(rope(Wq n), rope(Wk n), Wv n), each matrix with its bias if it has one.

    Where a layer has norms of q and k, each head of theirs is normed before it rotates.

    Args:
        n: the normed input.
        interleaved: the rotation's pairs are (2i, 2i + 1), else (i, i + n_rot / 2); none with n_rot 0.
    """
    q = graph.add("mul_mat", layer.attn_q, n, layer.attn_q_bias, name="Qcur", layer=i)
    k = graph.add("mul_mat", layer.attn_k, n, layer.attn_k_bias, name="Kcur", layer=i)
    v = graph.add("mul_mat", layer.attn_v, n, layer.attn_v_bias, name="Vcur", layer=i)
    eps = model.norm_eps
    if layer.attn_q_norm is not None:
        norm, n_head = layer.attn_q_norm, model.n_head
        q = graph.add("rms_norm_heads", q, norm, n_head=n_head, eps=eps, name="Qcur_normed", layer=i)
    if layer.attn_k_norm is not None:
        norm, n_head = layer.attn_k_norm, model.n_head_kv
        k = graph.add("rms_norm_heads", k, norm, n_head=n_head, eps=eps, name="Kcur_normed", layer=i)
    if model.n_rot:
        rotation: dict[str, Any] = {
            "head_dim": model.head_dim,
            "n_rot": model.n_rot,
            "interleaved": interleaved,
        }
        q = graph.add("rope", q, model.rope_freqs, n_head=model.n_head, **rotation, name="Qrope", layer=i)
        k = graph.add("rope", k, model.rope_freqs, n_head=model.n_head_kv, **rotation, name="Krope", layer=i)
    stored = graph.add("kv_store", k, v, name="kv_store", layer=i)
    shape: dict[str, Any] = {"n_head": model.n_head, "n_head_kv": model.n_head_kv, "head_dim": model.head_dim}
    a = graph.add("attention", q, stored, **shape, name="kqv_out", layer=i)
    return graph.add("mul_mat", layer.attn_output, a, layer.attn_output_bias, name="attn_out", layer=i)


def mask(graph: Graph, model: Model, layer: Layer, x: Tensor, i: int, sparsity: str) -> Tensor | None:
    """Neurons that the predictor lists for the un-normed x; None in modes that use no predictor."""
    if sparsity != "predictor":
        return None
    threshold = model.sparse_threshold
    return graph.add("predictor", x, layer.fc1, layer.fc2, threshold=threshold, name="mlp_pre_out", layer=i)


def gated_ffn(
    graph: Graph, layer: Layer, n: Tensor, listed: Tensor | None, i: int, activation: str, sparsity: str
) -> Tensor:
    """down (act(gate n) * (up n)), over all neurons or those that fire."""
    act: dict[str, Any] = {"activation": activation, "name": "ffn_out", "layer": i}
    gate, up = layer.ffn_gate, layer.ffn_up
    if sparsity != "off":
        return graph.add("sparse_gated_ffn", n, listed, gate, up, layer.ffn_down_t, **act)
    return graph.add("dense_gated_ffn", n, gate, up, layer.down, transposed=layer.ffn_down is None, **act)


def ffn(
    graph: Graph, layer: Layer, n: Tensor, listed: Tensor | None, i: int, activation: str, sparsity: str
) -> Tensor:
    """down act(up n + bias) + bias, over all neurons or those that fire."""
    act: dict[str, Any] = {"activation": activation, "name": "ffn_out", "layer": i}
    up, up_bias, down_bias = layer.ffn_up, layer.ffn_up_bias, layer.ffn_down_bias
    if sparsity != "off":
        return graph.add("sparse_ffn", n, listed, up, up_bias, layer.ffn_down_t, down_bias, **act)
    transposed = layer.ffn_down is None
    return graph.add("dense_ffn", n, up, up_bias, layer.down, down_bias, transposed=transposed, **act)
