"""Every kernel of the device once, at the sizes of a model: what it takes, and what its oracle says.

Weights are random. Of a large result a sample of rows is worked out by the oracle, the rest is only timed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gpu_bed import Array, Bed, Weights
from numpy.typing import NDArray

from hotcold.kernels import ref
from hotcold.kernels.cuda import attention as attention_sizes
from hotcold.kernels.cuda.add import HAS_OTHER, HAS_RESIDUAL, add, merge
from hotcold.kernels.cuda.compact import compact
from hotcold.kernels.cuda.dense_gated_ffn import gated_ffn_hidden
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Prepared
from hotcold.kernels.cuda.hidden_masked import hidden_masked, hidden_masked_gated
from hotcold.kernels.cuda.layer_norm import layer_norm, layer_norm_quantised
from hotcold.kernels.cuda.matmul import matmul
from hotcold.kernels.cuda.matmul_transposed import matmul_transposed
from hotcold.kernels.cuda.matvec import matvec, matvec_mask
from hotcold.kernels.cuda.matvec3 import matvec3
from hotcold.kernels.cuda.quantise import quantise
from hotcold.kernels.cuda.rms_norm import rms_norm, rms_norm_quantised
from hotcold.kernels.cuda.rope import rope_kv_store
from hotcold.kernels.cuda.sparse_ffn import sparse_ffn
from hotcold.kernels.cuda.sparse_gated_ffn import sparse_gated_ffn
from hotcold.kernels.cuda.sum_groups import sum_groups
from hotcold.kernels.cuda.work import Work
from hotcold.kernels.formats import (
    ACTIVATIONS,
    KV_TYPES,
    LONGEST_AT_ONCE,
    attention_sums_bytes,
    cos_sin_table,
    is_split,
    mask_words,
    n_groups,
    n_parts,
)
from hotcold.kernels.weight_table import QUANTISED, WEIGHT_TYPES

FAITHFUL = 1e-5
"""Largest difference from the oracle, relative to its largest number."""
EXACT = 0.0
ONE_STEP = 1 / 127
"""A number that lies half way between two roundings may go either way."""
SAMPLE = 256
LISTED = 0.1
"""Share of neurons that masks list."""
EPS = 1e-5


@dataclass(frozen=True)
class Sizes:
    """Of a model, and of a batch of its tokens."""

    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_tokens: int
    n_ctx: int

    @property
    def head_dim(self) -> int:
        """Numbers a head."""
        return self.n_embd // self.n_head

    @property
    def heads(self) -> tuple[int, int, int]:
        """As kernels take them."""
        return self.n_head, self.n_head_kv, self.head_dim


@dataclass(frozen=True)
class Case:
    """One kernel at one size.

    Attributes:
        launches: the same work on different copies of the weights. The first is checked.
        got, want: the result, after the first launch, and the oracle's. bound: of the difference.
    """

    size: str
    work: Work
    launches: Sequence[Prepared]
    got: Callable[[], Array]
    want: Callable[[], Array]
    bound: float = FAITHFUL


def normal(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    """Random numbers."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def sample(n: int) -> NDArray[np.int64]:
    """Some of n rows, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).astype(np.int64))


def one(
    bed: Bed,
    size: str,
    work: Work,
    arguments: Sequence[Any],
    out: Buffer,
    want: Callable[[], Array],
    bound: float = FAITHFUL,
) -> Case:
    """A kernel without weights, whose result is one buffer."""
    return Case(size, work, [work.prepare(bed.device, arguments)], partial(bed.get, out), want, bound)


def joined(bed: Bed, buffers: Sequence[Buffer]) -> Array:
    """Several results in a row."""
    return np.concatenate([bed.get(buffer).ravel().astype(np.float64) for buffer in buffers])


# Kernels without weights


def vector_cases(bed: Bed, sizes: Sizes) -> Iterator[Case]:
    """Norms, roundings and sums of one token."""
    n, text = sizes.n_embd, f"{sizes.n_embd}"
    x, w, b = normal(1, n), normal(n, seed=2), normal(n, seed=3)
    given, y = [bed.put(array) for array in (x, w, b)], bed.empty((1, n), "f4")
    rms, layer = partial(ref.rms_norm, x, w, EPS), partial(ref.layer_norm, x, w, b, EPS)
    yield one(bed, text, rms_norm(1, n), (*given[:2], y, n, EPS), y, rms)
    yield one(bed, text, layer_norm(1, n), (*given, y, n, EPS), y, layer)
    out = bed.rounded(n)
    for work, operands, oracle in (
        (rms_norm_quantised(1, n), given[:2], rms),
        (layer_norm_quantised(1, n), given, layer),
    ):
        launch = work.prepare(bed.device, (*operands, *out, n, EPS))
        want = partial(lambda exact: ref.rounded(exact().astype(np.float32)).ravel(), oracle)
        yield Case(text, work, [launch], partial(_unrounded, bed, out), want, ONE_STEP)
    work = quantise(1, n)
    launch = work.prepare(bed.device, (given[0], *out, n // 32))
    yield Case(text, work, [launch], partial(joined, bed, out), partial(_quantised, x), EXACT)
    yield one(bed, text, add(n), (given[0], given[2], y, n), y, lambda: x + b, EXACT)
    flags, others = HAS_OTHER | HAS_RESIDUAL, (normal(1, n, seed=4), normal(1, n, seed=5))
    sent = [bed.put(other) for other in others]
    yield one(
        bed,
        text,
        merge(1, n, flags),
        (given[0], y, *sent, y, n, flags),
        y,
        lambda: (x + others[0]) + others[1],
        EXACT,
    )
    groups = n_groups(sizes.n_ff)
    sums_of = normal(1, groups, n, seed=6)
    arguments = (bed.put(sums_of), y, y, y, y, groups, n, 0)
    work = sum_groups(1, sizes.n_ff, n)
    yield one(bed, f"{groups} x {n}", work, arguments, y, lambda: sums_of.astype("f8").sum(1))


def _unrounded(bed: Bed, out: Sequence[Buffer]) -> Array:
    q, d = bed.get(out[0]).reshape(-1, 32), bed.get(out[1])
    return np.asarray((q * d[:, None].astype(np.float64)).ravel())


def _quantised(x: NDArray[np.float32]) -> Array:
    q, d = ref.quantise(x)
    sums = q.reshape(-1, 32).sum(1, dtype=np.int32)
    return np.concatenate([part.ravel().astype(np.float64) for part in (q, d, sums)])


def mask_cases(bed: Bed, sizes: Sizes) -> Iterator[Case]:
    """The list of a token's active rows, and a batch's hidden values."""
    n_ff, tokens = sizes.n_ff, sizes.n_tokens
    words = mask_words(n_ff)
    active = np.random.default_rng(3).random((tokens, n_ff)) < LISTED
    bits = np.zeros((tokens, words), np.uint32)
    bits[:, : -(-n_ff // 32)] = ref.mask_bits(active)
    mask, neurons = bed.put(bits), bed.put(np.arange(n_ff, dtype=np.int32))
    ids, count, total = bed.put(np.full(n_ff, -1, np.int32)), bed.empty(1, "i4"), bed.empty(1, "u4")
    work, listed = compact(1, n_ff, n_ff, int(active[0].sum())), np.flatnonzero(active[0])
    launch = work.prepare(bed.device, (mask, neurons, ids, count, total, n_ff, words))
    want = np.concatenate([listed, np.full(n_ff - len(listed), -1), [len(listed)]])
    yield Case(f"{n_ff}", work, [launch], partial(joined, bed, (ids, count)), lambda: want, EXACT)

    text, gate, up = f"{tokens} x {n_ff}", normal(tokens, n_ff, seed=4), normal(tokens, n_ff, seed=5)
    bias, relu = normal(n_ff, seed=6), ACTIVATIONS["relu"]
    given, h = (bed.put(gate), bed.put(up)), bed.empty(gate.shape, "f4")
    wide = gate.astype(np.float64), up.astype(np.float64)
    n_listed, n_open = int(active.sum()), int((active & (gate > 0)).sum())
    work, numbers = hidden_masked_gated(tokens, n_ff, n_ff, True, n_listed, n_open), (h, n_ff, words, 1)
    relued = lambda: ref.listed(ref.gated(*wide, "relu"), active)
    yield one(bed, text, work, (*given, mask, neurons, *numbers, relu), h, relued)
    work = hidden_masked(tokens, n_ff, n_ff, True, True, n_listed)
    biased = lambda: ref.listed(ref.relu(wide[1] + bias), active)
    yield one(bed, text, work, (given[1], bed.put(bias), mask, neurons, *numbers, 1, relu), h, biased)


def attention_cases(bed: Bed, sizes: Sizes, kv_type: str) -> Iterator[Case]:
    """Rotation and store, and attention: of a token, of a batch, and in parts."""
    n_head, n_kv, dim = sizes.heads
    n_ctx, shape = sizes.n_ctx, (n_kv, sizes.n_ctx, dim)
    stored = [ref.cached(kv_type, normal(*shape, seed=seed)) for seed in (2, 3)]
    keys, values = (ref.cache_numbers(each, shape) for each in stored)
    n_copies = bed.copies(2 * stored[0].nbytes)
    caches = [
        (bed.empty(stored[0].shape, stored[0].dtype), bed.empty(stored[1].shape, stored[1].dtype))
        for _ in range(n_copies)
    ]
    for i in (0, 1):
        bed.copy(stored[i], [cache[i] for cache in caches])
    yield _rope_case(bed, sizes, kv_type)
    at_once = min(LONGEST_AT_ONCE, n_ctx)
    for tokens, n_keys in ((1, at_once), (sizes.n_tokens, at_once)):
        q = normal(tokens, n_head, dim)
        positions = np.arange(n_keys - tokens, n_keys, dtype=np.int32)
        given, y = (bed.put(q), bed.put(positions)), bed.empty(q.shape, "f4")
        work = attention_sizes.attention(kv_type, tokens, *sizes.heads, n_keys)
        launches = [
            work.prepare(bed.device, (given[0], *cache, given[1], y, tokens, *sizes.heads, n_ctx))
            for cache in caches
        ]
        want = partial(_attention, q, keys, values, n_keys)
        yield Case(f"{tokens} at {n_keys}", work, launches, partial(bed.get, y), want)
    if is_split(1, n_ctx):
        yield from _split_attention(bed, sizes, kv_type, keys, values, caches)


def _attention(q: NDArray[np.float32], keys: Array, values: Array, n_keys: int) -> NDArray[np.float64]:
    k, v = (cache[:, :n_keys].swapaxes(0, 1).astype(np.float32) for cache in (keys, values))
    return ref.attention(q, k, v, n_keys - len(q))


def _split_attention(
    bed: Bed,
    sizes: Sizes,
    kv_type: str,
    keys: Array,
    values: Array,
    caches: Sequence[tuple[Buffer, Buffer]],
) -> Iterator[Case]:
    n_head, dim = sizes.n_head, sizes.head_dim
    n_ctx, parts = sizes.n_ctx, n_parts(sizes.n_ctx)
    q, position = normal(1, n_head, dim), bed.put(np.array([n_ctx - 1], np.int32))
    given, y = bed.put(q), bed.empty(q.shape, "f4")
    sums = bed.empty(attention_sums_bytes(1, n_head, dim, n_ctx) // 4, "f4")
    part = attention_sizes.attention_part(kv_type, *sizes.heads, n_ctx, n_ctx)
    join = attention_sizes.attention_join(n_head, dim, n_ctx, n_ctx)
    launches = [
        part.prepare(bed.device, (given, *cache, position, sums, *sizes.heads, n_ctx, parts))
        for cache in caches
    ]
    joins = [join.prepare(bed.device, (sums, position, y, n_head, dim, parts))]

    def both() -> Array:
        bed.device.run(joins[0], bed.device.compute)
        return bed.get(y)

    want = partial(_attention, q, keys, values, n_ctx)
    yield Case(f"1 at {n_ctx}", part, launches, both, want)
    if kv_type == "f16":  # it reads no cache
        yield Case(f"1 at {n_ctx}", join, joins, partial(bed.get, y), want)


def _rope_case(bed: Bed, sizes: Sizes, kv_type: str) -> Case:
    n_head, n_kv, dim = sizes.heads
    shape = n_kv, sizes.n_ctx, dim
    empty = ref.cached(kv_type, np.zeros(shape, np.float32))
    n_ctx, at, frequencies = sizes.n_ctx, sizes.n_ctx - 1, ref.rope_frequencies(dim, 10000.0)
    q, k, v = (normal(1, n, dim, seed=n + i) for i, n in enumerate((n_head, n_kv, n_kv)))
    given = [
        bed.put(array) for array in (q, k, v, cos_sin_table(n_ctx, frequencies), np.array([at], np.int32))
    ]
    q_out, keys, values = bed.empty(q.shape, "f4"), *(bed.empty(empty.shape, empty.dtype) for _ in range(2))
    work = rope_kv_store(kv_type, 1, n_head, n_kv, dim, dim)
    arguments = (*given, q_out, keys, values, 1, n_head, n_kv, dim, dim // 2, 1, n_ctx)

    def got() -> Array:
        stored = [ref.cache_numbers(bed.get(cache), shape)[:, at].ravel() for cache in (keys, values)]
        return np.concatenate([bed.get(q_out).ravel(), *stored])

    def want() -> Array:
        turned = [ref.rope(x, np.array([at]), frequencies) for x in (q, k)]
        return np.concatenate([turned[0].ravel(), turned[1].ravel(), v.ravel()])

    # half a unit of the last place of F16; half a step of 127 and the rounding of its scale
    bound = {"f32": FAITHFUL, "f16": 2.0**-11, "q8_0": 0.5 / 127 + 2.0**-11}[kv_type]
    return Case(f"{n_head} heads of {dim}", work, [work.prepare(bed.device, arguments)], got, want, bound)


# Kernels with weights


def product_cases(bed: Bed, sizes: Sizes, weights: Weights) -> Iterator[Case]:
    """One input times matrices, of a token and of a batch."""
    kind, n_rows, n, rows = weights.kind, weights.n_rows, weights.n, sample(weights.n_rows)
    text, quantised = f"{n_rows} x {n}", kind in QUANTISED
    x = normal(1, n)
    given, y = bed.inputs(kind, x), bed.empty((1, n_rows), "f4")
    work = matvec(kind, 1, n_rows, n)
    launches = [
        work.prepare(bed.device, (*weights.planes(which, copy), *given, y, y, y, n_rows, n, 0))
        for copy in range(weights.n_copies)
        for which in range(3)
    ]

    def product(inputs: NDArray[np.float32]) -> Array:
        return ref.mul_mat(weights.values(0, rows), inputs, quantised)

    yield Case(text, work, launches, lambda: bed.get(y)[:, rows], partial(product, x))
    yield _mask_case(bed, weights, given, ref.mul_mat(weights.values(0, np.arange(n_rows)), x, quantised))
    batch = normal(sizes.n_tokens, n, seed=2)
    inputs, ys = bed.inputs(kind, batch), bed.empty((sizes.n_tokens, n_rows), "f4")
    work = matmul(kind, sizes.n_tokens, n_rows, n)
    launches = [
        work.prepare(
            bed.device,
            (*weights.planes(0, copy), *inputs, ys, ys, ys, n_rows, n, 0, sizes.n_tokens),
        )
        for copy in range(weights.n_copies)
    ]
    yield Case(
        f"{text} by {sizes.n_tokens}", work, launches, lambda: bed.get(ys)[:, rows], partial(product, batch)
    )


def _mask_case(bed: Bed, weights: Weights, given: Sequence[Buffer], y: Array) -> Case:
    """A predictor's second matrix; the threshold lies where no product is near."""
    kind, n_rows, n = weights.kind, weights.n_rows, weights.n
    words, ascending = mask_words(n_rows), np.sort(y.ravel())
    some = ascending[int(0.85 * n_rows) : int(0.95 * n_rows) + 2]
    at = int(np.diff(some).argmax())
    threshold = float(some[at] + some[at + 1]) / 2
    work, mask = matvec_mask(kind, 1, n_rows, n), bed.empty(words, "u4")
    launches = [
        work.prepare(bed.device, (*weights.planes(0, copy), *given, mask, n_rows, n, threshold))
        for copy in range(weights.n_copies)
    ]

    def want() -> Array:
        listed = np.pad(~(y < threshold), ((0, 0), (0, 32 * words - n_rows)))
        return np.asarray(ref.mask_bits(listed)[0])

    return Case(f"{n_rows} x {n}", work, launches, partial(bed.get, mask), want, EXACT)


