"""NumPy oracles, one short function an op: the definition of what is right.

Every function takes float32 and computes in float64, so a kernel's own rounding shows as its
distance from here; those named `.._in_order` compute in float32, in the kernels' own order. Weights
arrive as float32 matrices of the numbers that their blocks hold.

Three facts are defined here and nowhere else:

* inputs that meet a quantised weight are first rounded by `quantise`: int8 in blocks of 32
  with one float32 scale;
* a neuron of a ReLU FFN counts only if its gate is positive, so `up` and `down` rows of the others
  are never read;
* the order in which a CPU kernel adds: `dots_of_blocks_in_order`, `dots_of_floats_in_order`,
  `rows_in_order` and `attention_in_order`. It is that of a row alone, of a few tokens that share the row,
  and of a tile, so a token's numbers do not depend on its company.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BLOCK = 32


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


def attention(q: F32, k: F32, v: F32, n_past: int, window: int = 0, sinks: F32 | None = None) -> F64:
    """Causal softmax attention; query head h reads key/value head h // (n_head / n_head_kv).

    Args:
        q: [n_tokens, n_head, head_dim]; token t stands at position n_past + t.
        k, v: [n_past + n_tokens, n_head_kv, head_dim], as the cache holds them.
        window: how many positions a token sees, its own the last; 0: all.
        sinks: [n_head], one more score for each head, that takes a share and has no value.

    Returns:
        float64 [n_tokens, n_head, head_dim].
    """
    group = q.shape[1] // k.shape[1]
    keys = np.repeat(k.astype(np.float64), group, 1)
    values = np.repeat(v.astype(np.float64), group, 1)
    scores = np.einsum("thd,shd->hts", q.astype(np.float64), keys) / np.sqrt(q.shape[-1])
    scores = np.where(_seen(n_past, q.shape[0], k.shape[0], window), scores, -np.inf)
    if sinks is not None:
        column = np.broadcast_to(sinks.astype(np.float64)[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, column], -1)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out: F64 = np.einsum("hts,shd->thd", p[..., : k.shape[0]], values)
    return out


def _seen(n_past: int, n_tokens: int, n_keys: int, window: int) -> NDArray[np.bool_]:
    """Which positions each token sees, [n_tokens, n_keys]."""
    distance = n_past + np.arange(n_tokens)[:, None] - np.arange(n_keys)
    return (distance >= 0) & (distance < (window or n_past + n_tokens))


TILE, PART = 64, 512  # positions whose scores are softened together; that are summed anew, then joined
LOWEST = np.finfo(np.float32).min  # the maximum of no scores
EXP2 = (
    1.0,
    0.6931470036506653,
    0.24022242426872253,
    0.05550733581185341,
    0.009671512991189957,
    0.0013264724984765053,
)


def fma(x: F32, y: F32, z: F32) -> F32:
    """x * y + z of float32 in one rounding.

    The product is exact in float64. Its sum with z is rounded to odd there, which makes the second rounding
    to float32 right (Boldo and Melquiond, 2008).
    """
    product, z = x.astype(np.float64) * y, z.astype(np.float64)
    total = product + z
    other = total - product
    error = (product - (total - other)) + (z - other)
    even = (np.ascontiguousarray(total).view(np.int64) & 1) == 0
    inexact = np.isfinite(error) & (error != 0) & even
    return np.where(inexact, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total).astype(
        np.float32
    )


def mul_add(x: F32, y: F32, z: F32) -> F32:
    """x * y + z of float32 in two roundings, as CPUs without a fused multiply-add have it."""
    return x * y + z


FMA = Callable[[F32, F32, F32], F32]


def folded(chains: F32) -> F32:
    """The sum over the first axis, a power of two of chains: its second half added to its first, and so on."""
    while len(chains) > 1:
        half = len(chains) // 2
        chains = chains[:half] + chains[half:]
    total: F32 = chains[0]
    return total


BLOCK_CHAINS = 16


def dots_of_blocks_in_order(
    numbers: NDArray[np.int32],
    scales: F32,
    minima: F32 | None,
    x: F32,
    fma: FMA = fma,
) -> F32:
    """w . x of quantised rows, by blocks of 32 numbers scale * q + minimum.

    A block's sum of q times the rounded input is an integer and exact. Block c adds to chain c mod 16

        a = fma(float(sum), scale * d, a)       and, with a minimum,
        a = fma(minimum, d * float(sum of x), a),

    d being the scale of the input; at last the chains are folded. A K type's parts of 32 count as
    blocks; where its parts of 16 have integer scales of their own (Q6_K), q has been multiplied by them.

    Args:
        numbers: [n_rows, n_blocks, 32]. scales, minima: [n_rows, n_blocks]. x: [k].

    Returns:
        float32 [n_rows].
    """
    q, d = quantise(x)
    blocks = q.reshape(-1, BLOCK).astype(np.int32)
    sums = (numbers * blocks).sum(-1, dtype=np.int32).astype(np.float32)
    of_x = d * blocks.sum(-1, dtype=np.int32).astype(np.float32)
    chains = np.zeros((BLOCK_CHAINS, len(numbers)), np.float32)
    for c in range(len(blocks)):
        chain = chains[c % BLOCK_CHAINS]
        chain[:] = fma(sums[:, c], scales[:, c] * d[c], chain)
        if minima is not None:
            chain[:] = fma(minima[:, c], of_x[c : c + 1], chain)
    return folded(chains)


FLOAT_STEP, FLOAT_CHAINS = 16, 2


def dots_of_floats_in_order(w: F32, x: F32, fma: FMA = fma) -> F32:
    """w . x of float rows: number i adds to chain i mod 32 by fma; the last numbers that fill no 16 at the end.

    Chains i and i + 16 are added first, then the 16 folded, then the last numbers one by one, by fma too.

    Args:
        w: [n_rows, k]. x: [k].

    Returns:
        float32 [n_rows].
    """
    whole = len(x) // FLOAT_STEP * FLOAT_STEP
    chains = np.zeros((FLOAT_CHAINS * FLOAT_STEP, len(w)), np.float32)
    for i in range(whole):
        chain = chains[i % len(chains)]
        chain[:] = fma(w[:, i], x[i : i + 1], chain)
    total = folded(chains)
    for i in range(whole, len(x)):
        total = fma(w[:, i], x[i : i + 1], total)
    return total


def rows_in_order(coefficients: F32, w: F32, n_pieces: int, fma: FMA = fma) -> F32:
    """coefficients . w of an FFN's down rows: in ascending order by fma, in pieces of the neurons.

    Piece i has rows n_rows * i // n_pieces to n_rows * (i + 1) // n_pieces, whichever of them are
    listed; each starts from 0, and then the pieces are added in order. A zero coefficient adds nothing.

    Args:
        coefficients: [n_rows]. w: [n_rows, k].

    Returns:
        float32 [k].
    """
    total = np.zeros(w.shape[1], np.float32)
    for i in range(n_pieces):
        acc = np.zeros(w.shape[1], np.float32)
        for r in range(len(w) * i // n_pieces, len(w) * (i + 1) // n_pieces):
            acc = fma(coefficients[r : r + 1], w[r], acc) if coefficients[r] != 0 else acc
        total = total + acc if i else acc
    return total


def exp2(x: F32, fma: FMA = fma) -> F32:
    """2^x of float32 x <= 0 as kernels compute it: a polynomial of the fraction; 2^-125 is the least."""
    x = np.maximum(x, np.float32(-125))
    power = np.rint(x)
    p = np.full_like(x, EXP2[-1])
    for coefficient in EXP2[-2::-1]:
        p = fma(p, x - power, np.full_like(x, coefficient))
    return np.ldexp(p, power.astype(np.int32))


@dataclass
class _Softmax:
    """What rows have summed so far: maximum [n], totals of 16 lanes [n, 16], sums of values [n, head_dim]."""

    top: F32
    total: F32
    sums: F32

    @classmethod
    def of_nothing(cls, n: int, head_dim: int) -> "_Softmax":
        zeros = np.zeros((n, 16), np.float32), np.zeros((n, head_dim), np.float32)
        return cls(np.full((n, 1), LOWEST, np.float32), *zeros)

    def take(self, other: "_Softmax", seen: NDArray[np.bool_]) -> None:
        """The other's numbers, in the rows that see anything: seen [n, positions]."""
        rows = np.flatnonzero(seen.any(1))
        for mine, new in ((self.top, other.top), (self.total, other.total), (self.sums, other.sums)):
            mine[rows] = new[rows]


