"""The pieces that attention is made of: register tiles, the softmax between them, and the sums of parts.

Tiles are of queries by keys, and of weights by values.

A row is one query. Its record is its maximum so far in 16 lanes, its total in 16 lanes that are not added up
yet, and its sums of values, whole vectors. `order_of_sums.attention_in_order` says in what order all of it is added.
"""

import math
from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils

from hotcold.kernels.cpu import kv_cache, operations, rows, simd
from hotcold.kernels.cpu.compiled import compiled, family
from hotcold.kernels.cpu.kv_cache import BLOCK as TILE
from hotcold.kernels.cpu.kv_cache import QUANTISED
from hotcold.kernels.cpu.operations import load16, load_f32, store16, store_f32
from hotcold.kernels.cpu.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    VT,
    Builder,
    Value,
    address,
    constant,
    f32x16,
    operation,
)
from hotcold.kernels.cpu.sizes import MOST_WIDE_ROWS, STATE

LOG2E = 1 / math.log(2)
P_ROW = 4 * TILE  # bytes of a row's scores
_LOWEST = -3.4028234663852886e38  # the maximum of no scores: a float32 that can be subtracted from itself
_NUMBER = {rows.F32_ID: 4, rows.F16_ID: 2, rows.Q8_0_ID: 1}  # bytes, without scales


# ---- register tiles -------------------------------------------------------------

# Vectors of 16 floats in registers: a tile's accumulators and what is loaded of the cache. Two more are left.
_REGISTERS = 28 if "avx512f" in simd.target_features() else 7
# The most rows of a tile of float32, and of numbers that are widened as they are met: a whole group if there
# are registers, so that it is widened once and asks for the next block all the while.
MOST_DIRECT_ROWS = 8 if _REGISTERS > 7 else 4
MOST_ROWS = 8


def _widths(n_rows: int) -> list[int]:
    """How many vectors a tile of n_rows may be wide, widest first. What one row loads is used up at once."""
    return [n for n in (4, 2, 1) if n == 1 or n_rows == 1 or (n_rows + 1) * n <= _REGISTERS]


# The types that a register tile meets as they are, and its rows; other tiles are widened to float32 first.
_DIRECT = [n for n in (1, 2, 3, 4, 6, 7, 8) if n <= MOST_DIRECT_ROWS]
_ROWS = {rows.F32_ID: [1, 2, 3, 4, 6], rows.F16_ID: _DIRECT, rows.Q8_0_ID: _DIRECT}


def _load_cached(b: Builder, kv_type: int, at: Value, offset: int, scale: Value | None) -> Value:
    """16 numbers of the cache as floats, `offset` numbers after an address; Q8_0 times their scales."""
    if kv_type == rows.F32_ID:
        return simd.load(b, at, VT(F32, 16), 4 * offset)
    if kv_type == rows.F16_ID:
        return simd.half_to_float(b, simd.load(b, at, VT(I16, 16), 2 * offset))
    return b.fmul(b.sitofp(simd.load(b, at, VT(I8, 16), offset), VT(F32, 16)), scale)


