"""Attention over the KV cache, for one token and for many, with the same bits.

Rows are (token, head of a group): the query heads that read one head of the cache share whatever is loaded
of it. The positions are taken in tiles of 64, in which a lane is a position: scores are sums along the head in
order, the online softmax (Milakov and Gimelshein, 2018) adds the weights lane by lane, and the weighted sum
of values is one chain over the positions in order. Tiles make up parts of 512 positions that start anew and
are joined in order. All of that is laid down in `ref.attention_in_order`; how many rows share a register
tile, and which thread takes what, changes no bit.

A few tokens are cut by parts, so that long contexts keep all threads busy (`attend`, then `join_parts`);
many by blocks of rows, each of which goes through all of its parts.
"""

import math
from typing import Any

from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils

from hotcold.kernels.cpu import kv_cache, rows, simd
from hotcold.kernels.cpu.kv_cache import BLOCK as TILE
from hotcold.kernels.cpu.program import MAX_CHUNKS, N_PAST, N_TOKENS, THREAD_SCRATCH_BYTES
from hotcold.kernels.cpu.simd import (
    CODE,
    F32,
    I16,
    I32,
    I64,
    JIT,
    VT,
    Builder,
    Value,
    address,
    constant,
    linked,
    load16,
    load_f32,
    operation,
    store16,
    store_f32,
)

PART = 512  # positions; a multiple of TILE
SPLIT_TOKENS = 16  # the most that are cut by parts
MAX_HEAD_DIM = 1024

_LOG2E = 1 / math.log(2)
_LOWEST = -3.4028234663852886e38  # the maximum of no scores: a float32 that can be subtracted from itself
_P_ROW = 4 * TILE  # bytes of a row's scores
_STATE = 128  # bytes before a row's sums: its maximum 16 times, 16 lanes of its total
_BLOCK_NUMBERS, _BLOCK_ROWS = 24576, 192  # sums of a block of rows stay in the second-level cache
_BLOCKS = 32  # blocks of rows that keep some threads busy
_SHARED_ROWS = 8  # from so many rows on, a tile is widened to float32 once for all of them


# ---- register tiles -------------------------------------------------------------

# Vectors of a register tile's accumulators, beside those that it loads.
_REGISTERS = 24 if "avx512f" in simd.target_features() else 6
_MOST = 6  # rows


def _widths(n_rows: int) -> list[int]:
    """How many vectors a tile of n_rows may be wide, widest first."""
    return [n for n in (4, 2, 1) if n == 1 or n * n_rows <= _REGISTERS]


# rows, and whether F16 numbers are met as they are: sharing tiles are widened
_SHAPES = [(rows.F32_ID, n) for n in (1, 2, 3, 4, 6)] + [(rows.F16_ID, n) for n in (1, 2, 3, 4)]


def _load_cached(b: Builder, kv_type: int, at: Value, offset: int) -> Value:
    """16 numbers of the cache as floats, at at + offset * (size of a number)."""
    if kv_type == rows.F32_ID:
        return simd.load(b, at, VT(F32, 16), 4 * offset)
    return simd.half_to_float(b, simd.load(b, at, VT(I16, 16), 2 * offset))


