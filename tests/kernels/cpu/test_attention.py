"""Attention over the cache: the same bits whatever passes together, and nothing from beyond what a token sees."""

import attention_checks
import numpy as np
import oracle_checks as checks
import pytest
from numpy.typing import NDArray

from hotcold.kernels import ref
from hotcold.kernels.cpu import program, sizes
from hotcold.kernels.cpu.rows import F16_ID, F32_ID, Q8_0_ID

F32 = NDArray[np.float32]

kv_types = pytest.mark.parametrize(
    "kv_type",
    [pytest.param(F16_ID, id="f16"), pytest.param(F32_ID, id="f32"), pytest.param(Q8_0_ID, id="q8_0")],
)
N_HEAD, N_HEAD_KV, HEAD_DIM = 6, 2, 32


def tokens(n: int, n_heads: int, seed: int, head_dim: int = HEAD_DIM) -> F32:
    return checks.vectors(n, n_heads * head_dim, seed).reshape(n, n_heads, head_dim)


def filled(kv_type: int, n: int, n_ctx: int | None = None) -> attention_checks.Cache:
    """A cache of n positions."""
    cache = attention_checks.Cache(kv_type, N_HEAD_KV, HEAD_DIM, n_ctx or n)
    cache.store(tokens(n, N_HEAD_KV, 1), tokens(n, N_HEAD_KV, 2))
    return cache


@kv_types
def test_bits_do_not_depend_on_the_batch(kv_type: int) -> None:
    """Sizes 1 to 65, over tiles, parts and both ways of cutting; each token as if it were alone."""
    n = 1024 + 80
    cache, q = filled(kv_type, n), tokens(n, N_HEAD, 3)
    first = n - 70
    alone = np.concatenate([cache.attend(q[p : p + 1], p, 1) for p in range(first, n)])
    for size in range(1, 66):
        start = first + 5 * size % (71 - size)
        got = cache.attend(q[start : start + size], start)
        assert np.array_equal(got, alone[start - first :][:size]), size


@kv_types
@pytest.mark.parametrize(("n_past", "n_tokens"), [(600, 1), (1500, 1), (1500, 9), (100, 200), (0, 300)])
def test_bits_do_not_depend_on_threads(kv_type: int, n_past: int, n_tokens: int) -> None:
    cache, q = filled(kv_type, n_past + n_tokens), tokens(n_tokens, N_HEAD, 3)
    one = cache.attend(q, n_past, 1)
    for n_threads in (2, 3, 4):
        assert np.array_equal(cache.attend(q, n_past, n_threads), one)


@kv_types
def test_a_cache_filled_in_pieces_is_the_same(kv_type: int) -> None:
    """Batches, single tokens and positions that are written again leave the bytes of one batch."""
    n = 150
    whole, pieces = filled(kv_type, n), filled(kv_type, n)
    pieces.store(tokens(n, N_HEAD_KV, 8)[100:], tokens(n, N_HEAD_KV, 9)[100:], 100)
    k, v = tokens(n, N_HEAD_KV, 1), tokens(n, N_HEAD_KV, 2)
    for first, last in ((100, 101), (101, 140), (140, n)):
        pieces.store(k[first:last], v[first:last], first)
    assert np.array_equal(whole.memory, pieces.memory)


@kv_types
@pytest.mark.parametrize("n_ctx", [66, 600, 2000])
def test_the_length_of_the_context_does_not_matter(kv_type: int, n_ctx: int) -> None:
    q = tokens(3, N_HEAD, 3)
    assert np.array_equal(filled(kv_type, 66, n_ctx).attend(q, 63), filled(kv_type, 66).attend(q, 63))


