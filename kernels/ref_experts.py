"""NumPy oracles of mixtures of experts: which are chosen, and what they give. See `ref.py`, whose rules hold here."""

import numpy as np
from numpy.typing import NDArray

from hotcold.kernels.ref import F32, F64, gated, mul_mat, sigmoid

SMALLEST_SUM = 2.0**-14  # that the weights of experts are divided by, llama.cpp's


def top_k(
    logits: F32, n_used: int, gating: str, normed: bool = False, scale: float = 1.0
) -> tuple[NDArray[np.int32], F64]:
    """The experts that a router chooses, and their weights.

    Chosen are the n_used largest logits, of equal ones the first. Their weights are softmax over all ("softmax"),
    sigmoid ("sigmoid"), or softmax over those chosen ("softmax_chosen"); `normed` divides them by their sum, or
    by 2^-14 if that is more.

    Args:
        logits: [n_tokens, n_expert].

    Returns:
        [n_tokens, n_used] each: numbers of experts, ascending, and their weights times the scale.
    """
    wide = logits.astype(np.float64)
    ids = np.sort(np.argsort(-wide, axis=1, kind="stable")[:, :n_used], axis=1)
    chosen = np.take_along_axis(wide, ids, 1)
    if gating == "sigmoid":
        weights = sigmoid(chosen)
    else:
        whole = wide if gating == "softmax" else chosen
        top = whole.max(1, keepdims=True)
        weights = np.exp(chosen - top) / np.exp(whole - top).sum(1, keepdims=True)
    if normed:
        weights = weights / np.maximum(weights.sum(1, keepdims=True), SMALLEST_SUM)
    return ids.astype(np.int32), weights * scale


def expert_ffn(
    x: F32,
    chosen: tuple[NDArray[np.int32], F64],
    gate: F32,
    up: F32,
    down: F32,
    biases: tuple[F32 | None, F32 | None, F32 | None] = (None, None, None),
    activation: str = "silu",
    quantised: bool = False,
) -> F64:
    """The sum of the chosen experts' gated FFNs by their weights, a down bias weighted too.

    Args:
        x: [n_tokens, n_embd].
        chosen: as `top_k` gives them.
        gate, up: [n_expert, n_ff, n_embd]. down: [n_expert, n_embd, n_ff]. biases: of each, [n_expert, rows].
        quantised: whether the matrices are, so that what they multiply is rounded.
    """
    y, (gate_bias, up_bias, down_bias) = np.zeros((len(x), down.shape[1])), biases
    for t, (ids, weights) in enumerate(zip(*chosen, strict=True)):
        for e, weight in zip(ids, weights, strict=True):
            g, u = (mul_mat(w[e], x[t : t + 1], quantised) for w in (gate, up))
            g, u = (v if b is None else v + b[e] for v, b in ((g, gate_bias), (u, up_bias)))
            h = gated(g, u, activation).astype(np.float32)
            d = mul_mat(down[e], h, quantised)[0]
            y[t] += weight * (d if down_bias is None else d + down_bias[e])
    return y


def mul_sigmoid(x: F32, gate: F32) -> F64:
    """x sigmoid(gate), one gate a token.

    Args:
        x: [n_tokens, n]. gate: [n_tokens, 1].
    """
    return x.astype(np.float64) * sigmoid(gate.astype(np.float64))
