"""Attention over the cache: the same bits whatever passes together, and nothing from beyond what a token sees."""

import cpu_operands as checks
import numpy as np
import pytest
from numpy.typing import NDArray

import hotcold.kernels.cpu  # noqa: F401  sets the folder of compiled code
from hotcold.kernels import formats, order_of_sums, ref
from hotcold.kernels.cpu import program, rows, simd, sizes
from hotcold.kernels.cpu.rows import F16_ID, F32_ID, Q8_0_ID

pytestmark = pytest.mark.pairwise


class Cache:
    """One layer's keys and values as KV_STORE leaves them, with NaN or the like wherever it writes nothing."""

    def __init__(self, kv_type: int, n_head_kv: int, head_dim: int, n_ctx: int) -> None:
        self.kv_type, self.n_head_kv, self.head_dim, self.n_ctx = kv_type, n_head_kv, head_dim, n_ctx
        name = {rows.F16_ID: "f16", rows.F32_ID: "f32", rows.Q8_0_ID: "q8_0"}[kv_type]
        self.block_bytes = formats.host_kv_block_bytes(name, head_dim)
        head_bytes = formats.host_kv_bytes(name, n_ctx, head_dim)
        self.half, self.n_positions = n_head_kv * head_bytes, -(-n_ctx // 64) * 64
        self.memory = program.aligned(2 * self.half)
        self.memory[:] = 0xFF
        self.where = {"w": self.memory.ctypes.data, "w1": self.memory.ctypes.data + self.half}
        self.where |= {"w_type": kv_type, "w_stride": self.block_bytes, "w1_stride": head_bytes}

    def store(self, k: checks.Array, v: checks.Array, n_past: int = 0) -> None:
        """Keys and values [n_tokens, n_head_kv, head_dim] at positions from n_past on."""
        k, v = (np.ascontiguousarray(a) for a in (k, v))
        record = {
            "code": program.KV_STORE,
            "chunks": 2,
            "n_head_kv": self.n_head_kv,
            "head_dim": self.head_dim,
            "n_positions": self.n_positions,
        }
        record |= {"x": k.ctypes.data, "z": v.ctypes.data, **self.where}
        record |= dict.fromkeys(("x_stride", "z_stride"), 4 * self.n_head_kv * self.head_dim)
        checks.run([record], len(k), N_PAST=n_past)

    def held(self) -> tuple[checks.Array, checks.Array]:
        """The numbers in it, float32 [positions in whole blocks, n_head_kv, head_dim] each."""
        return self._numbers(self.memory[: self.half], True), self._numbers(self.memory[self.half :], False)

    def _numbers(self, memory: NDArray[np.uint8], is_keys: bool) -> checks.Array:
        n, wide = self.head_dim, -(-self.head_dim // 16) * 16
        blocks = memory.reshape(self.n_head_kv, -1, self.block_bytes)
        shape = (*blocks.shape[:2], wide, 64) if is_keys else (*blocks.shape[:2], 64, wide)
        if self.kv_type == rows.Q8_0_ID:
            scales = blocks[..., : 4 * n].copy().view(np.float16).astype(np.float32)
            scales = scales.reshape(*shape[:2], n // 32, 64) if is_keys else scales.reshape(*shape[:3], -1)
            scales = np.repeat(scales, 32, 2 if is_keys else 3)
            numbers = blocks[..., 4 * n :].copy().view(np.int8).reshape(shape) * scales
        else:
            kind = np.float16 if self.kv_type == rows.F16_ID else np.float32
            numbers = blocks.copy().view(kind).reshape(shape).astype(np.float32)
        if is_keys:
            numbers = numbers.swapaxes(2, 3)
        return np.ascontiguousarray(numbers.reshape(self.n_head_kv, -1, wide)[..., :n].swapaxes(0, 1))

    def attend(
        self,
        q: checks.Array,
        n_past: int,
        n_threads: int = 2,
        window: int = 0,
        sinks: checks.Array | None = None,
    ) -> checks.Array:
        """ATTENTION, and the join of its parts, of queries [n_tokens, n_head, head_dim]."""
        n_tokens, n_head, head_dim = q.shape
        q, y = np.ascontiguousarray(q), np.full(q.shape, np.nan, np.float32)
        head_sizes = (n_tokens, n_head, self.n_head_kv, head_dim, self.n_ctx)
        partial = program.aligned(64 + sizes.attention_partial_bytes(n_tokens, n_head, head_dim, self.n_ctx))
        partial[:] = 0xFF
        record = {"code": program.ATTENTION, "chunks": sizes.attention_chunks(*head_sizes), "n_head": n_head}
        record |= {"n_head_kv": self.n_head_kv, "head_dim": head_dim, "n_positions": self.n_positions}
        record |= {"scale": head_dim**-0.5, **self.where}
        record |= {"x": q.ctypes.data, "y": y.ctypes.data, "scratch": partial.ctypes.data, "k": window}
        record |= dict.fromkeys(("x_stride", "y_stride"), 4 * n_head * head_dim)
        if sinks is not None:
            record["z"] = sinks.ctypes.data
        join = record | {"code": program.ATTENTION_JOIN, "chunks": n_head}
        checks.run([record, join], n_tokens, n_threads, N_PAST=n_past)
        return y


def wanted_bits(
    q: checks.Array,
    k: checks.Array,
    v: checks.Array,
    n_past: int,
    window: int = 0,
    sinks: checks.Array | None = None,
) -> checks.Array:
    """`order_of_sums.attention_in_order` as this CPU level adds."""
    fma = order_of_sums.fma if "fma" in simd.target_features() else order_of_sums.mul_add
    return order_of_sums.attention_in_order(q, k, v, n_past, window, sinks, fma)


def check_attention(
    kv_type: int, heads: tuple[int, int], head_dim: int, n_past: int, n_tokens: int, window: int = 0
) -> None:
    """Cache and attention: what is held, the distance to the oracle, and the bits of its order of sums."""
    n_head, n_head_kv = heads
    n_keys = n_past + n_tokens
    cache = Cache(kv_type, n_head_kv, head_dim, n_keys + 3)
    given = [
        checks.vectors(n_keys, n_head_kv * head_dim, s).reshape(n_keys, n_head_kv, head_dim) for s in (4, 5)
    ]
    cache.store(given[0], given[1])
    held = [numbers[:n_keys] for numbers in cache.held()]
    for numbers, x in zip(held, given, strict=True):
        if kv_type == rows.Q8_0_ID:
            bytes_, scales = ref.quantise(x)
            scales = scales.astype(np.float16).astype(np.float32)
            x = (bytes_.reshape(*scales.shape, 32) * scales[..., None]).reshape(x.shape)
        elif kv_type == rows.F16_ID:
            x = x.astype(np.float16).astype(np.float32)
        assert np.array_equal(numbers, x)
    q = checks.vectors(n_tokens, n_head * head_dim, 6).reshape(n_tokens, n_head, head_dim)
    sinks = checks.vectors(1, n_head, 7)[0] if window else None
    y = cache.attend(q, n_past, window=window, sinks=sinks)
    checks.close(y, ref.attention(q, held[0], held[1], n_past, window, sinks), "attention")
    assert np.array_equal(y, wanted_bits(q, held[0], held[1], n_past, window, sinks)), "attention's bits"


F32 = NDArray[np.float32]
kv_types = pytest.mark.parametrize(
    "kv_type",
    [pytest.param(F16_ID, id="f16"), pytest.param(F32_ID, id="f32"), pytest.param(Q8_0_ID, id="q8_0")],
)
N_HEAD, N_HEAD_KV, HEAD_DIM = 6, 2, 32


def tokens(n: int, n_heads: int, seed: int, head_dim: int = HEAD_DIM) -> F32:
    return checks.vectors(n, n_heads * head_dim, seed).reshape(n, n_heads, head_dim)


def filled(kv_type: int, n: int, n_ctx: int | None = None) -> Cache:
    """A cache of n positions."""
    cache = Cache(kv_type, N_HEAD_KV, HEAD_DIM, n_ctx or n)
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
        dirty = Cache(kv_type, N_HEAD_KV, head_dim, n)
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
    cache = Cache(kv_type, N_HEAD_KV, HEAD_DIM, 70)
    cache.store(k, v)
    got = cache.attend(q, 69)
    assert np.array_equal(got[:, :3], clean[:, :3])
    assert np.isnan(got[:, 3:]).all()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 21])
def test_what_is_no_number_stays_none_in_blocks(value: float, place: int) -> None:
    """Its block's scale says so; the blocks beside it do not change."""
    k, v = (tokens(70, N_HEAD_KV, seed, 64) for seed in (1, 2))
    caches = [Cache(Q8_0_ID, N_HEAD_KV, 64, 70) for _ in range(2)]
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
    cache = Cache(F32_ID, 1, HEAD_DIM, n)
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


NAMES = {0: "F32", 1: "F16", 8: "Q8_0"}
CACHED = [(t, d) for t in (rows.F16_ID, rows.F32_ID) for d in (1, 2, 17, 24, 64, 80, 96, 112, 128, 192, 256)]
CACHED += [(rows.Q8_0_ID, d) for d in (32, 64, 96, 128, 192, 256)]


@pytest.mark.parametrize(("kv_type", "head_dim"), CACHED, ids=lambda v: NAMES.get(v, str(v)))
def test_attention(kv_type: int, head_dim: int) -> None:
    for n_past, n_tokens in ((0, 1), (0, 5), (63, 1), (70, 3)):
        check_attention(kv_type, (4, 2), head_dim, n_past, n_tokens)


@pytest.mark.parametrize("kv_type", [rows.F16_ID, rows.F32_ID, rows.Q8_0_ID], ids=NAMES.get)
@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (3, 1), (5, 1), (12, 2), (7, 1), (16, 2), (13, 1)])
@pytest.mark.parametrize(("n_past", "n_tokens"), [(511, 1), (511, 2), (1030, 1), (500, 17), (100, 60)])
def test_attention_of_groups(kv_type: int, heads: tuple[int, int], n_past: int, n_tokens: int) -> None:
    check_attention(kv_type, heads, 32, n_past, n_tokens)


