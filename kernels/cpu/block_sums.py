"""Dot products of quantised rows: the one order of sums of `order_of_sums.dots_of_blocks_in_order`, as IR.

A block's 32 products are added as integers, which no order changes. Its scaled sum goes to one of 16 chains,
block c of a row to chain c mod 16, and a chain is a lane: a window of 512 numbers gives each lane one sum. The
chains are folded by halves.

Measured choices: one row per stream, since two or four rows side by side read memory at half speed; prefetch
AHEAD bytes before the loads, farther than a page. Four vectors of partial sums are turned into 16 sums of
blocks by 6 shuffles, which are as dear as the three conversions to float and the products that they save.
"""

from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.byte_dots import dot_words, narrowed
from hotcold.kernels.cpu.matrix_rows import MatrixRows
from hotcold.kernels.cpu.simd import F32, I16, I32, I64, VT, Builder, Value, constant, load
from hotcold.kernels.cpu.sizes import PACKED_WINDOW_BYTES
from hotcold.kernels.cpu.weights import (
    BLOCK,
    GROUP_BYTES,
    GROUPS,
    BlockType,
    Group,
    Window,
    block_lane,
)

BLOCKS = 16  # of a window, and chains
MAX_COLUMNS = 16  # inputs that meet a row at once
FOLDS = [block_lane(i) for i in (8, 4, 2, 1)]  # lanes between which chains are added: halves, quarters, ...


def _sums_of_four(b: Builder, v: list[Value]) -> Value:
    """4 vectors of (4 blocks x 4 lanes) to the sums of the 16 blocks, in the lanes of a window."""

    def pairs(x: Value, y: Value, low: list[int], high: list[int]) -> Value:
        lanes = ([i + 4 * q for q in range(4) for i in half] for half in (low, high))
        return b.add(*(simd.shuffle(b, x, y, where) for where in lanes))

    x, y = (pairs(v[i], v[i + 1], [0, 16, 1, 17], [2, 18, 3, 19]) for i in (0, 2))
    return pairs(x, y, [0, 1, 16, 17], [2, 3, 18, 19])


def _words_of_four(b: Builder, v: list[Value]) -> Value:
    """As `_sums_of_four` of sums that fit 16 bits, but pairs of words whose sums they are, <32 x i16>.

    A pack and a product with ones add neighbours in fewer instructions than shuffles do.
    """
    ones = constant(I16, 32, 1)
    return narrowed(b, *(dot_words(b, narrowed(b, v[i], v[i + 1]), ones) for i in (0, 2)))


def _sums_of_window(b: Builder, kind: BlockType, window: Window, x: Value) -> Value:
    """The sums of products of a window's 16 blocks, in its lanes, times their parts' integers where they have any."""
    groups = [(g, n, b.add(x, I64(GROUP_BYTES * g))) for g, n in enumerate(window.numbers)]
    if kind.has_parts and kind.fits_words(8):
        sums = zip(*(kind.sums_of_parts(b, numbers, at) for _, numbers, at in groups), strict=True)
        pairs = window.parts[0]
        twice = (
            simd.shuffle(b, pairs, pairs, [i | 1 if part else i & ~1 for i in range(32)]) for part in (0, 1)
        )
        return b.add(
            *(dot_words(b, _words_of_four(b, list(v)), own) for v, own in zip(sums, twice, strict=True))
        )
    lanes = [kind.group_lanes(b, window, g, numbers, at) for g, numbers, at in groups]
    if not kind.has_parts and kind.fits_words(16):
        return dot_words(b, _words_of_four(b, lanes), constant(I16, 32, 1))
    return _sums_of_four(b, lanes)


def _add_window(b: Builder, kind: BlockType, acc: Value, window: Window, x: Value) -> Value:
    """acc with the window's blocks times the packed window at x."""
    sums = _sums_of_window(b, kind, window, x)
    offsets = kind.offsets(b, window, x)
    return kind.add_blocks(b, acc, sums if offsets is None else b.add(sums, offsets), window, x)


def _add_group(b: Builder, kind: BlockType, acc: Value, group: Group, x: Value, g: Value) -> Value:
    """acc with the blocks of group number g of the packed window at x; other lanes get zeros added."""
    at = b.add(x, b.mul(g, I64(GROUP_BYTES)))
    sums = kind.group_lanes(b, None, 0, (group.low, group.high), at)
    for bit in (1, 2):
        sums = b.add(sums, simd.shuffle(b, sums, sums, [lane ^ bit for lane in range(16)]))
    offsets = kind.offsets(b, None, x)
    if offsets is not None:
        sums = b.add(sums, offsets)
    groups = ir.Constant(VT(I32, 16), [lane % 4 for lane in range(16)])
    own = b.icmp_unsigned("==", groups, simd.splat(b, b.trunc(g, I32), 16))
    factors = [kind.factor(b, codes) for codes in group.codes]
    return kind.add_blocks(b, acc, sums, Window([], factors), x, own)


Add = Callable[[Callable[[Value, Value], Value], Value], None]
"""add(step, window): put step(acc, x) in the place of each column's acc; x: its packed window of that number."""