def attention_in_order(
    q: F32,
    k: F32,
    v: F32,
    n_past: int,
    window: int = 0,
    sinks: F32 | None = None,
    fma: FMA = fma,
) -> F32:
    """`attention` in float32, in the order of sums that the CPU's kernels have: their very bits.

    Nothing in it depends on how many tokens pass together. A query times 1 / (sqrt(head_dim) ln 2) makes
    scores for powers of two: chains of fma along the head. Tiles of 64 positions soften together: weight j
    goes to lane j % 16 of the total, and the sums of values are chains of fma over the positions that the row
    sees, in order. Every 512 positions the sums start anew; parts with anything to see are joined in order.
    """
    n_tokens, n_head, head_dim = q.shape
    n_keys, group = k.shape[0], n_head // k.shape[1]
    factor = np.float32(head_dim**-0.5 * (1 / math.log(2)))
    x = (q * factor).reshape(-1, head_dim)  # rows: (token, head)
    padding = ((0, -n_keys % TILE), (0, 0), (0, 0))
    # [positions, rows, head_dim]
    keys, values = (np.tile(np.repeat(np.pad(a, padding), group, 1), (1, n_tokens, 1)) for a in (k, v))
    seen = np.repeat(_seen(n_past, n_tokens, len(keys), window), n_head, 0)
    whole = _Softmax.of_nothing(len(x), head_dim)
    for part in range(0, n_keys, PART):
        one = _Softmax.of_nothing(len(x), head_dim)
        for first in range(part, min(part + PART, n_keys), TILE):
            here = slice(first, first + TILE)
            _meet_tile(one, x, keys[here], values[here], seen[:, here], fma)
        whole.take(_joined(whole, one, fma), seen[:, part : part + PART])
    total = whole.total
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    if sinks is not None:
        score = (np.tile(sinks, n_tokens).astype(np.float64) * (1 / math.log(2))).astype(np.float32)[:, None]
        top = np.maximum(whole.top, score)
        scale = exp2(whole.top - top, fma)
        total, whole.sums = fma(total, scale, exp2(score - top, fma)), whole.sums * scale
    return (whole.sums / total).reshape(q.shape)