def _ask_ahead(b: Builder, kv_type: int, n_rows: int, at: Value, ahead: Value, n: int) -> None:
    """Prefetch what n vectors are read at, `ahead` bytes later. Six rows compute for longer than they wait."""
    size = rows.TYPE_SIZE[kv_type]
    if n_rows < _MOST:
        for i in range(0, n, 4 // size):
            simd.emit_prefetch(b, b.add(b.add(at, ahead), I64(16 * i * size)), 3)


def _unrolled(b: Builder, n: Value, by: int, step: Any) -> None:
    """step(i) for i = 0 .. n - 1, `by` of them a turn."""
    turns = b.udiv(n, I64(by))
    with cgutils.for_range(b, turns) as loop:
        first = b.mul(loop.index, I64(by))
        for u in range(by):
            step(b.add(first, I64(u)))
    done = b.mul(turns, I64(by))
    with cgutils.for_range(b, b.sub(n, done)) as loop:
        step(b.add(done, loop.index))


def _emit_scores(
    b: Builder, kv_type: int, n_rows: int, q: Value, k: Value, n: Value, p: Value, ahead: Value
) -> None:
    """p[row][64] = sum_d q[d][row] k[d][64], d = 0 .. n - 1."""
    size, width = rows.TYPE_SIZE[kv_type], _widths(n_rows)[0]
    with cgutils.for_range(b, I64(TILE // 16 // width)) as strip:
        k_strip = b.add(k, b.mul(strip.index, I64(16 * width * size)))
        p_strip = b.add(p, b.mul(strip.index, I64(64 * width)))
        sums = [cgutils.alloca_once_value(b, constant(F32, 16, 0.0)) for _ in range(n_rows * width)]
        for cell in sums:
            b.store(constant(F32, 16, 0.0), cell)

        def step(d: Value) -> None:
            k_at = b.add(k_strip, b.mul(d, I64(TILE * size)))
            _ask_ahead(b, kv_type, n_rows, k_at, ahead, width)
            ks = [_load_cached(b, kv_type, k_at, 16 * i) for i in range(width)]
            q_at = b.add(q, b.mul(d, I64(4 * n_rows)))
            for r in range(n_rows):
                x = simd.splat(b, simd.load(b, q_at, F32, 4 * r, 4), 16)
                for i in range(width):
                    cell = sums[r * width + i]
                    b.store(simd.fma(b, x, ks[i], b.load(cell)), cell)

        _unrolled(b, n, 4 if n_rows * width <= 8 else 2, step)
        for r in range(n_rows):
            for i in range(width):
                simd.store(b, b.load(sums[r * width + i]), p_strip, _P_ROW * r + 64 * i)


def _emit_values(
    b: Builder,
    kv_type: int,
    n_rows: int,
    p: Value,
    v: Value,
    v_row: Value,
    n: Value,
    sums: Value,
    sums_row: Value,
    n_vectors: Value,
    ahead: Value,
) -> None:
    """sums[row][16 n_vectors] += sum_j p[row][j] v[j], j = 0 .. n - 1."""
    size = rows.TYPE_SIZE[kv_type]
    start = cgutils.alloca_once_value(b, I64(0))
    b.store(I64(0), start)
    for width in _widths(n_rows):
        first = b.load(start)
        turns = b.udiv(b.sub(n_vectors, first), I64(width))
        with cgutils.for_range(b, turns) as loop:
            column = b.add(first, b.mul(loop.index, I64(width)))
            v_column = b.add(v, b.mul(column, I64(16 * size)))
            outs = [
                b.add(b.add(sums, b.mul(sums_row, I64(r))), b.mul(column, I64(64))) for r in range(n_rows)
            ]
            cells = [cgutils.alloca_once(b, VT(F32, 16)) for _ in range(n_rows * width)]
            for r in range(n_rows):
                for i in range(width):
                    b.store(simd.load(b, outs[r], VT(F32, 16), 64 * i), cells[r * width + i])

            def step(
                j: Value, v_column: Value = v_column, cells: list[Value] = cells, width: int = width
            ) -> None:
                v_at = b.add(v_column, b.mul(j, v_row))
                _ask_ahead(b, kv_type, n_rows, v_at, ahead, width)
                vs = [_load_cached(b, kv_type, v_at, 16 * i) for i in range(width)]
                p_at = b.add(p, b.mul(j, I64(4)))
                for r in range(n_rows):
                    x = simd.splat(b, simd.load(b, p_at, F32, _P_ROW * r, 4), 16)
                    for i in range(width):
                        cell = cells[r * width + i]
                        b.store(simd.fma(b, x, vs[i], b.load(cell)), cell)

            _unrolled(b, n, 4 if n_rows * width <= 8 else 2, step)
            for r in range(n_rows):
                for i in range(width):
                    simd.store(b, b.load(cells[r * width + i]), outs[r], 64 * i)
        b.store(b.add(first, b.mul(turns, I64(width))), start)


def _emit_shapes(b: Builder, kv_type: Value, n_rows: Value, emit: Any) -> None:
    """emit(kv_type, n_rows) of the one shape that is asked for."""
    end = b.append_basic_block("shapes_end")
    switch = b.switch(b.add(b.mul(kv_type, I64(8)), n_rows), end)
    for kind, n in _SHAPES:
        block = b.append_basic_block(f"shape_{kind}_{n}")
        switch.add_case(I64(8 * kind + n), block)
        b.position_at_end(block)
        emit(kind, n)
        b.branch(end)
    b.position_at_end(end)


_INT = types.int64


@operation(types.void, *[_INT] * 7)
def _scores(
    b: Builder, kv_type: Value, n_rows: Value, q: Value, k: Value, n: Value, p: Value, ahead: Value
) -> None:
    _emit_shapes(b, kv_type, n_rows, lambda kind, m: _emit_scores(b, kind, m, q, k, n, p, ahead))


@operation(types.void, *[_INT] * 10)
def _values(b: Builder, kv_type: Value, n_rows: Value, *arguments: Value) -> None:
    _emit_shapes(b, kv_type, n_rows, lambda kind, m: _emit_values(b, kind, m, *arguments))


@cfunc(types.void(*[_INT] * 7), **CODE)  # type: ignore[untyped-decorator]
def _scores_code(kv_type: int, n_rows: int, q: int, k: int, n: int, p: int, ahead: int) -> None:
    _scores(kv_type, n_rows, q, k, n, p, ahead)


@cfunc(types.void(*[_INT] * 10), **CODE)  # type: ignore[untyped-decorator]
def _values_code(
    kv_type: int,
    n_rows: int,
    p: int,
    v: int,
    v_row: int,
    n: int,
    sums: int,
    sums_row: int,
    n_vectors: int,
    ahead: int,
) -> None:
    _values(kv_type, n_rows, p, v, v_row, n, sums, sums_row, n_vectors, ahead)


_call_scores = linked("hotcold_attention_scores", _scores_code, types.void, *[_INT] * 7)
_call_values = linked("hotcold_attention_values", _values_code, types.void, *[_INT] * 10)


# ---- softmax --------------------------------------------------------------------


def _emit_soften(b: Builder, p: Value, state: Value, low: Value | None, high: Value | None) -> Value:
    """A row's 64 scores become weights; gives what its earlier sums are to be multiplied by.

    Args:
        state: its maximum and total so far. low, high: the positions that the row sees, or None: all.
    """
    vectors = [simd.load(b, p, VT(F32, 16), 64 * i) for i in range(TILE // 16)]
    seen: list[Value] = []
    if low is not None:
        first, last = (simd.splat(b, b.trunc(x, I32), 16) for x in (low, high))
        for i in range(len(vectors)):
            lanes = ir.Constant(VT(I32, 16), list(range(16 * i, 16 * i + 16)))
            inside = b.and_(b.icmp_signed(">=", lanes, first), b.icmp_signed("<", lanes, last))
            seen.append(inside)
            vectors[i] = b.select(inside, vectors[i], constant(F32, 16, _LOWEST))
    top = vectors[0]
    for vector in vectors[1:]:
        top = simd.larger(b, top, vector)
    before, total = simd.load(b, state, VT(F32, 16)), simd.load(b, state, VT(F32, 16), 64)
    top = simd.larger(b, before, simd.splat(b, simd.fold(b, top, simd.larger), 16))
    factor = simd.exp2_up_to_0(b, b.fsub(before, top))
    for i, vector in enumerate(vectors):
        weight = simd.exp2_up_to_0(b, b.fsub(vector, top))
        if seen:
            weight = b.select(seen[i], weight, constant(F32, 16, 0.0))
        total = b.fadd(total, weight) if i else simd.fma(b, total, factor, weight)
        simd.store(b, weight, p, 64 * i)
    simd.store(b, top, state)
    simd.store(b, total, state, 64)
    return b.extract_element(factor, I32(0))


@operation(types.float32, address, address)
def _soften(b: Builder, p: Value, state: Value) -> Value:
    return _emit_soften(b, p, state, None, None)


@operation(types.float32, address, address, types.int64, types.int64)
def _soften_some(b: Builder, p: Value, state: Value, low: Value, high: Value) -> Value:
    return _emit_soften(b, p, state, low, high)


@njit(**JIT)  # type: ignore[untyped-decorator]
def _clear(record: int, n_vectors: int) -> None:
    """A row that has seen nothing."""
    store16(record, simd.splat16(simd.to_f32(_LOWEST)))
    for i in range(n_vectors + 1):
        store16(record + 64 * (i + 1), simd.zero())


@njit(**JIT)  # type: ignore[untyped-decorator]
def _scale(sums: int, n_vectors: int, factor: float) -> None:
    """sums *= factor."""
    f = simd.splat16(factor)
    for i in range(n_vectors):
        store16(sums + 64 * i, simd.mul16(load16(sums + 64 * i), f))


@njit(**JIT)  # type: ignore[untyped-decorator]
def _join(to: int, record: int, n_vectors: int) -> None:
    """A row's next part."""
    x, y = load16(to), load16(record)
    top = simd.max16(x, y)
    f, g = simd.exp2_16(simd.sub16(x, top)), simd.exp2_16(simd.sub16(y, top))
    store16(to, top)
    for i in range(n_vectors + 1):
        at = 64 * (i + 1)
        store16(to + at, simd.fma16(load16(record + at), g, simd.mul16(load16(to + at), f)))


@njit(**JIT)  # type: ignore[untyped-decorator]
def _finish(record: int, head_dim: int, sink: int, y: int) -> None:
    """y = sums / total; `sink`: address of one more score, which has no value, or 0."""
    total = simd.splat16(simd.sum16(load16(record + 64)))
    n_vectors = kv_cache.padded(head_dim) // 16
    if sink != 0:
        top = load16(record)
        score = simd.splat16(simd.to_f32(load_f32(sink) * _LOG2E))
        larger = simd.max16(top, score)
        factor = simd.exp2_16(simd.sub16(top, larger))
        total = simd.fma16(total, factor, simd.exp2_16(simd.sub16(score, larger)))
        _scale(record + _STATE, n_vectors, simd.first16(factor))
    whole = head_dim & ~15
    for i in range(0, 4 * whole, 64):
        store16(y + i, simd.div16(load16(record + _STATE + i), total))
    if whole < head_dim:
        at = record + _STATE + 4 * whole
        store16(at, simd.div16(load16(at), total))
        for i in range(0, 4 * (head_dim - whole), 4):
            store_f32(y + 4 * whole + i, load_f32(at + i))


# ---- rows, tiles, parts ---------------------------------------------------------


@njit(**JIT)  # type: ignore[untyped-decorator]
def _rows_at_once(left: int, most: int) -> int:
    """Rows of the next register tile."""
    if left >= most:
        return most
    return 3 if left == 5 else left


@njit(**JIT)  # type: ignore[untyped-decorator]
def _rows_of_block(n_tokens: int, group: int, n_head_kv: int, head_dim: int) -> int:
    """Rows that go through the positions together: a function of the batch alone."""
    most = min(_BLOCK_ROWS, _BLOCK_NUMBERS // kv_cache.padded(head_dim))
    n_rows = n_tokens * group
    if n_tokens <= SPLIT_TOKENS:
        return min(most, n_rows)
    blocks = (_BLOCKS + n_head_kv - 1) // n_head_kv
    even = (n_rows + blocks - 1) // blocks
    return min(most, (even + _MOST - 1) // _MOST * _MOST)


@njit(**JIT)  # type: ignore[untyped-decorator]
def _widen(kv_type: int, is_keys: bool, at: int, head_dim: int, to: int, ahead: int) -> None:
    """A block of keys or values as float32."""
    if kv_type == rows.F16_ID:
        for i in range(0, TILE * kv_cache.padded(head_dim), 32):
            simd.prefetch(at + ahead + 2 * i)
            store16(to + 4 * i, simd.load16_half(at + 2 * i))
            store16(to + 4 * i + 64, simd.load16_half(at + 2 * i + 32))
        return
    n = head_dim // kv_cache.QUANTISED
    data = at + 2 * TILE * n
    for i in range(0, TILE * n * 34, 64):
        simd.prefetch(at + ahead + i)
    if is_keys:
        for i in range(n):
            for lane in range(0, TILE, 16):
                scale = simd.load16_half(at + 2 * (TILE * i + lane))
                for d in range(kv_cache.QUANTISED * i, kv_cache.QUANTISED * (i + 1)):
                    key = simd.load16_bytes(data + TILE * d + lane)
                    store16(to + 4 * (TILE * d + lane), simd.mul16(key, scale))
        return
    for j in range(TILE):
        for i in range(n):
            scale = simd.splat16_half(at + 2 * (n * j + i))
            for d in range(kv_cache.QUANTISED * i, kv_cache.QUANTISED * (i + 1), 16):
                value = simd.load16_bytes(data + head_dim * j + d)
                store16(to + 4 * (head_dim * j + d), simd.mul16(value, scale))


@njit(**JIT)  # type: ignore[untyped-decorator]
def _sees(position: int, window: int) -> int:
    """The first position that a token at `position` sees; `window` of them, or all if it is 0."""
    return max(0, position + 1 - window) if window > 0 else 0


@njit(**JIT)  # type: ignore[untyped-decorator]
def _tile(
    kind: int,
    n_rows: int,
    q: int,
    k: int,
    v: int,
    head_dim: int,
    first: int,
    row: int,
    group: int,
    n_past: int,
    window: int,
    records: int,
    ahead: int,
    p: int,
) -> None:
    """Rows row, row + 1, .. meet the positions first .. first + 63."""
    n_vectors = kv_cache.padded(head_dim) // 16
    record_bytes = _STATE + 64 * n_vectors
    v_row = 16 * n_vectors * rows.row_bytes_of_float(kind)
    # what all rows see
    low = max(0, _sees(n_past + (row + n_rows - 1) // group, window) - first)
    high = min(TILE, n_past + row // group + 1 - first)
    if low == 0 and high == TILE:
        _call_scores(kind, n_rows, q, k, head_dim, p, ahead)
        for r in range(n_rows):
            factor = _soften(p + _P_ROW * r, records + record_bytes * r)
            if factor != 1.0:
                _scale(records + record_bytes * r + _STATE, n_vectors, factor)
        sums = records + _STATE
        _call_values(kind, n_rows, p, v, v_row, TILE, sums, record_bytes, n_vectors, ahead)
        return
    # what any of them sees
    last = n_past + (row + n_rows - 1) // group
    if last < first or _sees(n_past + row // group, window) >= first + TILE:
        return
    _call_scores(kind, n_rows, q, k, head_dim, p, ahead)
    shared = low < high
    for r in range(n_rows):
        position = n_past + (row + r) // group
        own_low, own_high = max(0, _sees(position, window) - first), min(TILE, position + 1 - first)
        if own_low >= own_high:
            continue
        record, weights = records + record_bytes * r, p + _P_ROW * r
        factor = _soften_some(weights, record, own_low, own_high)
        if factor != 1.0:
            _scale(record + _STATE, n_vectors, factor)
        # values that not all rows see are added row by row: whatever they are, no other row may meet them
        end = low if shared else own_high
        if own_low < end:
            at, n = weights + 4 * own_low, end - own_low
            _call_values(
                kind, 1, at, v + v_row * own_low, v_row, n, record + _STATE, record_bytes, n_vectors, ahead
            )
    if not shared:
        return
    at, sums = p + 4 * low, records + _STATE
    _call_values(kind, n_rows, at, v + v_row * low, v_row, high - low, sums, record_bytes, n_vectors, ahead)
    for r in range(n_rows):
        n = min(TILE, n_past + (row + r) // group + 1 - first) - high
        if n > 0:
            at, sums = p + _P_ROW * r + 4 * high, records + record_bytes * r + _STATE
            _call_values(kind, 1, at, v + v_row * high, v_row, n, sums, record_bytes, n_vectors, ahead)


@njit(**JIT)  # type: ignore[untyped-decorator]
def _prepare(op, head_kv: int, row: int, n_rows: int, most: int, to: int) -> None:  # type: ignore[no-untyped-def]
    """The block's queries, scaled for powers of two, as [head_dim, rows] for each register tile."""
    group, head_dim = op.p0 // op.p1, op.p2
    factor = simd.to_f32(op.f0 * _LOG2E)
    r = 0
    while r < n_rows:
        n = _rows_at_once(n_rows - r, most)
        for i in range(n):
            t, head = (row + r + i) // group, head_kv * group + (row + r + i) % group
            x = op.x + t * op.x_stride + 4 * head * head_dim
            for d in range(head_dim):
                store_f32(to + 4 * (r * head_dim + d * n + i), simd.to_f32(load_f32(x + 4 * d) * factor))
        r += n


@njit(**JIT)  # type: ignore[untyped-decorator]
def _sum_part(  # type: ignore[no-untyped-def]
    op,
    head_kv: int,
    row: int,
    n_rows: int,
    most: int,
    part: int,
    n_past: int,
    q: int,
    records: int,
    spare: int,
) -> None:
    """Maxima, totals and sums of a block of rows over one part of the positions.

    Args:
        spare: memory for a register tile's weights and a widened tile.
    """
    group, head_dim, window = op.p0 // op.p1, op.p2, op.k
    n_vectors = kv_cache.padded(head_dim) // 16
    record_bytes = _STATE + 64 * n_vectors
    for r in range(n_rows):
        _clear(records + record_bytes * r, n_vectors)
    block_bytes, head_at = op.w_stride, head_kv * op.w1_stride
    wide_k = spare + _P_ROW * _MOST
    wide_v = wide_k + 64 * TILE * n_vectors
    widened = op.w_type == rows.Q8_0_ID or (op.w_type == rows.F16_ID and n_rows > _SHARED_ROWS)
    kind = rows.F32_ID if widened else op.w_type
    start = max(part * PART, _sees(n_past + row // group, window) // TILE * TILE)
    end = min((part + 1) * PART, n_past + (row + n_rows - 1) // group + 1)
    for first in range(start, end, TILE):
        k = op.w + head_at + first // TILE * block_bytes
        v = op.w1 + head_at + first // TILE * block_bytes
        ahead = block_bytes
        if widened:
            _widen(op.w_type, True, k, head_dim, wide_k, ahead)
            _widen(op.w_type, False, v, head_dim, wide_v, ahead)
            k, v, ahead = wide_k, wide_v, 0
        r = 0
        while r < n_rows:
            n = _rows_at_once(n_rows - r, most)
            at, q_at = records + record_bytes * r, q + 4 * head_dim * r
            _tile(kind, n, q_at, k, v, head_dim, first, row + r, group, n_past, window, at, ahead, spare)
            ahead = 0
            r += n


@njit(**JIT)  # type: ignore[untyped-decorator]
def _finish_row(op, head_kv: int, row: int, record: int) -> None:  # type: ignore[no-untyped-def]
    """The answer of one row."""
    group, head_dim = op.p0 // op.p1, op.p2
    t, head = row // group, head_kv * group + row % group
    sink = op.z + 4 * head if op.z else 0
    _finish(record, head_dim, sink, op.y + t * op.y_stride + 4 * head * head_dim)


@njit(**JIT)  # type: ignore[untyped-decorator]
def _parts(op, n_tokens: int, n_past: int) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """The first part of the positions that any token sees, and how many there are from it on."""
    first = _sees(n_past, op.k) // PART
    return first, (n_past + n_tokens + PART - 1) // PART - first


@njit(**JIT)  # type: ignore[untyped-decorator]
def _most_rows(op, n_rows: int) -> int:  # type: ignore[no-untyped-def]
    """Rows of the largest register tile: 6 of float32, 4 of halfs that are widened as they are met."""
    return 4 if op.w_type == rows.F16_ID and n_rows <= _SHARED_ROWS else _MOST


@njit(**JIT)  # type: ignore[untyped-decorator]
def attend(op, c: int, run, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """Chunk c of an ATTENTION op.

    Args:
        op: p0 query heads, p1 heads of the cache, p2 head_dim, f0 scale, k window or 0, z address of the
            sinks float32 [p0] or 0; x, y; caches w, w1 of w_type, with w_stride bytes a block of positions
            and w1_stride a head; scratch of `partial_bytes`.
        run: the run parameters. scratch: address of THREAD_SCRATCH_BYTES.
    """
    n_tokens, n_past, n_head_kv = run[N_TOKENS], run[N_PAST], op.p1
    group = op.p0 // n_head_kv
    n_rows, block = n_tokens * group, _rows_of_block(n_tokens, group, n_head_kv, op.p2)
    n_blocks = (n_rows + block - 1) // block
    first_part, n_parts = _parts(op, n_tokens, n_past)
    cut = n_tokens <= SPLIT_TOKENS and n_parts > 1
    items = n_head_kv * n_blocks * (n_parts if cut else 1)
    n_vectors = kv_cache.padded(op.p2) // 16
    record_bytes = _STATE + 64 * n_vectors
    totals = scratch + 4 * op.p2 * block
    totals = (totals + 63) // 64 * 64
    own = totals + record_bytes * block
    spare = own + record_bytes * block
    for item in range(items * c // op.chunks, items * (c + 1) // op.chunks):
        if cut:
            part, rest = item % n_parts, item // n_parts
            row, head_kv = rest % n_blocks * block, rest // n_blocks
        else:
            # the last rows see most, so they go first
            part, row, head_kv = 0, (n_blocks - 1 - item // n_head_kv) * block, item % n_head_kv
        n = min(block, n_rows - row)
        most = _most_rows(op, n)
        _prepare(op, head_kv, row, n, most, scratch)
        if cut:
            to = op.scratch + ((head_kv * n_parts + part) * n_rows + row) * record_bytes
            _sum_part(op, head_kv, row, n, most, first_part + part, n_past, scratch, to, spare)
            continue
        for r in range(n):
            _clear(totals + record_bytes * r, n_vectors)
        for part in range(first_part, first_part + n_parts):
            _sum_part(op, head_kv, row, n, most, part, n_past, scratch, own, spare)
            for r in range(n):
                if _meets(op, n_past, row + r, part):
                    _join(totals + record_bytes * r, own + record_bytes * r, n_vectors)
        for r in range(n):
            _finish_row(op, head_kv, row + r, totals + record_bytes * r)


@njit(**JIT)  # type: ignore[untyped-decorator]
def _meets(op, n_past: int, row: int, part: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether a row sees any position of a part."""
    position = n_past + row // (op.p0 // op.p1)
    return part * PART <= position and _sees(position, op.k) < (part + 1) * PART


@njit(**JIT)  # type: ignore[untyped-decorator]
def join_parts(op, c: int, run, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """Chunk c of an ATTENTION_JOIN op, the same record as the ATTENTION before it; often nothing is left."""
    n_tokens, n_past, n_head_kv = run[N_TOKENS], run[N_PAST], op.p1
    first_part, n_parts = _parts(op, n_tokens, n_past)
    if n_tokens > SPLIT_TOKENS or n_parts == 1:
        return
    n_rows = n_tokens * (op.p0 // n_head_kv)
    n_vectors = kv_cache.padded(op.p2) // 16
    record_bytes = _STATE + 64 * n_vectors
    items = n_head_kv * n_rows
    for item in range(items * c // op.chunks, items * (c + 1) // op.chunks):
        head_kv, row = item // n_rows, item % n_rows
        _clear(scratch, n_vectors)
        for part in range(n_parts):
            if _meets(op, n_past, row, first_part + part):
                record = op.scratch + ((head_kv * n_parts + part) * n_rows + row) * record_bytes
                _join(scratch, record, n_vectors)
        _finish_row(op, head_kv, row, scratch)


def n_parts(n_ctx: int) -> int:
    """Parts of a whole context."""
    return -(-n_ctx // PART)


def chunks(n_tokens: int, n_head: int, n_head_kv: int, head_dim: int, n_ctx: int) -> int:
    """Into how many chunks an ATTENTION op of at most n_tokens is cut: as many as have work, or fewer."""
    group = n_head // n_head_kv

    def blocks(n: int) -> int:
        return n_head_kv * -(-n * group // _rows_of_block(n, group, n_head_kv, head_dim))

    items = max(blocks(min(n_tokens, SPLIT_TOKENS)) * n_parts(n_ctx), blocks(n_tokens))
    return min(items, MAX_CHUNKS)


def partial_bytes(n_tokens: int, n_head: int, head_dim: int, n_ctx: int) -> int:
    """Bytes of the parts' sums between ATTENTION and ATTENTION_JOIN."""
    if n_parts(n_ctx) == 1:
        return 0
    return min(n_tokens, SPLIT_TOKENS) * n_head * n_parts(n_ctx) * (_STATE + 4 * kv_cache.padded(head_dim))


def _scratch_bytes(head_dim: int) -> int:
    """What a chunk needs of its thread's memory at most."""
    n = kv_cache.padded(head_dim)
    block = max(_MOST, min(_BLOCK_ROWS, _BLOCK_NUMBERS // n))
    return 64 + block * (4 * n + 2 * (_STATE + 4 * n)) + _MOST * _P_ROW + 2 * 4 * TILE * n


if max(map(_scratch_bytes, range(1, MAX_HEAD_DIM + 1))) > THREAD_SCRATCH_BYTES:
    raise AssertionError("attention needs more of a thread's memory than there is")