def _ask_ahead(b: Builder, kv_type: int, n_rows: int, at: Value, ahead: Value, n: int) -> None:
    """Prefetch what n vectors are read at, `ahead` bytes later; not where a widened tile is read again."""
    size = _NUMBER[kv_type]
    if kv_type != rows.F32_ID or n_rows < MOST_WIDE_ROWS:
        for i in range(0, n, 4 // size):
            simd.emit_prefetch(b, b.add(b.add(at, ahead), I64(16 * i * size)), 3)


def _unrolled(b: Builder, n: Value, by: int, step: Callable[[Value], None]) -> None:
    """step(i) for i = 0 .. n - 1, `by` of them a turn."""
    turns = b.udiv(n, I64(by))
    with cgutils.for_range(b, turns) as loop:
        first = b.mul(loop.index, I64(by))
        for u in range(by):
            step(b.add(first, I64(u)))
    done = b.mul(turns, I64(by))
    with cgutils.for_range(b, b.sub(n, done)) as loop:
        step(b.add(done, loop.index))


def _add_products(b: Builder, cells: list[Value], xs: list[Value], ys: list[Value]) -> None:
    """cells[row, i] += xs[row] ys[i]; xs are floats."""
    for r, x in enumerate(xs):
        x = simd.splat(b, x, 16)
        for i, y in enumerate(ys):
            cell = cells[r * len(ys) + i]
            b.store(simd.fma(b, x, y, b.load(cell)), cell)


def _emit_scores(
    b: Builder, kv_type: int, n_rows: int, q: Value, q_row: Value, k: Value, n: Value, p: Value, ahead: Value
) -> None:
    """p[row][64] = sum_d q[row][d] k[d][64], d = 0 .. n - 1."""
    size, width = _NUMBER[kv_type], _widths(n_rows)[0]
    unroll = 4 if n_rows * width <= 8 else 2
    qs = [b.add(q, b.mul(q_row, I64(r))) for r in range(n_rows)]
    with cgutils.for_range(b, I64(TILE // 16 // width)) as strip:
        first = b.mul(strip.index, I64(16 * width))
        cells = [cgutils.alloca_once(b, VT(F32, 16)) for _ in range(n_rows * width)]
        for cell in cells:
            b.store(constant(F32, 16, 0.0), cell)

        def add(d: Value, numbers: Value, scales: list[Value] | None) -> None:
            at = b.add(numbers, b.mul(d, I64(TILE * size)))
            _ask_ahead(b, kv_type, n_rows, at, ahead, width)
            ks = [_load_cached(b, kv_type, at, 16 * i, scales and scales[i]) for i in range(width)]
            d4 = b.mul(d, I64(4))
            _add_products(b, cells, [simd.load(b, b.add(x, d4), F32, 0, 4) for x in qs], ks)

        if kv_type == rows.Q8_0_ID:
            n_blocks = b.udiv(n, I64(QUANTISED))
            numbers = b.add(b.add(k, first), b.mul(n_blocks, I64(2 * TILE)))
            with cgutils.for_range(b, n_blocks) as loop:
                at = b.add(b.add(k, b.mul(first, I64(2))), b.mul(loop.index, I64(2 * TILE)))
                scales = [_load_cached(b, rows.F16_ID, at, 16 * i, None) for i in range(width)]
                start = b.mul(loop.index, I64(QUANTISED))
                _unrolled(b, I64(QUANTISED), unroll, lambda d: add(b.add(start, d), numbers, scales))
        else:
            numbers = b.add(k, b.mul(first, I64(size)))
            _unrolled(b, n, unroll, lambda d: add(d, numbers, None))
        to = b.add(p, b.mul(first, I64(4)))
        for r in range(n_rows):
            for i in range(width):
                simd.store(b, b.load(cells[r * width + i]), to, P_ROW * r + 64 * i)


def _emit_values(
    b: Builder,
    kv_type: int,
    n_rows: int,
    p: Value,
    v: Value,
    n_vectors: Value,
    low: Value,
    high: Value,
    sums: Value,
    sums_row: Value,
    factors: Value,
    ahead: Value,
) -> None:
    """sums[row][16 n_vectors] = factors[row] sums[row] + sum_j p[row][j] v[j], j = low .. high - 1."""
    size = _NUMBER[kv_type]
    v_row = b.mul(n_vectors, I64(16 * size))
    n_blocks = b.udiv(n_vectors, I64(QUANTISED // 16))
    numbers = b.add(v, b.mul(n_blocks, I64(2 * TILE))) if kv_type == rows.Q8_0_ID else v

    def add_columns(column: Value, width: int) -> None:
        outs = [b.add(b.add(sums, b.mul(sums_row, I64(r))), b.mul(column, I64(64))) for r in range(n_rows)]
        cells = [cgutils.alloca_once(b, VT(F32, 16)) for _ in range(n_rows * width)]
        for r in range(n_rows):
            factor = simd.load(b, factors, VT(F32, 16), 64 * r)
            for i in range(width):
                x = simd.load(b, outs[r], VT(F32, 16), 64 * i)
                b.store(b.fmul(x, factor), cells[r * width + i])

        def add(j: Value) -> None:
            j = b.add(low, j)
            at = b.add(b.add(numbers, b.mul(column, I64(16 * size))), b.mul(j, v_row))
            _ask_ahead(b, kv_type, n_rows, at, ahead, width)
            scales: list[Value] = [None] * width
            if kv_type == rows.Q8_0_ID:
                block = b.add(b.mul(j, n_blocks), b.udiv(column, I64(QUANTISED // 16)))
                for i in range(0, width, 2):  # a width of 1 aside, columns begin with a block
                    half = simd.load(b, b.add(v, b.mul(block, I64(2))), I16, i)
                    scales[i : i + 2] = [simd.half_to_float(b, simd.splat(b, half, 16))] * 2
            vs = [_load_cached(b, kv_type, at, 16 * i, scales[i]) for i in range(width)]
            at = b.add(p, b.mul(j, I64(4)))
            _add_products(b, cells, [simd.load(b, at, F32, P_ROW * r, 4) for r in range(n_rows)], vs)

        _unrolled(b, b.sub(high, low), 4 if n_rows * width <= 8 else 2, add)
        for r in range(n_rows):
            for i in range(width):
                simd.store(b, b.load(cells[r * width + i]), outs[r], 64 * i)

    start: Value = I64(0)
    for width in _widths(n_rows):
        turns = b.udiv(b.sub(n_vectors, start), I64(width))
        with cgutils.for_range(b, turns) as loop:
            add_columns(b.add(start, b.mul(loop.index, I64(width))), width)
        start = b.add(start, b.mul(turns, I64(width)))


def _emit_shapes(
    b: Builder, kv_type: int, n_rows: Value, emit: Callable[..., None], *arguments: Value
) -> None:
    """emit(b, kv_type, n_rows, *arguments) of the number of rows that is asked for."""
    end = b.append_basic_block("shapes_end")
    switch = b.switch(n_rows, end)
    for n in _ROWS[kv_type]:
        block = b.append_basic_block(f"rows_{n}")
        switch.add_case(I64(n), block)
        b.position_at_end(block)
        emit(b, kv_type, n, *arguments)
        b.branch(end)
    b.position_at_end(end)


_TYPES = {kv_type: kv_type for kv_type in _ROWS}


@family(_TYPES, 7, always=(rows.F32_ID,))
def attention_scores(b: Builder, kv_type: int, n_rows: Value, *arguments: Value) -> None:
    """p[row][64] = sum_d q[row][d] k[d][64]; its values are n_rows, q, q_row, k, n, p, ahead."""
    _emit_shapes(b, kv_type, n_rows, _emit_scores, *arguments)


@family(_TYPES, 10, always=(rows.F32_ID,))
def attention_values(b: Builder, kv_type: int, n_rows: Value, *arguments: Value) -> None:
    """sums[row] = factors[row] sums[row] + sum_j p[row][j] v[j], j = low .. high - 1.

    Its values are n_rows, p, v, n_vectors, low, high, sums, sums_row, factors, ahead.
    """
    _emit_shapes(b, kv_type, n_rows, _emit_values, *arguments)


# ---- softmax --------------------------------------------------------------------


def _emit_soften(b: Builder, p: Value, state: Value, low: Value | None, high: Value | None) -> Value:
    """A row's 64 scores become weights; gives what its earlier sums are to be multiplied by, in all lanes.

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
    return factor


@operation(f32x16, address, address)
def soften(b: Builder, p: Value, state: Value) -> Value:
    """A row's 64 scores at p become weights, and its record goes on; gives the factor of its earlier sums."""
    return _emit_soften(b, p, state, None, None)


@operation(f32x16, address, address, types.int64, types.int64)
def soften_some(b: Builder, p: Value, state: Value, low: Value, high: Value) -> Value:
    """`soften` of a row that sees the positions low .. high - 1 of the tile alone."""
    return _emit_soften(b, p, state, low, high)


@compiled
def clear(record: int, n_vectors: int) -> None:
    """A row that has seen nothing."""
    store16(record, operations.splat16(operations.to_f32(_LOWEST)))
    for i in range(n_vectors + 1):
        store16(record + 64 * (i + 1), operations.zero())


@compiled
def scale(sums: int, n_vectors: int, f) -> None:  # type: ignore[no-untyped-def]
    """sums *= f, the same in all lanes."""
    for i in range(n_vectors):
        store16(sums + 64 * i, operations.mul16(load16(sums + 64 * i), f))


@compiled
def join(to: int, record: int, n_vectors: int) -> None:
    """A row's next part."""
    x, y = load16(to), load16(record)
    top = operations.max16(x, y)
    f, g = operations.exp2_16(operations.sub16(x, top)), operations.exp2_16(operations.sub16(y, top))
    store16(to, top)
    for i in range(n_vectors + 1):
        at = 64 * (i + 1)
        store16(to + at, operations.fma16(load16(record + at), g, operations.mul16(load16(to + at), f)))


@compiled
def finish(record: int, head_dim: int, sink: int, y: int) -> None:
    """y = sums / total; `sink`: address of one more score, which has no value, or 0."""
    total = operations.splat16(operations.sum16(load16(record + 64)))
    n_vectors = kv_cache.padded(head_dim) // 16
    if sink != 0:
        top = load16(record)
        score = operations.splat16(operations.to_f32(load_f32(sink) * LOG2E))
        larger = operations.max16(top, score)
        factor = operations.exp2_16(operations.sub16(top, larger))
        total = operations.fma16(total, factor, operations.exp2_16(operations.sub16(score, larger)))
        scale(record + STATE, n_vectors, factor)
    whole = head_dim & ~15
    for i in range(0, 4 * whole, 64):
        store16(y + i, operations.div16(load16(record + STATE + i), total))
    if whole < head_dim:
        at = record + STATE + 4 * whole
        store16(at, operations.div16(load16(at), total))
        for i in range(0, 4 * (head_dim - whole), 4):
            store_f32(y + 4 * whole + i, load_f32(at + i))


@compiled
def widen(kv_type: int, is_keys: bool, at: int, head_dim: int, to: int, ahead: int) -> None:
    """A block of keys or values as float32; asks for what lies `ahead` bytes later."""
    if kv_type == rows.Q8_0_ID:
        for i in range(0, TILE * (head_dim // QUANTISED * 34), 64):
            operations.prefetch(at + ahead + i)
        if is_keys:
            _widen_quantised_keys(at, head_dim, to)
        else:
            _widen_quantised_values(at, head_dim, to)
        return
    for i in range(0, TILE * kv_cache.padded(head_dim), 32):
        operations.prefetch(at + ahead + 2 * i)
        store16(to + 4 * i, operations.load16_half(at + 2 * i))
        store16(to + 4 * i + 64, operations.load16_half(at + 2 * i + 32))


@compiled
def _widen_quantised_keys(at: int, head_dim: int, to: int) -> None:
    """Scales [head_dim / 32, 64], then bytes [head_dim, 64]."""
    n = head_dim // QUANTISED
    data = at + 2 * TILE * n
    for i in range(n):
        for lane in range(0, TILE, 16):
            scale = operations.load16_half(at + 2 * (TILE * i + lane))
            for d in range(QUANTISED * i, QUANTISED * (i + 1)):
                key = operations.load16_bytes(data + TILE * d + lane)
                store16(to + 4 * (TILE * d + lane), operations.mul16(key, scale))


@compiled
def _widen_quantised_values(at: int, head_dim: int, to: int) -> None:
    """Scales [64, head_dim / 32], then bytes [64, head_dim]."""
    n = head_dim // QUANTISED
    data = at + 2 * TILE * n
    for block in range(TILE * n):
        scale, value = operations.splat16_half(at + 2 * block), data + QUANTISED * block
        store16(to + 4 * QUANTISED * block, operations.mul16(operations.load16_bytes(value), scale))
        store16(to + 4 * QUANTISED * block + 64, operations.mul16(operations.load16_bytes(value + 16), scale))