def _meet_tile(state: _Softmax, x: F32, keys: F32, values: F32, seen: NDArray[np.bool_], fma: FMA) -> None:
    """Rows x [n, head_dim] meet 64 positions [64, n, head_dim]; seen [n, 64]."""
    scores = np.zeros(seen.shape, np.float32)
    for d in range(x.shape[1]):
        scores = fma(x[:, d : d + 1], keys[:, :, d].T, scores)
    scores = np.where(seen, scores, LOWEST)
    top = np.maximum(state.top, scores.max(1, keepdims=True))
    factor, weights = exp2(state.top - top, fma), np.where(seen, exp2(scores - top, fma), np.float32(0))
    total = fma(state.total, factor, weights[:, :16])
    for lane in range(16, TILE, 16):
        total = total + weights[:, lane : lane + 16]
    sums = state.sums * factor
    for j in range(TILE):
        sums = np.where(seen[:, j : j + 1], fma(weights[:, j : j + 1], values[j], sums), sums)
    state.take(_Softmax(top, total, sums), seen)


def _joined(a: _Softmax, b: _Softmax, fma: FMA) -> _Softmax:
    top = np.maximum(a.top, b.top)
    f, g = exp2(a.top - top, fma), exp2(b.top - top, fma)
    return _Softmax(top, fma(b.total, g, a.total * f), fma(b.sums, g, a.sums * f))


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
    """act(gate) * up; "relu_both" is relu(gate) * relu(up), as in Bamboo."""
    if activation == "relu_both":
        return relu(gate) * relu(up)
    return ACTIVATIONS[activation](gate) * up


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
) -> F64:
    """Gated FFN over the active neurons: sum_i act(gate_i x) (up_i x) down_t_i.

    `down_t` rows are scaled by the unrounded product: the down product has no input vector
    to round.

    Args:
        x: [n_tokens, n_embd]. gate, up, down_t: [n_ff, n_embd].
        active: bool [n_tokens, n_ff]; None means all.
        quantised: whether gate and up are, so that x is rounded first.
    """
    h = gated(mul_mat(gate, x, quantised), mul_mat(up, x, quantised), activation)
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