@kv_types
@pytest.mark.parametrize("window", [0, 40])
def test_positions_that_a_token_does_not_see_do_not_matter(kv_type: int, window: int) -> None:
    """NaN after a token, in its own tile and beyond, and before its window: in a batch too."""
    n, n_tokens, head_dim = 200, 50, HEAD_DIM
    k, v, q = tokens(n, N_HEAD_KV, 1), tokens(n, N_HEAD_KV, 2), tokens(n, N_HEAD, 3)
    cache = filled(kv_type, n)
    clean = cache.attend(q[n - n_tokens :], n - n_tokens, window=window)
    for t in (0, 1, 13, n_tokens - 2):
        position = n - n_tokens + t
        dirty = attention_checks.Cache(kv_type, N_HEAD_KV, head_dim, n)
        bad_k, bad_v = k.copy(), v.copy()
        bad_k[position + 1 :], bad_v[position + 1 :] = np.nan, np.inf
        if window:
            bad_k[: position + 1 - window], bad_v[: position + 1 - window] = np.inf, np.nan
        dirty.store(bad_k, bad_v)
        got = dirty.attend(q[n - n_tokens :], n - n_tokens, window=window)
        assert np.array_equal(got[t], clean[t])
        assert not np.isfinite(got[t + 1 :]).all()


@kv_types
def test_one_bad_number_spoils_its_head_alone(kv_type: int) -> None:
    k, v, q = tokens(70, N_HEAD_KV, 1), tokens(70, N_HEAD_KV, 2), tokens(1, N_HEAD, 3)
    clean = filled(kv_type, 70).attend(q, 69)
    k[30, 1, 5] = np.nan
    cache = attention_checks.Cache(kv_type, N_HEAD_KV, HEAD_DIM, 70)
    cache.store(k, v)
    got = cache.attend(q, 69)
    assert np.array_equal(got[:, :3], clean[:, :3])
    assert np.isnan(got[:, 3:]).all()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 21])
def test_what_is_no_number_stays_none_in_blocks(value: float, place: int) -> None:
    """Its block's scale says so; the blocks beside it do not change."""
    k, v = (tokens(70, N_HEAD_KV, seed, 64) for seed in (1, 2))
    caches = [attention_checks.Cache(Q8_0_ID, N_HEAD_KV, 64, 70) for _ in range(2)]
    caches[0].store(k, v)
    k[66, 1, 32 + place] = v[66, 1, 32 + place] = value
    caches[1].store(k, v)
    with np.errstate(invalid="ignore"):  # 0 times infinity
        held = [cache.held() for cache in caches]
    for clean, got in zip(*held, strict=True):
        clean[66, 1, 32:] = np.nan
        assert np.array_equal(got[:70], clean[:70], equal_nan=True)


@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize("far", [1.0, 3000.0])
def test_scores_far_apart_stay_finite(rising: bool, far: float) -> None:
    """Without the running maximum 2^x overflows; rising, each tile raises it."""
    n = 700
    q, v = np.ones((1, 1, HEAD_DIM), np.float32), tokens(n, 1, 2)
    scores = np.linspace(-far, far, n)[:: 1 if rising else -1] * HEAD_DIM**-0.5
    k = np.repeat(scores[:, None, None], HEAD_DIM, 2).astype(np.float32)
    cache = attention_checks.Cache(F32_ID, 1, HEAD_DIM, n)
    cache.store(k, v)
    checks.close(cache.attend(q, n - 1), ref.attention(q, k, v, n - 1), "far apart")


def test_a_sink_takes_its_share() -> None:
    """A sink far above every score leaves nothing, one far below leaves all."""
    cache, q = filled(F16_ID, 100), tokens(1, N_HEAD, 3)
    plain = cache.attend(q, 99)
    assert np.array_equal(cache.attend(q, 99, sinks=np.full(N_HEAD, -1e4, np.float32)), plain)
    assert np.abs(cache.attend(q, 99, sinks=np.full(N_HEAD, 1e3, np.float32))).max() < 1e-30


def test_nothing_is_cut_in_one_part() -> None:
    assert sizes.attention_partial_bytes(4, 32, 128, sizes.PART) == 0
    assert sizes.attention_partial_bytes(1, 1, 128, sizes.PART + 1) == 2 * (128 + 4 * 128)
    assert 1 <= sizes.attention_chunks(512, 71, 1, 64, 1 << 20) <= program.MAX_CHUNKS
