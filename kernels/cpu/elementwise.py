"""Ops without weights to multiply by: norm, RoPE, sums and activations, on float32 at addresses."""

import math

from hotcold.kernels.cpu import operations
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.operations import load16, load_f32, store16, store_f32
from hotcold.kernels.cpu.program import (
    GELU_ACTIVATION,
    RELU_BOTH_ACTIVATION,
    SILU_ACTIVATION,
    SWIGLU_OAI_ACTIVATION,
)

SWIGLU_LIMIT, SWIGLU_ALPHA = 7.0, 1.702  # of gpt-oss


@compiled
def rms_norm(x: int, weight: int, n: int, eps: float, y: int) -> None:
    """y = x / sqrt(mean(x^2) + eps) * weight."""
    sums0 = operations.zero()
    sums1 = operations.zero()
    whole = n & ~31
    for i in range(0, 4 * whole, 128):
        a, b = load16(x + i), load16(x + i + 64)
        sums0 = operations.fma16(a, a, sums0)
        sums1 = operations.fma16(b, b, sums1)
    total = float(operations.sum16(operations.add16(sums0, sums1)))
    for i in range(whole, n):
        total += load_f32(x + 4 * i) * load_f32(x + 4 * i)
    factor = operations.to_f32(1.0 / math.sqrt(total / n + eps))
    factors = operations.splat16(factor)
    whole = n & ~15
    for i in range(0, 4 * whole, 64):
        store16(y + i, operations.mul16(operations.mul16(load16(x + i), factors), load16(weight + i)))
    for i in range(4 * whole, 4 * n, 4):
        store_f32(y + i, load_f32(x + i) * factor * load_f32(weight + i))


@compiled
def layer_norm(x: int, weight: int, bias: int, n: int, eps: float, y: int) -> None:
    """y = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias."""
    whole = 4 * (n & ~15)
    sums, squares = operations.zero(), operations.zero()
    for i in range(0, whole, 64):
        sums = operations.add16(sums, load16(x + i))
    total = float(operations.sum16(sums))
    for i in range(whole, 4 * n, 4):
        total += load_f32(x + i)
    mean = operations.to_f32(total / n)
    minus_means = operations.splat16(-mean)
    for i in range(0, whole, 64):
        d = operations.add16(load16(x + i), minus_means)
        squares = operations.fma16(d, d, squares)
    variance = float(operations.sum16(squares))
    for i in range(whole, 4 * n, 4):
        variance += (load_f32(x + i) - mean) * (load_f32(x + i) - mean)
    factor = operations.to_f32(1.0 / math.sqrt(variance / n + eps))
    factors = operations.splat16(factor)
    for i in range(0, whole, 64):
        d = operations.mul16(operations.add16(load16(x + i), minus_means), factors)
        store16(y + i, operations.fma16(d, load16(weight + i), load16(bias + i)))
    for i in range(whole, 4 * n, 4):
        store_f32(y + i, (load_f32(x + i) - mean) * factor * load_f32(weight + i) + load_f32(bias + i))


@compiled
def add(x: int, z: int, n: int, y: int) -> None:
    """y = x + z."""
    whole = n & ~15
    for i in range(0, 4 * whole, 64):
        store16(y + i, operations.add16(load16(x + i), load16(z + i)))
    for i in range(4 * whole, 4 * n, 4):
        store_f32(y + i, load_f32(x + i) + load_f32(z + i))


@compiled
def scale(x: int, n: int, factor: float, y: int) -> None:
    """y = factor x."""
    factor = operations.to_f32(factor)
    factors, whole = operations.splat16(factor), n & ~15
    for i in range(0, 4 * whole, 64):
        store16(y + i, operations.mul16(load16(x + i), factors))
    for i in range(4 * whole, 4 * n, 4):
        store_f32(y + i, load_f32(x + i) * factor)


@compiled
def relu(x: int, n: int, y: int) -> None:
    """y = max(x, 0); NaN gives 0."""
    whole = n & ~15
    for i in range(0, 4 * whole, 64):
        store16(y + i, operations.relu16(load16(x + i)))
    for i in range(4 * whole, 4 * n, 4):
        store_f32(y + i, operations.first16(operations.relu16(operations.splat16(load_f32(x + i)))))


@compiled
def gelu(x: int, n: int, y: int) -> None:
    """y = gelu(x) by its tanh formula (Hendrycks and Gimpel, 2016)."""
    whole = n & ~15
    for i in range(0, 4 * whole, 64):
        store16(y + i, operations.gelu16(load16(x + i)))
    for i in range(4 * whole, 4 * n, 4):
        store_f32(y + i, operations.first16(operations.gelu16(operations.splat16(load_f32(x + i)))))


@compiled
def _gated(x, z, activation: int):  # type: ignore[no-untyped-def]
    """act(x) * z in 16 lanes."""
    if activation == SWIGLU_OAI_ACTIVATION:
        return _swiglu_oai(x, z)  # type: ignore[no-untyped-call]
    if activation == GELU_ACTIVATION:
        return operations.mul16(operations.gelu16(x), z)
    v = operations.silu16(x) if activation == SILU_ACTIVATION else operations.relu16(x)
    return operations.mul16(v, operations.relu16(z) if activation == RELU_BOTH_ACTIVATION else z)


