"""NumPy oracles, one short function an op: the definition of what is right.

Every function takes float32 and computes in float64, so a kernel's own rounding shows as its
distance from here; `order_of_sums.py` has the very bits of the CPU's kernels. Weights arrive as float32
matrices of the numbers that their blocks hold. Mixtures of experts are in `ref_experts.py`.

Two facts are defined here and nowhere else:

* inputs that meet a quantised weight are first rounded by `quantise`: int8 in blocks of 32
  with one float32 scale;
* a neuron of a ReLU FFN counts only if its gate is positive, so `up` and `down` rows of the others
  are never read.
"""

import math

import numpy as np
from numpy.typing import NDArray

from hotcold.kernels.formats import EXACT_POSITIONS, N_CANDIDATES

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BLOCK = 32
SWIGLU_LIMIT, SWIGLU_ALPHA = 7.0, 1.702  # of gpt-oss


def quantise(x: F32) -> tuple[NDArray[np.int8], F32]:
    """Round an input to int8 in blocks of 32.

    d = max|x| / 127, q = round(x / d), ties to even, computed in float32 as x * (1 / d): ggml's
    Q8_0, but with the scale kept in float32.

    Args:
        x: float32 [..., n], n a multiple of 32.

    Returns:
        q int8 [..., n] and d float32 [..., n / 32].
    """
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, BLOCK)
    d = np.abs(blocks).max(-1) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(d == 0, np.float32(0), np.float32(1) / d).astype(np.float32)
    q = np.rint(blocks * inverse[..., None]).astype(np.int8)
    return q.reshape(x.shape), d


def cached(kv_type: str, x: F32) -> NDArray[np.generic]:
    """Keys or values as the device's cache holds them.

    Args:
        kv_type: "f16", "f32", or "q8_0". x: [n_head_kv, n_ctx, head_dim].

    Returns:
        float16 or float32 like x; of q8_0 int8 [n]: the bytes that `quantise` gives, then their scales in F16.
    """
    if kv_type != "q8_0":
        return x.astype({"f16": np.float16, "f32": np.float32}[kv_type])
    with np.errstate(invalid="ignore"):  # NaN has a scale of NaN
        q, d = quantise(x)
    return np.concatenate([q.ravel(), d.astype(np.float16).view(np.int8).ravel()])


