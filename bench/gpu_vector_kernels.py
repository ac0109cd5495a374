"""Cases of kernels without weights: norms, rounding, sums, masks, rotation and attention."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from gpu_bed import Array, Bed
from gpu_case import EPS, EXACT, FAITHFUL, LISTED, ONE_STEP, Case, Sizes, joined, normal, one
from numpy.typing import NDArray

from hotcold.kernels import ref
from hotcold.kernels.cuda import attention as attention_sizes
from hotcold.kernels.cuda.add import HAS_OTHER, HAS_RESIDUAL, add, merge
from hotcold.kernels.cuda.candidates import candidates
from hotcold.kernels.cuda.compact import compact
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.hidden_masked import hidden_masked, hidden_masked_gated
from hotcold.kernels.cuda.keep_some import keep_some
from hotcold.kernels.cuda.layer_norm import layer_norm, layer_norm_quantised
from hotcold.kernels.cuda.quantise import quantise
from hotcold.kernels.cuda.rms_norm import rms_norm, rms_norm_quantised
from hotcold.kernels.cuda.rope import rope_kv_store
from hotcold.kernels.cuda.sum_groups import sum_groups
from hotcold.kernels.formats import (
    ACTIVATIONS,
    CANDIDATE_WORDS,
    POSITIONS_A_PART,
    attention_sums_bytes,
    candidate_parts_bytes,
    cos_sin_table,
    is_split,
    mask_words,
    n_groups,
    n_parts,
)


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
        launch = work.prepare(bed.device, (*operands, *out * 2, n, EPS, 0))
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
    n_vocab = 8 * n
    logits, found = normal(n_vocab, seed=7), bed.empty((CANDIDATE_WORDS,), "i4")
    parts, arrived = bed.empty((candidate_parts_bytes(n_vocab) // 8,), "u8"), bed.put(np.zeros(1, "u4"))
    given_row = bed.put(logits), parts, arrived, found, n_vocab, 0
    yield one(bed, f"{n_vocab}", candidates(n_vocab), given_row, found, lambda: ref.candidates(logits), EXACT)
    profile = bed.put(logits)
    given_profile = profile, n_vocab
    yield one(
        bed, f"{n_vocab}", keep_some(n_vocab), given_profile, profile, lambda: ref.keep_some(logits), EXACT
    )


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
    everyone = np.full(words, 0xFFFFFFFF, np.uint32)
    launch = work.prepare(bed.device, (mask, bed.put(everyone), ids, count, total, n_ff, words))
    want = np.concatenate([listed, np.full(n_ff - len(listed), -1), [len(listed)]])
    yield Case(f"{n_ff}", work, [launch], partial(joined, bed, (ids, count)), lambda: want, EXACT)

    text, gate, up = f"{tokens} x {n_ff}", normal(tokens, n_ff, seed=4), normal(tokens, n_ff, seed=5)
    bias, relu = normal(n_ff, seed=6), ACTIVATIONS["relu"]
    given, h = (bed.put(gate), bed.put(up)), bed.empty(gate.shape, "f4")
    wide = gate.astype(np.float64), up.astype(np.float64)
    n_listed, n_open = int(active.sum()), int((active & (gate > 0)).sum())
    work, numbers = hidden_masked_gated(tokens, n_ff, n_ff, True, n_listed, n_open), (h, n_ff, words, 1)
    relued = lambda: ref.listed(ref.gated(*wide, "relu"), active)
    yield one(bed, text, work, (*given, mask, neurons, *numbers, relu, given[0], neurons, 0), h, relued)
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
    for tokens, n_keys in ((1, min(POSITIONS_A_PART, n_ctx)), (sizes.n_tokens, min(1024, n_ctx))):
        q = normal(tokens, n_head, dim)
        positions = np.arange(n_keys - tokens, n_keys, dtype=np.int32)
        given, y = (bed.put(q), bed.put(positions)), bed.empty(q.shape, "f4")
        scores = attention_sizes.Scores.plain(y, dim)
        work = attention_sizes.attention(kv_type, tokens, *sizes.heads, n_keys)
        nowhere = attention_sizes.Rounded.nowhere(y)
        rest = y, tokens, *sizes.heads, n_ctx, *scores.arguments, *nowhere
        launches = [work.prepare(bed.device, (given[0], *cache, given[1], *rest)) for cache in caches]
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
    scores = attention_sizes.Scores.plain(y, dim)
    work = attention_sizes.attention_part(kv_type, *sizes.heads, parts, n_ctx)
    arrived = bed.put(np.zeros(attention_sizes.arrived_bytes(kv_type, *sizes.heads) // 4, np.uint32))
    places = position, sums, arrived, y, *sizes.heads, n_ctx, parts
    rest = *scores.arguments, *attention_sizes.Rounded.nowhere(y)
    launches = [work.prepare(bed.device, (given, *cache, *places, *rest)) for cache in caches]
    want = partial(_attention, q, keys, values, n_ctx)
    yield Case(f"1 at {n_ctx}", work, launches, partial(bed.get, y), want)


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
    arguments = (*given, q_out, keys, values, 1, n_head, n_kv, dim, dim // 2, 1, n_ctx, 1)

    def got() -> Array:
        stored = [ref.cache_numbers(bed.get(cache), shape)[:, at].ravel() for cache in (keys, values)]
        return np.concatenate([bed.get(q_out).ravel(), *stored])

    def want() -> Array:
        turned = [ref.rope(x, np.array([at]), frequencies) for x in (q, k)]
        return np.concatenate([turned[0].ravel(), turned[1].ravel(), v.ravel()])

    # half a unit of the last place of F16; half a step of 127 and the rounding of its scale
    bound = {"f32": FAITHFUL, "f16": 2.0**-11, "q8_0": 0.5 / 127 + 2.0**-11}[kv_type]
    return Case(f"{n_head} heads of {dim}", work, [work.prepare(bed.device, arguments)], got, want, bound)