@compiled
def _swiglu_oai(x, z):  # type: ignore[no-untyped-def]
    """g sigmoid(1.702 g) (u + 1) of g = min(x, 7) and u = z kept within -7 and 7, by silu(1.702 g) / 1.702."""
    limit = operations.splat16(operations.to_f32(SWIGLU_LIMIT))
    alpha, inverse = (
        operations.splat16(operations.to_f32(SWIGLU_ALPHA)),
        operations.splat16(operations.to_f32(1 / SWIGLU_ALPHA)),
    )
    g = operations.min16(x, limit)
    u = operations.max16(
        operations.splat16(operations.to_f32(-SWIGLU_LIMIT)), operations.min16(z, limit)
    )  # a NaN stays
    v = operations.mul16(operations.silu16(operations.mul16(g, alpha)), inverse)
    return operations.mul16(v, operations.add16(u, operations.splat16(operations.to_f32(1.0))))


@compiled
def mul_sigmoid(x: int, z: float, n: int, y: int) -> None:
    """y = x sigmoid(z)."""
    factor = operations.to_f32(1 / (1 + math.exp(-float(z))))
    for i in range(0, 4 * n, 4):
        store_f32(y + i, load_f32(x + i) * factor)


@compiled
def act_mul(x: int, z: int, n: int, activation: int, y: int) -> None:
    """y = act(x) * z; the same arithmetic for the tail, one lane of a vector at a time."""
    whole = n & ~15
    for i in range(0, 4 * whole, 64):
        store16(y + i, _gated(load16(x + i), load16(z + i), activation))
    for i in range(4 * whole, 4 * n, 4):
        v = _gated(operations.splat16(load_f32(x + i)), operations.splat16(load_f32(z + i)), activation)
        store_f32(y + i, operations.first16(v))


@compiled
def _large(x, least, activation: int):  # type: ignore[no-untyped-def]
    """act(x) in 16 lanes where it matters, silu or gelu; else 0."""
    v = operations.gelu16(x) if activation == GELU_ACTIVATION else operations.silu16(x)
    return operations.keep_large16(v, least)


@compiled
def large(x: float, least: float, activation: int) -> float:
    """`keep_large` of one number."""
    v = _large(operations.splat16(x), operations.splat16(least), activation)
    return operations.first16(v)


@compiled
def keep_large(x: int, least: int, n: int, activation: int, y: int) -> None:
    """y = act(x) where |act(x)| is not below `least`, else 0; with `least` 0 all are kept."""
    zeros, whole = operations.zero(), n & ~15
    for i in range(0, 4 * whole, 64):
        store16(y + i, _large(load16(x + i), load16(least + i) if least else zeros, activation))
    for i in range(4 * whole, 4 * n, 4):
        store_f32(
            y + i,
            large(load_f32(x + i), load_f32(least + i) if least else operations.to_f32(0.0), activation),
        )


@compiled
def rope(x: int, table: int, n_head: int, head_dim: int, n_pairs: int, interleaved: int, y: int) -> None:
    """Rotate the first 2 n_pairs numbers of each head; the table holds (cos, sin) for each pair."""
    step, distance = (8, 4) if interleaved else (4, 4 * n_pairs)
    for head in range(n_head):
        at, to = x + 4 * head * head_dim, y + 4 * head * head_dim
        for i in range(n_pairs):
            cos, sin = load_f32(table + 8 * i), load_f32(table + 8 * i + 4)
            a, b = load_f32(at + step * i), load_f32(at + step * i + distance)
            store_f32(to + step * i, a * cos - b * sin)
            store_f32(to + step * i + distance, a * sin + b * cos)
        for i in range(4 * 2 * n_pairs, 4 * head_dim, 4):
            store_f32(to + i, load_f32(at + i))


@compiled
def reduce_rows(x: int, stride: int, n_parts: int, first: int, last: int, y: int) -> None:
    """y[first:last] = the sum of n_parts vectors, in order; first a multiple of 16."""
    whole = first + ((last - first) & ~15)
    for i in range(4 * first, 4 * whole, 64):
        total = load16(x + i)
        for part in range(1, n_parts):
            total = operations.add16(total, load16(x + part * stride + i))
        store16(y + i, total)
    for i in range(4 * whole, 4 * last, 4):
        rest = load_f32(x + i)
        for part in range(1, n_parts):
            rest += load_f32(x + part * stride + i)
        store_f32(y + i, rest)


@compiled
def clear(y: int, n: int) -> None:
    """y = 0."""
    whole = n & ~15
    for i in range(0, 4 * whole, 64):
        store16(y + i, operations.zero())
    for i in range(4 * whole, 4 * n, 4):
        store_f32(y + i, operations.to_f32(0.0))


@compiled
def copy(x: int, n: int, y: int) -> None:
    """y = x."""
    whole = n & ~15
    for i in range(0, 4 * whole, 64):
        store16(y + i, load16(x + i))
    for i in range(4 * whole, 4 * n, 4):
        store_f32(y + i, load_f32(x + i))


@compiled
def keep_some(x: int, n: int) -> None:
    """Let all of n numbers be 1 where none is positive."""
    for i in range(n):
        if load_f32(x + 4 * i) > 0:
            return
    for i in range(n):
        store_f32(x + 4 * i, operations.to_f32(1.0))