def cache_numbers(stored: NDArray[np.generic], shape: tuple[int, int, int]) -> F32:
    """The numbers in what `cached` makes of an x of this shape."""
    if stored.dtype != np.int8:
        return stored.reshape(shape).astype(np.float32)
    n = math.prod(shape)
    scales = stored[n : n + n // BLOCK * 2].copy().view(np.float16).astype(np.float32)
    q = stored[:n].astype(np.float32).reshape(-1, BLOCK)
    return np.asarray(q * scales[:, None], np.float32).reshape(shape)


def rounded(x: F32) -> F64:
    """What `quantise` leaves of x, as float64 [..., n]."""
    q, d = quantise(x)
    blocks = q.reshape(*x.shape[:-1], -1, BLOCK).astype(np.float64)
    return (blocks * d[..., None]).reshape(x.shape)


def mul_mat(w: F32, x: F32, quantised: bool = False) -> F64:
    """y[t, r] = sum_k w[r, k] x[t, k].

    Args:
        w: [n_rows, k].
        x: [n_tokens, k].
        quantised: whether w's block type is quantised, so that x is rounded first.

    Returns:
        float64 [n_tokens, n_rows].
    """
    return (rounded(x) if quantised else x.astype(np.float64)) @ w.astype(np.float64).T


def rms_norm(x: F32, weight: F32, eps: float) -> F64:
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis (Zhang and Sennrich, 2019)."""
    wide = x.astype(np.float64)
    root: F64 = np.sqrt((wide * wide).mean(-1, keepdims=True) + eps)
    return wide / root * weight


def layer_norm(x: F32, weight: F32, bias: F32, eps: float) -> F64:
    """(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, over the last axis (Ba et al., 2016)."""
    wide = x.astype(np.float64)
    centred: F64 = wide - wide.mean(-1, keepdims=True)
    root: F64 = np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    return centred / root * weight + bias


def rope_frequencies(n_rot: int, base: float, scale: float = 1.0, factors: F32 | None = None) -> F64:
    """Angle per position of each rotated pair: scale * base^(-2i / n_rot) / factors[i], [n_rot / 2]."""
    frequencies = scale * base ** (-np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)
    return frequencies if factors is None else frequencies / factors


def yarn_frequencies(
    n_rot: int, base: float, factor: float, n_ctx_orig: int, fast: float = 32.0, slow: float = 1.0
) -> F64:
    """`rope_frequencies` by YaRN (Peng et al., 2023), ends rounded as llama.cpp and transformers do.

    Pair i turns n_ctx_orig * base^(-2i / n_rot) / 2 pi times in the original context. Those that turn more than
    `fast` times keep their frequency, those that turn less than `slow` times have it divided by factor.
    """
    turns = n_ctx_orig / (2 * np.pi) * np.array([1 / fast, 1 / slow])
    ends = n_rot * np.log(turns) / (2 * np.log(base))  # the pairs that turn so often, as real numbers
    lo, hi = max(np.floor(ends[0]), 0), min(np.ceil(ends[1]), n_rot - 1)
    scaled: F64 = np.clip((np.arange(n_rot // 2) - lo) / max(hi - lo, 1e-3), 0, 1)
    plain = rope_frequencies(n_rot, base)
    frequencies: F64 = plain * (1 - scaled) + plain / factor * scaled
    return frequencies


def rope(x: F32, positions: NDArray[np.int64], frequencies: F64, interleaved: bool = True) -> F64:
    """Rotate pairs of each head by position * frequency (Su et al., 2021).

    Args:
        x: [n_tokens, n_head, head_dim]; the first 2 * len(frequencies) numbers of a head rotate.
        positions: [n_tokens].
        interleaved: pairs (2i, 2i + 1), ggml's "normal" kind; else (i, i + n_rot / 2), "NeoX".
    """
    half = len(frequencies)
    angle = positions[:, None, None] * frequencies
    cos, sin = np.cos(angle), np.sin(angle)
    out = x.astype(np.float64)
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = out[..., first].copy(), out[..., second].copy()
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return out


def attention(
    q: F32,
    k: F32,
    v: F32,
    n_past: int,
    window: int = 0,
    sinks: F32 | None = None,
    scale: float | None = None,
) -> F64:
    """Causal softmax attention; query head h reads key/value head h // (n_head / n_head_kv).

    Args:
        q: [n_tokens, n_head, head_dim]; token t stands at position n_past + t.
        k, v: [n_past + n_tokens, n_head_kv, head_dim], as the cache holds them.
        window: how many positions a token sees, its own the last; 0: all.
        sinks: [n_head], one more score for each head, that takes a share and has no value.
        scale: of the scores; None: 1 / sqrt(head_dim).

    Returns:
        float64 [n_tokens, n_head, head_dim].
    """
    group = q.shape[1] // k.shape[1]
    keys = np.repeat(k.astype(np.float64), group, 1)
    values = np.repeat(v.astype(np.float64), group, 1)
    scores = np.einsum("thd,shd->hts", q.astype(np.float64), keys)
    scores = scores / np.sqrt(q.shape[-1]) if scale is None else scores * scale
    scores = np.where(seen_positions(n_past, q.shape[0], k.shape[0], window), scores, -np.inf)
    if sinks is not None:
        column = np.broadcast_to(sinks.astype(np.float64)[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, column], -1)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out: F64 = np.einsum("hts,shd->thd", p[..., : k.shape[0]], values)
    return out


def seen_positions(n_past: int, n_tokens: int, n_keys: int, window: int) -> NDArray[np.bool_]:
    """Which positions each token sees, [n_tokens, n_keys]."""
    distance = n_past + np.arange(n_tokens)[:, None] - np.arange(n_keys)
    return (distance >= 0) & (distance < (window or n_past + n_tokens))


def relu(x: F64) -> F64:
    """max(x, 0)."""
    return np.maximum(x, 0)


def silu(x: F64) -> F64:
    """x / (1 + exp(-x))."""
    decay: F64 = np.exp(-x)
    return x / (1 + decay)


def gelu(x: F64) -> F64:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 (Hendrycks and Gimpel, 2016), as ggml has it."""
    bent: F64 = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return x * (1 + bent) / 2


def sigmoid(x: F64) -> F64:
    """1 / (1 + exp(-x))."""
    decay: F64 = np.exp(-x)
    return 1 / (1 + decay)


ACTIVATIONS = {"relu": relu, "silu": silu, "gelu": gelu}


def predictor(x: F32, fc1: F32, fc2: F32, threshold: float, quantised: bool = False) -> NDArray[np.bool_]:
    """Which neurons to look at: not (fc2 relu(fc1 x) < threshold), so NaN counts as active.

    Args:
        x: [n_tokens, n_embd], the un-normed residual. fc1: [rank, n_embd]. fc2: [n_ff, rank].
        quantised: whether fc1 and fc2 are, so that their inputs are rounded.

    Returns:
        bool [n_tokens, n_ff].
    """
    hidden = relu(mul_mat(fc1, x, quantised)).astype(np.float32)
    return ~(mul_mat(fc2, hidden, quantised) < threshold)


def gated(gate: F64, up: F64, activation: str) -> F64:
    """act(gate) * up.

    "relu_both" is relu(gate) * relu(up), as in Bamboo; "swiglu_oai" gpt-oss's own rule, g sigmoid(1.702 g) (u + 1) of
    g = min(gate, 7) and u = up kept within -7 and 7.
    """
    if activation == "swiglu_oai":
        g, u = np.minimum(gate, SWIGLU_LIMIT), np.clip(up, -SWIGLU_LIMIT, SWIGLU_LIMIT)
        return g * sigmoid(SWIGLU_ALPHA * g) * (u + 1)
    if activation == "relu_both":
        return relu(gate) * relu(up)
    return ACTIVATIONS[activation](gate) * up


def keep_large(gate: F64, least: F32 | None, activation: str, n_past: int = EXACT_POSITIONS) -> F64:
    """act(gate) where |act(gate)| is not below `least`, else 0; at the first EXACT_POSITIONS positions all of it.

    Args:
        gate: [n_tokens, n_ff]; token t stands at position n_past + t. least: [n_ff]; None: all matter.
    """
    v = ACTIVATIONS[activation](gate)
    if least is None:
        return v
    is_exact = n_past + np.arange(len(v)) < EXACT_POSITIONS
    return np.where(is_exact[:, None] | ~(np.abs(v) < least), v, 0)


def listed(h: F64, active: NDArray[np.bool_] | None) -> F64:
    """Hidden values, with 0 for the neurons that are not active.

    Args:
        h: [n_tokens, n_ff]. active: bool likewise; None means all.
    """
    return h if active is None else np.where(active, h, 0)


def sparse_gated_ffn(
    x: F32,
    gate: F32,
    up: F32,
    down_t: F32,
    active: NDArray[np.bool_] | None = None,
    quantised: bool = False,
    activation: str = "relu",
    small: tuple[F32, int] | None = None,
) -> F64:
    """Gated FFN over the active neurons: sum_i act(gate_i x) (up_i x) down_t_i.

    `down_t` rows are scaled by the unrounded product: the down product has no input vector
    to round.

    Args:
        x: [n_tokens, n_embd]. gate, up, down_t: [n_ff, n_embd].
        active: bool [n_tokens, n_ff]; None means all.
        quantised: whether gate and up are, so that x is rounded first.
        small: leaves out neurons with a small gate: `least` and `n_past` of `keep_large`.
    """
    g, u = mul_mat(gate, x, quantised), mul_mat(up, x, quantised)
    h = gated(g, u, activation) if small is None else keep_large(g, small[0], activation, small[1]) * u
    return listed(h, active) @ down_t.astype(np.float64)


def sparse_ffn(
    x: F32,
    up: F32,
    bias: F32 | None,
    down_t: F32,
    active: NDArray[np.bool_] | None = None,
    quantised: bool = False,
    activation: str = "relu",
) -> F64:
    """FFN without a gate over the active neurons: sum_i act(up_i x + bias_i) down_t_i.

    An inactive neuron adds nothing, whatever its bias.

    Args:
        x: [n_tokens, n_embd]. up, down_t: [n_ff, n_embd]. bias: [n_ff].
        active: bool [n_tokens, n_ff]; None means all.
        quantised: whether up is, so that x is rounded first.
    """
    h = ACTIVATIONS[activation](mul_mat(up, x, quantised) + (0 if bias is None else bias))
    return listed(h, active) @ down_t.astype(np.float64)


def dense_gated_ffn(
    x: F32, gate: F32, up: F32, down: F32, activation: str = "silu", quantised: bool = False
) -> F64:
    """Gated FFN, down (act(gate x) * (up x)), with both inputs rounded when the weights are quantised.

    Args:
        x: [n_tokens, n_embd]. gate, up: [n_ff, n_embd]. down: [n_embd, n_ff].
    """
    h = gated(mul_mat(gate, x, quantised), mul_mat(up, x, quantised), activation)
    return mul_mat(down, h.astype(np.float32), quantised)


def add(*vectors: F32) -> F64:
    """Their sum, of one shape or of shapes that NumPy makes one."""
    return np.asarray(sum(vector.astype(np.float64) for vector in vectors))


def scale(x: F32, factor: float) -> F32:
    """factor x, one product of float32."""
    return np.asarray(x * np.float32(factor), np.float32)


def mask_bits(active: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """A mask as bits, neuron i in bit i % 32 of word i // 32.

    Args:
        active: [n_tokens, n_ff].

    Returns:
        uint32 [n_tokens, ceil(n_ff / 32)]; the bits after the last neuron are 0.
    """
    padded = np.pad(active, ((0, 0), (0, -active.shape[1] % 32)))
    return np.packbits(padded, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def active_rows(active: NDArray[np.bool_], neurons: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """For each token the rows, ascending, whose neuron is active.

    Args:
        active: [n_tokens, n_ff].
        neurons: [n_rows], the neuron that each stored row belongs to.
    """
    return [np.flatnonzero(of_token[neurons]) for of_token in active]


def keep_some(profile: F32) -> F32:
    """Which rows of a head are wanted, by positive numbers: where none is positive, all of them are 1."""
    return profile if (profile > 0).any() else np.ones_like(profile)


def positive_rows(y: F64, profile: F32) -> F64:
    """A product's rows where the profile is positive; the others are -infinity."""
    return np.where(profile > 0, y, -np.inf)


def candidates(logits: F32, left_out: bool = False) -> NDArray[np.int32]:
    """The likeliest tokens of one row of logits: by falling logit, of equal ones by rising number, NaN last.

    Args:
        left_out: whether -infinity is what rows have that were left out, and counts as finite.

    Returns:
        int32 [CANDIDATE_WORDS]: 1 where any logit is not finite, else 0; `N_CANDIDATES` numbers, -1 where there are
        fewer tokens; their logits as float32, 0 for those.
    """
    ids = np.argsort(-logits, kind="stable")[:N_CANDIDATES]
    missing = (0, N_CANDIDATES - ids.size)
    values = np.pad(logits[ids], missing).astype(np.float32).view(np.int32)
    numbers = np.pad(ids, missing, constant_values=-1)
    is_fault = ~np.isfinite(logits) & ~(np.isneginf(logits) & left_out)
    return np.concatenate([[is_fault.any()], numbers, values]).astype(np.int32)