@pytest.mark.parametrize("window", [1, 63, 64, 100, 512, 2000])
@pytest.mark.parametrize(("n_past", "n_tokens"), [(0, 1), (0, 70), (1030, 1), (1030, 5), (500, 40)])
def test_attention_of_a_window_and_sinks(window: int, n_past: int, n_tokens: int) -> None:
    check_attention(rows.F16_ID, (6, 2), 20, n_past, n_tokens, window)


def test_halves() -> None:
    """All 65536 halfs widen as NumPy does; rounding agrees near every half and at the extremes."""
    every = np.arange(65536, dtype=np.uint16)
    data, out = every.copy(), np.zeros(65536, np.float32)
    rows.widen_row(rows.F16_ID, data.ctypes.data, 65536, out.ctypes.data)
    wanted = every.view(np.float16).astype(np.float32)
    assert np.array_equal(out, wanted, equal_nan=True)
    finite = wanted[np.isfinite(wanted)]
    near = np.concatenate([np.nextafter(finite, np.float32(s)) for s in (-np.inf, np.inf)])
    between = (finite + np.roll(finite, 1)) / 2
    tail = np.array([65519.9, 65520, 1e10, -1e10, np.inf, -np.inf, 1e-8, 2.0**-25, np.nan], np.float32)
    x = np.concatenate([finite, near, between, tail]).astype(np.float32)
    x = np.resize(x, (-(-len(x) // 1024), 1, 1024))
    cache = Cache(rows.F16_ID, 1, 1024, len(x))
    cache.store(x, x)
    with np.errstate(over="ignore"):
        wanted = x.astype(np.float16).astype(np.float32)
    for held in cache.held():
        assert np.array_equal(held[: len(x)], wanted, equal_nan=True)