def ffn_cases(bed: Bed, sizes: Sizes, weights: Weights) -> Iterator[Case]:
    """Several matrices in one launch, of a token."""
    kind, n_rows, n, quantised = weights.kind, weights.n_rows, weights.n, weights.kind in QUANTISED
    x = normal(1, n)
    given = bed.inputs(kind, x)
    yield _three_case(bed, sizes, weights, given, x)
    rows, h = sample(n_rows), bed.empty((1, n_rows), "f4")
    work = gated_ffn_hidden((kind, kind), 1, n_rows, n)
    launches = [
        work.prepare(
            bed.device,
            (*weights.planes(0, copy), *weights.planes(1, copy), *given, h, n_rows, n, ACTIVATIONS["silu"]),
        )
        for copy in range(weights.n_copies)
    ]

    def hidden_values() -> Array:
        gate, up = (ref.mul_mat(weights.values(which, rows), x, quantised) for which in (0, 1))
        return ref.gated(gate, up, "silu")

    yield Case(f"2 x {n_rows} x {n}", work, launches, lambda: bed.get(h)[:, rows], hidden_values)
    yield from _sparse_cases(bed, weights, given, x)
    yield _down_case(bed, sizes, weights)


def _down_case(bed: Bed, sizes: Sizes, weights: Weights) -> Case:
    """A batch's hidden values times a down matrix with a row a neuron."""
    kind, n_rows, n, tokens = weights.kind, weights.n_rows, weights.n, sizes.n_tokens
    h, y = normal(tokens, n_rows, seed=9), bed.empty((tokens, n), "f4")
    given, work = bed.put(h), matmul_transposed(kind, tokens, n_rows, n)
    launches = [
        work.prepare(bed.device, (*weights.planes(2, copy), given, y, n_rows, n, tokens))
        for copy in range(weights.n_copies)
    ]

    def want() -> Array:
        return np.asarray(h.astype(np.float64) @ weights.values(2, np.arange(n_rows)).astype(np.float64))

    return Case(f"{tokens} by {n_rows} x {n}", work, launches, partial(bed.get, y), want)


