"""What architectures share: attention, a predictor's mask, and the two kinds of FFN.

Each appends to a graph and gives the result, before it joins the residual.
"""

from dataclasses import replace
from typing import Any

from hotcold.engine.graph.graph import Graph, Tensor
from hotcold.engine.model.model import Layer, Model, Weight
from hotcold.engine.model.sparsity import sparsity_of
from hotcold.errors import FileError


def embedding(graph: Graph, model: Model, factor: float) -> Tensor:
    """The tokens' rows, times a factor."""
    x = graph.add("embed", model.token_embd, name="inp_embd")
    return scaled(graph, x, factor, "inp_scaled", None)


def scaled(graph: Graph, x: Tensor, factor: float, name: str, i: int | None) -> Tensor:
    """factor * x; x itself for 1."""
    return x if factor == 1 else graph.add("scale", x, factor=factor, name=name, layer=i)


def self_attention(
    graph: Graph,
    model: Model,
    layer: Layer,
    n: Tensor,
    i: int,
    interleaved: bool,
    *,
    scale: float | None = None,
    rotates: bool = True,
) -> Tensor:
    """Wo attention(rope(Wq n), rope(Wk n), Wv n), each matrix with its bias if it has one.

    Where a layer has norms of q and k, they are normed before they rotate, each head by itself or all together.

    Args:
        n: the normed input.
        interleaved: the rotation's pairs are (2i, 2i + 1), else (i, i + n_rot / 2); none with n_rot 0.
        scale: of scores; None: 1 / sqrt(head_dim).
        rotates: whether queries and keys of this layer rotate.
    """
    window = model.window(i)
    q = graph.add("mul_mat", layer.attn_q, n, layer.attn_q_bias, name="Qcur", layer=i)
    k = graph.add("mul_mat", layer.attn_k, n, layer.attn_k_bias, name="Kcur", layer=i)
    v = graph.add("mul_mat", layer.attn_v, n, layer.attn_v_bias, name="Vcur", layer=i)
    eps = model.norm_eps
    q = _normed(graph, q, layer.attn_q_norm, model.n_head, eps, "Qcur_normed", i)
    k = _normed(graph, k, layer.attn_k_norm, model.n_head_kv, eps, "Kcur_normed", i)
    if model.n_rot and rotates:
        rotation: dict[str, Any] = {
            "head_dim": model.head_dim,
            "n_rot": model.n_rot,
            "interleaved": interleaved,
            "table": int(window > 0),
        }
        q = graph.add("rope", q, model.rope_freqs, n_head=model.n_head, **rotation, name="Qrope", layer=i)
        k = graph.add("rope", k, model.rope_freqs, n_head=model.n_head_kv, **rotation, name="Krope", layer=i)
    stored = graph.add("kv_store", k, v, name="kv_store", layer=i)
    shape: dict[str, Any] = {"n_head": model.n_head, "n_head_kv": model.n_head_kv, "head_dim": model.head_dim}
    scores = {"scale": model.head_dim**-0.5 if scale is None else scale, "window": window}
    a = graph.add("attention", q, stored, layer.attn_sinks, **shape, **scores, name="kqv_out", layer=i)
    return graph.add("mul_mat", layer.attn_output, a, layer.attn_output_bias, name="attn_out", layer=i)


def _normed(
    graph: Graph, x: Tensor, norm: Weight | None, n_head: int, eps: float, name: str, i: int
) -> Tensor:
    """Queries or keys, normed as the length of the weight says, if there is one."""
    if norm is None:
        return x
    if norm.ne[0] == x.shape[1]:
        return graph.add("rms_norm", x, norm, eps=eps, name=name, layer=i)
    return graph.add("rms_norm_heads", x, norm, n_head=n_head, eps=eps, name=name, layer=i)


def mask(graph: Graph, model: Model, layer: Layer, x: Tensor, i: int, sparsity: str) -> Tensor | None:
    """Neurons that the predictor lists for the un-normed x; None where the layer uses no predictor."""
    if sparsity_of(layer, sparsity) != "predictor":
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
        return graph.add(
            "sparse_gated_ffn", n, listed, gate, up, layer.ffn_down_t, _thresholds(layer, sparsity), **act
        )
    return graph.add("dense_gated_ffn", n, gate, up, layer.down, transposed=layer.ffn_down is None, **act)


def _thresholds(layer: Layer, sparsity: str) -> Weight | None:
    """What neurons have to reach, in the mode that asks."""
    return layer.ffn_threshold if sparsity == "threshold" else None


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


def router(graph: Graph, model: Model, layer: Layer, x: Tensor, i: int) -> Tensor:
    """The experts that x goes to, and their weights."""
    if model.experts is None:
        raise FileError("layer", i, "no experts")
    logits = graph.add(
        "mul_mat", layer.ffn_gate_inp, x, layer.ffn_gate_inp_bias, name="ffn_moe_logits", layer=i
    )
    how: dict[str, Any] = {"n_used": model.experts.n_used, "gating": model.experts.gating}
    how |= {"normed": model.experts.normed, "scale": model.experts.scale}
    return graph.add("top_k", logits, **how, name="ffn_moe_topk", layer=i)


def expert_ffn(
    graph: Graph,
    model: Model,
    layer: Layer,
    n: Tensor,
    chosen: Tensor,
    i: int,
    activation: str,
    sparsity: str = "off",
) -> Tensor:
    """The chosen experts' sum_e w_e down_e (act(gate_e n) * (up_e n)), and the shared expert's, if there is one."""
    matrices = (layer.ffn_gate_exps, layer.ffn_up_exps, layer.down)
    biases = (layer.ffn_gate_exps_bias, layer.ffn_up_exps_bias, layer.ffn_down_exps_bias)
    act: dict[str, Any] = {"activation": activation, "layer": i}
    how: dict[str, Any] = {"transposed": layer.ffn_down_exps is None, "skip": sparsity != "off"}
    least = _thresholds(layer, sparsity)
    h = graph.add("expert_ffn", n, chosen, *matrices, *biases, least, **act, **how, name="ffn_moe_out")
    if layer.ffn_gate_shexp is None:
        return h
    shared = (layer.ffn_gate_shexp, layer.ffn_up_shexp, layer.ffn_down_shexp)
    s = graph.add("dense_gated_ffn", n, *shared, transposed=False, **act, name="ffn_shexp")
    if layer.ffn_gate_inp_shexp is not None:
        row = replace(layer.ffn_gate_inp_shexp, ne=(model.n_embd, 1))
        gate = graph.add("mul_mat", row, n, name="shared_expert_gate", layer=i)
        s = graph.add("mul_sigmoid", s, gate, name="ffn_shexp_gated", layer=i)
    return graph.add("add", h, s, name="ffn_out", layer=i)