def _emit_row(b: Builder, kind: BlockType, row: Value, k: Value, ahead: Value, add: Add) -> None:
    """Every window of a row, and the groups after the last whole one.

    Args:
        ahead: bytes to what is asked for meanwhile.
    """

    def prefetch(offset: Value, n_bytes: int) -> None:
        simd.emit_prefetches(b, b.add(b.add(row, offset), ahead), n_bytes)

    n_blocks = b.udiv(k, I64(BLOCK))
    last_block = b.sub(n_blocks, I64(1))
    has_groups = kind.block == BLOCK
    windows = b.udiv(n_blocks if has_groups else b.add(n_blocks, I64(BLOCKS - 1)), I64(BLOCKS))
    with cgutils.for_range(b, windows) as loop:
        prefetch(b.mul(loop.index, I64(kind.window_bytes)), kind.window_bytes)
        window = kind.unpack_window(b, row, loop.index, None if has_groups else last_block)
        add(lambda acc, x: _add_window(b, kind, acc, window, x), loop.index)
    if not has_groups:
        return
    groups = b.udiv(n_blocks, I64(4))
    first = b.mul(windows, I64(GROUPS))

    def add_group(number: Value, last: Value | None) -> None:
        group = kind.unpack_group(b, row, number, last)
        g = b.sub(number, first)
        add(lambda acc, x: _add_group(b, kind, acc, group, x, g), windows)

    with cgutils.for_range(b, b.sub(groups, first)) as loop:
        number = b.add(first, loop.index)
        prefetch(b.mul(number, I64(4 * kind.type_size)), 4 * kind.type_size)
        add_group(number, None)
    with cgutils.if_likely(b, b.icmp_signed("<", b.mul(groups, I64(4)), n_blocks)):
        add_group(groups, last_block)


def _fold(b: Builder, v: Value) -> Value:
    """The sum of 16 chains, halves first."""
    for bit in FOLDS:
        v = b.fadd(v, simd.shuffle(b, v, v, [lane ^ bit for lane in range(16)]))
    return b.extract_element(v, I32(0))


def emit_rows(b: Builder, kind: BlockType, rows: MatrixRows, x: Value, out: Value) -> None:
    """out[i] = the i-th row . x."""
    base, cell = simd.room(b, ir.ArrayType(VT(F32, 16), 16)), cgutils.alloca_once(b, VT(F32, 16))
    with cgutils.for_range(b, rows.n_rows) as loop:
        b.store(constant(F32, 16, 0.0), cell)

        def add(step: Callable[[Value, Value], Value], window: Value) -> None:
            b.store(step(b.load(cell), b.add(x, b.mul(window, I64(PACKED_WINDOW_BYTES)))), cell)

        row, ahead = rows.row(b, loop.index)
        _emit_row(b, kind, row, rows.k, ahead, add)
        slot = b.and_(loop.index, I64(15))
        simd.store(b, b.load(cell), b.add(base, b.mul(slot, I64(64))), align=64)
        with cgutils.if_unlikely(b, b.icmp_signed("==", slot, I64(15))):
            sums = [load(b, base, VT(F32, 16), 64 * i, 64) for i in range(16)]
            dots = simd.folded16(b, sums, FOLDS)
            simd.store(b, dots, b.add(out, b.mul(b.sub(loop.index, I64(15)), I64(4))), align=4)
    done = b.and_(rows.n_rows, I64(-16))
    with cgutils.for_range(b, b.sub(rows.n_rows, done)) as loop:
        dot = _fold(b, load(b, b.add(base, b.mul(loop.index, I64(64))), VT(F32, 16), align=64))
        simd.store(b, dot, b.add(out, b.mul(b.add(done, loop.index), I64(4))), align=4)


def emit_strips(
    b: Builder, kind: BlockType, rows: MatrixRows, xs: Value, n: Value, out: Value, out_stride: Value
) -> None:
    """out[c, r] = row r . x[c] for n columns, at most MAX_COLUMNS, whose addresses lie at xs."""
    base = simd.room(b, ir.ArrayType(VT(F32, 16), MAX_COLUMNS))

    def place(c: Value) -> Value:
        return b.add(base, b.mul(c, I64(64)))

    def add(step: Callable[[Value, Value], Value], window: Value) -> None:
        offset = b.mul(window, I64(PACKED_WINDOW_BYTES))
        with cgutils.for_range(b, n) as loop:
            at = place(loop.index)
            x = b.add(load(b, b.add(xs, b.mul(loop.index, I64(8))), I64, align=8), offset)
            simd.store(b, step(load(b, at, VT(F32, 16), align=64), x), at, align=64)

    with cgutils.for_range(b, rows.n_rows) as loop:
        with cgutils.for_range(b, n) as columns:
            simd.store(b, constant(F32, 16, 0.0), place(columns.index), align=64)
        row, ahead = rows.row(b, loop.index)
        _emit_row(b, kind, row, rows.k, ahead, add)
        to = b.add(out, b.mul(loop.index, I64(4)))
        with cgutils.for_range(b, n) as columns:
            dot = _fold(b, load(b, place(columns.index), VT(F32, 16), align=64))
            simd.store(b, dot, b.add(to, b.mul(columns.index, out_stride)), align=4)