def _three_case(
    bed: Bed, sizes: Sizes, weights: Weights, given: Sequence[Buffer], x: NDArray[np.float32]
) -> Case:
    kind, n, n_kv = weights.kind, weights.n, sizes.n_head_kv * sizes.head_dim
    counts = (n, n_kv, n_kv)
    outs = [bed.empty(count, "f4") for count in counts]
    work = matvec3((kind, kind, kind), 1, counts, n)
    launches = []
    for copy in range(weights.n_copies):
        planes = [p for which, count in enumerate(counts) for p in weights.planes(which, copy, count)]
        launches.append(work.prepare(bed.device, (*planes, *given, *outs, *outs, *counts, n, 0)))

    def want() -> Array:
        values = [weights.values(which, sample(count)) for which, count in enumerate(counts)]
        return np.concatenate([ref.mul_mat(each, x, kind in QUANTISED).ravel() for each in values])

    def got() -> Array:
        return np.concatenate([bed.get(y)[sample(count)] for y, count in zip(outs, counts, strict=True)])

    return Case(" + ".join(map(str, counts)) + f" x {n}", work, launches, got, want)


def _sparse_cases(
    bed: Bed, weights: Weights, given: Sequence[Buffer], x: NDArray[np.float32]
) -> Iterator[Case]:
    kind, n_rows, n, quantised = weights.kind, weights.n_rows, weights.n, weights.kind in QUANTISED
    rows = np.flatnonzero(np.random.default_rng(7).random(n_rows) < LISTED)
    text, groups = f"{len(rows)} of {n_rows} x {n}", n_groups(n_rows)
    ids = np.full(n_rows, -1, np.int32)
    ids[: len(rows)] = rows
    lists = bed.put(ids), bed.put(np.array([len(rows)], np.int32))
    sums, y = bed.empty((1, groups, n), "f4"), bed.empty((1, n), "f4")
    reduce = sum_groups(1, n_rows, n).prepare(bed.device, (sums, y, y, y, y, groups, n, 0))
    values, relu = [weights.values(which, rows) for which in range(3)], ACTIVATIONS["relu"]
    first = ref.mul_mat(values[0], x, quantised)
    n_open = int((first > 0).sum())

    def reduced() -> Array:
        bed.device.run(reduce, bed.device.compute)
        return bed.get(y)

    work = sparse_gated_ffn((kind, kind, kind), 1, n_rows, n, len(rows), n_open)
    launches = []
    for copy in range(weights.n_copies):
        planes = [p for which in range(3) for p in weights.planes(which, copy)]
        launches.append(work.prepare(bed.device, (*planes, *given, *lists, sums, n_rows, n, relu)))
    gate, up, down = values
    yield Case(
        text, work, launches, reduced, partial(ref.sparse_gated_ffn, x, gate, up, down, None, quantised)
    )

    bias, neurons = normal(n_rows, seed=8), bed.put(np.arange(n_rows, dtype=np.int32))
    n_open = int((first + bias[rows] > 0).sum())
    work, bias_given = sparse_ffn((kind, kind), 1, n_rows, n, len(rows), n_open), bed.put(bias)
    launches = []
    for copy in range(weights.n_copies):
        planes = [p for which in (0, 2) for p in weights.planes(which, copy)]
        arguments = (*planes, *given, bias_given, neurons, *lists, sums, n_rows, n, 1, relu)
        launches.append(work.prepare(bed.device, arguments))
    oracle = partial(ref.sparse_ffn, x, values[0], bias[rows], values[2], None, quantised)
    yield Case(text, work, launches, reduced, oracle)


def groups_of_cases(sizes: Sizes) -> Iterator[tuple[str, Callable[[Bed], Iterator[Case]]]]:
    """Names, and what makes the cases: those of one group are on the device together."""
    yield "vectors", partial(vector_cases, sizes=sizes)
    yield "masks", partial(mask_cases, sizes=sizes)
    for kv_type in KV_TYPES:
        yield f"attention, {kv_type} cache", partial(attention_cases, sizes=sizes, kv_type=kv_type)
    for kind in WEIGHT_TYPES:
        yield kind.name, partial(_typed_cases, sizes=sizes, kind=kind)


def _typed_cases(bed: Bed, sizes: Sizes, kind: GGMLQuantizationType) -> Iterator[Case]:
    weights = Weights(bed, kind, sizes.n_ff, sizes.n_embd)
    yield from product_cases(bed, sizes, weights)
    yield from ffn_cases(bed, sizes, weights)
