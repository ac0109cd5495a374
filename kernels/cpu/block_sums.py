"""Dot products of quantised rows: the one order of sums of `order_of_sums.dots_of_blocks_in_order`, as IR.

A block's 32 products are added as integers, which no order changes. Its scaled sum goes to one of 16 chains,
block c of a row to chain c mod 16, and a chain is a lane: a window of 512 numbers gives each lane one sum. The
chains are folded by halves.

A row's numbers are turned once, so that a lane holds the dwords of one block, as in packed inputs: the products of a
block then meet in their lane, and each further input costs little more than the products. Rows go by fours: their
chains are folded together, and where a row ends with a group of blocks the four groups are one more window. Where it
ends with two, as the rows of a predictor's second matrix may be no longer, those of two rows are a window.

Measured choices: the windows of one row after those of another, since two or four rows side by side read memory at
half speed; prefetch AHEAD bytes before the loads, farther than a page.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llvmlite import ir
from numba.core import cgutils

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.byte_dots import dot_words, halves_of_pairs
from hotcold.kernels.cpu.matrix_rows import MatrixRows
from hotcold.kernels.cpu.simd import F32, I8, I16, I32, I64, VT, Builder, Value, constant, load
from hotcold.kernels.cpu.sizes import PACKED_WINDOW_BYTES
from hotcold.kernels.cpu.weights import BLOCK, DWORDS, GROUP_BLOCKS, GROUPS, BlockType, Group, Window

BLOCKS = 16  # of a window, and chains
MAX_COLUMNS = 16  # inputs that meet a row at once
QUAD = 4  # rows whose chains are folded together
FEW_COLUMNS = 4  # inputs whose chains are registers
PAIR_BLOCKS = 2 * GROUP_BLOCKS  # that rows end with which meet an input two at a time


# ---- one window ---------------------------------------------------------------------


def _interleaved(b: Builder, x: Value, y: Value, width: int, half: int) -> Value:
    """Runs of `width` lanes of x and y in turns, from the first or second half of each quarter of 4 lanes."""
    lanes = []
    for quarter in range(0, 16, 4):
        for i in range(quarter + 2 * half, quarter + 2 * half + 2, width):
            lanes += [source + i + j for source in (0, 16) for j in range(width)]
    return simd.shuffle(b, x, y, lanes)


def _turned(b: Builder, v: list[Value]) -> list[Value]:
    """4 vectors of 16 lanes, each quarter turned: lane 4 j + i of vector d becomes lane 4 j + d of vector i."""
    low, high = ([_interleaved(b, v[i], v[i + 1], 1, half) for i in (0, 2)] for half in (0, 1))
    return [_interleaved(b, x, y, 2, half) for x, y in (low, high) for half in (0, 1)]


def _dwords(b: Builder, kind: BlockType, window: Window) -> list[Value]:
    """Dwords 0 .. 7 of a window's blocks, one block a lane, <64 x i8> each."""

    def turned(parts: list[Value]) -> list[Value]:
        vectors = _turned(b, [b.bitcast(part, VT(I32, 16)) for part in parts])
        return [b.bitcast(v, VT(I8, 64)) for v in vectors]

    if window.nibbles:
        halves = [kind.split(b, v) for v in turned(window.nibbles)]
    else:
        halves = list(zip(*(turned([pair[i] for pair in window.numbers]) for i in (0, 1)), strict=True))
    return [pair[i] for i in (0, 1) for pair in halves]


@dataclass(frozen=True)
class _Decoded:
    """A window whose blocks are lanes."""

    kind: BlockType
    window: Window
    dwords: list[Value]

    def add(self, b: Builder, acc: Value, x: Value) -> Value:
        """acc with each block's products with the packed window at x in its lane."""
        sums, offsets = self._sums(b, x), self.kind.offsets(b, self.window, x)
        return self.kind.add_blocks(b, acc, sums if offsets is None else b.add(sums, offsets), self.window, x)

    def _sums(self, b: Builder, x: Value) -> Value:
        """The sums of blocks' products, those of numbers 0..15 and 16..31 times their integers where they have any."""
        kind = self.kind
        if not kind.has_parts:
            return self._dots(b, x, range(DWORDS))
        low, high = (self._dots(b, x, range(i, i + DWORDS // 2)) for i in (0, DWORDS // 2))
        if kind.fits_words(16):
            pairs = b.or_(b.and_(low, constant(I32, 16, 0xFFFF)), b.shl(high, constant(I32, 16, 16)))
            return dot_words(b, b.bitcast(pairs, VT(I16, 32)), self.window.parts[0])
        scales = halves_of_pairs(b, self.window.parts[0])
        return b.add(b.mul(low, scales[0]), b.mul(high, scales[1]))

    def _dots(self, b: Builder, x: Value, dwords: range) -> Value:
        """The sums of products of some dwords."""
        sums = constant(I32, 16, 0)
        for d in dwords:
            sums = self.kind.dot(b, sums, self.dwords[d], load(b, x, VT(I8, 64), 64 * d))
        return sums


def _decoded(b: Builder, kind: BlockType, window: Window) -> _Decoded:
    return _Decoded(kind, window, _dwords(b, kind, window))


# ---- chains of rows and inputs --------------------------------------------------------


class _Columns(Protocol):
    """Packed inputs, and the chains that they have with a row."""

    def clear(self, b: Builder, row: Value) -> None:
        """Begin with a row of a quad, by its number."""

    def add(self, b: Builder, row: Value, window: _Decoded, offset: Value) -> None:
        """Let every input's window that lies `offset` bytes from its beginning meet that of a row."""

    def keep(self, b: Builder, row: Value) -> None:
        """Leave a row's chains to `fold`."""

    def lay_pairs(self, b: Builder, offset: Value) -> None:
        """Put the last blocks of each input, which lie `offset` bytes from its beginning, where a pair meets them."""

    def fold(self, b: Builder, ends: list[_Decoded], offset: Value, store: "Store") -> None:
        """Add what the quad's rows end with, and store the sums of their chains.

        Args:
            ends: nothing, a window of the rows' last groups, or one of two rows' last two and one of the others'.
        """


Store = Callable[[Value, Value, int], None]
"""store(v, column, lane): the dot products of a quad's rows with a column, from a lane of v on."""


def _chains_at(b: Builder, base: Value, column: Value, row: Value) -> Value:
    return b.add(base, b.mul(b.add(b.mul(column, I64(QUAD)), row), I64(64)))


def _pair_at(b: Builder, base: Value, column: Value) -> Value:
    return b.add(base, b.mul(column, I64(PACKED_WINDOW_BYTES)))


def _lay_pair(b: Builder, x: Value, to: Value) -> None:
    """The first two groups of a packed window, and in place of the others the same again."""
    for at in range(0, PACKED_WINDOW_BYTES, 64):
        v = load(b, x, VT(I32, 16), at)
        simd.store(b, simd.shuffle(b, v, v, [lane & ~2 for lane in range(16)]), to, at, 64)


def _pair_added(b: Builder, window: _Decoded, first: Value, second: Value, x: Value) -> tuple[Value, Value]:
    """The chains of two rows, with a window of the first one's two groups and the second one's."""
    own = [lane % 4 < 2 for lane in range(16)]  # chains of the two groups
    both = simd.shuffle(b, first, second, [lane if own[lane] else 16 + lane - 2 for lane in range(16)])
    both = window.add(b, both, x)
    first = simd.shuffle(b, both, first, [lane if own[lane] else 16 + lane for lane in range(16)])
    return first, simd.shuffle(b, both, second, [lane + 2 if own[lane] else 16 + lane for lane in range(16)])


def _quad_sums(b: Builder, base: Value, column: Value, x: Value, ends: list[_Decoded]) -> Value:
    """Of a column's chains, folded but for the blocks' places in a group: lane 4 j + i is row i's of places j.

    Args:
        base: of `_chains_at`. x: address of the input's window that `ends` meet, as `_Columns.fold` has them.
    """
    rows = [load(b, _chains_at(b, base, column, I64(i)), VT(F32, 16), align=64) for i in range(QUAD)]
    if len(ends) == QUAD // 2:
        pairs = (_pair_added(b, end, rows[2 * i], rows[2 * i + 1], x) for i, end in enumerate(ends))
        rows = [row for pair in pairs for row in pair]
    groups = _turned(b, rows)
    if len(ends) == 1:
        groups[0] = ends[0].add(b, groups[0], x)
    return b.fadd(b.fadd(groups[0], groups[2]), b.fadd(groups[1], groups[3]))


def _folded(b: Builder, v: Value) -> Value:
    """`_quad_sums` of one column: lane i is row i's dot product."""
    for bit in (8, 4):
        v = b.fadd(v, simd.shuffle(b, v, v, [lane ^ bit for lane in range(16)]))
    return v


class _FewColumns:
    """One or FEW_COLUMNS inputs, whose chains are registers while a row passes; `numbers`: their columns."""

    def __init__(self, b: Builder, xs: list[Value], numbers: list[Value]) -> None:
        self.xs, self.numbers = xs, numbers
        self.base = simd.room(b, ir.ArrayType(VT(F32, 16), QUAD * len(xs)))
        self.pairs = simd.room(b, ir.ArrayType(VT(I8, PACKED_WINDOW_BYTES), len(xs)))
        self.cells = [cgutils.alloca_once(b, VT(F32, 16)) for _ in xs]

    def clear(self, b: Builder, row: Value) -> None:
        for cell in self.cells:
            b.store(constant(F32, 16, 0.0), cell)

    def add(self, b: Builder, row: Value, window: _Decoded, offset: Value) -> None:
        for cell, x in zip(self.cells, self.xs, strict=True):
            b.store(window.add(b, b.load(cell), b.add(x, offset)), cell)

    def keep(self, b: Builder, row: Value) -> None:
        for c, cell in enumerate(self.cells):
            simd.store(b, b.load(cell), _chains_at(b, self.base, I64(c), row), align=64)

    def lay_pairs(self, b: Builder, offset: Value) -> None:
        for c, x in enumerate(self.xs):
            _lay_pair(b, b.add(x, offset), _pair_at(b, self.pairs, I64(c)))

    def fold(self, b: Builder, ends: list[_Decoded], offset: Value, store: Store) -> None:
        def x(c: int) -> Value:
            return b.add(self.xs[c], offset) if len(ends) < 2 else _pair_at(b, self.pairs, I64(c))

        sums = [_quad_sums(b, self.base, I64(c), x(c), ends) for c in range(len(self.xs))]
        if len(sums) == 1:
            store(_folded(b, sums[0]), self.numbers[0], 0)
            return
        even, odd = (simd.merged(b, sums[c], sums[c + 2], 8) for c in (0, 1))
        v = simd.merged(b, even, odd, 4)
        for c, number in enumerate(self.numbers):
            store(v, number, QUAD * c)


class _ManyColumns:
    """Up to MAX_COLUMNS inputs, one after another; their chains are in memory."""

    def __init__(self, b: Builder, xs: Value, n: Value) -> None:
        self.xs, self.n = xs, n
        self.base = simd.room(b, ir.ArrayType(VT(F32, 16), QUAD * MAX_COLUMNS))
        self.pairs = simd.room(b, ir.ArrayType(VT(I8, PACKED_WINDOW_BYTES), MAX_COLUMNS))

    def clear(self, b: Builder, row: Value) -> None:
        with cgutils.for_range(b, self.n) as loop:
            simd.store(b, constant(F32, 16, 0.0), _chains_at(b, self.base, loop.index, row), align=64)

    def _x(self, b: Builder, c: Value, offset: Value) -> Value:
        return b.add(load(b, b.add(self.xs, b.mul(c, I64(8))), I64, align=8), offset)

    def add(self, b: Builder, row: Value, window: _Decoded, offset: Value) -> None:
        with cgutils.for_range(b, self.n) as loop:
            at = _chains_at(b, self.base, loop.index, row)
            acc = load(b, at, VT(F32, 16), align=64)
            simd.store(b, window.add(b, acc, self._x(b, loop.index, offset)), at, align=64)

    def keep(self, b: Builder, row: Value) -> None:
        """They are kept already."""

    def lay_pairs(self, b: Builder, offset: Value) -> None:
        with cgutils.for_range(b, self.n) as loop:
            _lay_pair(b, self._x(b, loop.index, offset), _pair_at(b, self.pairs, loop.index))

    def fold(self, b: Builder, ends: list[_Decoded], offset: Value, store: Store) -> None:
        with cgutils.for_range(b, self.n) as loop:
            c = loop.index
            x = self._x(b, c, offset) if len(ends) < 2 else _pair_at(b, self.pairs, c)
            store(_folded(b, _quad_sums(b, self.base, c, x, ends)), c, 0)


# ---- rows -----------------------------------------------------------------------------


def _emit_windows(
    b: Builder,
    kind: BlockType,
    row: Value,
    n_blocks: Value,
    ahead: Value,
    add: Callable[[_Decoded, Value], None],
) -> None:
    """add(window, its number) for a row's windows; of a row that ends with one or two groups more those are left out.

    Args:
        ahead: bytes to what is asked for meanwhile.
    """
    whole, left, last_block = _cut(b, n_blocks)

    def window(number: Value, last: Value | None) -> None:
        at = b.add(b.add(row, b.mul(number, I64(kind.window_bytes))), ahead)
        simd.emit_prefetches(b, at, kind.window_bytes)
        add(_decoded(b, kind, kind.unpack_window(b, row, number, last)), number)

    if kind.block != BLOCK:
        n = b.select(b.icmp_signed("==", left, I64(0)), whole, b.add(whole, I64(1)))
        with cgutils.for_range(b, n) as loop:
            window(loop.index, last_block)
        return
    with cgutils.for_range(b, whole) as loop:
        window(loop.index, None)
    at = b.add(b.add(row, b.mul(whole, I64(kind.window_bytes))), ahead)
    with b.if_else(_has_pairs(b, left)) as (then, otherwise):
        with then:
            simd.emit_prefetches(b, at, PAIR_BLOCKS * kind.type_size)
        with otherwise:
            with cgutils.if_unlikely(b, b.icmp_signed(">", left, I64(GROUP_BLOCKS))):
                window(whole, last_block)
            with cgutils.if_unlikely(b, _has_end(b, left)):
                simd.emit_prefetches(b, at, GROUP_BLOCKS * kind.type_size)


def _cut(b: Builder, n_blocks: Value) -> tuple[Value, Value, Value]:
    """Whole windows of a row, the blocks after them, and the number of the last block."""
    return b.udiv(n_blocks, I64(BLOCKS)), b.and_(n_blocks, I64(BLOCKS - 1)), b.sub(n_blocks, I64(1))


def _has_end(b: Builder, left: Value) -> Value:
    """Whether what is left after a row's whole windows is one group or a part of it."""
    return b.icmp_unsigned("<", b.sub(left, I64(1)), I64(GROUP_BLOCKS))


def _has_pairs(b: Builder, left: Value) -> Value:
    """Whether it is two whole groups."""
    return b.icmp_signed("==", left, I64(PAIR_BLOCKS))


def _emit_quads(
    b: Builder, kind: BlockType, rows: MatrixRows, columns: _Columns, out: Value, out_stride: Value
) -> None:
    """out[c, r] = row r . x[c] of all columns."""
    n_blocks = b.udiv(rows.k, I64(BLOCK))
    whole, left, last_block = _cut(b, n_blocks)
    end_offset = b.mul(whole, I64(PACKED_WINDOW_BYTES))
    last_row, room = b.sub(rows.n_rows, I64(1)), simd.room(b, VT(F32, QUAD))

    def groups_of(number: Value, places: range, last_block: Value | None) -> list[Group]:
        """Of what a row ends with; of the last row where there are no more."""
        row, _ = rows.row(b, b.select(b.icmp_signed("<", number, last_row), number, last_row))
        before = b.mul(whole, I64(GROUPS))
        return [kind.unpack_group(b, row, b.add(before, I64(g)), last_block) for g in places]

    if kind.block == BLOCK:
        with cgutils.if_unlikely(b, _has_pairs(b, left)):
            columns.lay_pairs(b, end_offset)
    with cgutils.for_range(b, b.udiv(b.add(rows.n_rows, I64(QUAD - 1)), I64(QUAD))) as loop:
        first = b.mul(loop.index, I64(QUAD))
        n = b.sub(rows.n_rows, first)
        n = b.select(b.icmp_signed("<", n, I64(QUAD)), n, I64(QUAD))
        to = b.add(out, b.mul(first, I64(4)))
        with cgutils.for_range(b, n) as each:
            row, ahead = rows.row(b, b.add(first, each.index))
            columns.clear(b, each.index)

            def add(window: _Decoded, number: Value, i: Value = each.index) -> None:
                columns.add(b, i, window, b.mul(number, I64(PACKED_WINDOW_BYTES)))

            _emit_windows(b, kind, row, n_blocks, ahead, add)
            columns.keep(b, each.index)

        def store(v: Value, column: Value, lane: int, n: Value = n, to: Value = to) -> None:
            v = simd.shuffle(b, v, v, range(lane, lane + QUAD))
            at = b.add(to, b.mul(column, out_stride))
            with b.if_else(b.icmp_signed("==", n, I64(QUAD)), likely=True) as (then, otherwise):
                with then:
                    simd.store(b, v, at, align=4)
                with otherwise:
                    simd.store(b, v, room, align=16)
                    with cgutils.for_range(b, n) as some:
                        offset = b.mul(some.index, I64(4))
                        simd.store(b, load(b, b.add(room, offset), F32, align=4), b.add(at, offset), align=4)

        def fold(n_rows: int, n_groups: int, last_block: Value | None, first: Value = first) -> None:
            """With windows of `n_rows` rows' last groups each."""
            ends = []
            for i in range(0, QUAD, n_rows):
                groups = [
                    groups_of(b.add(first, I64(i + j)), range(n_groups), last_block) for j in range(n_rows)
                ]
                ends.append(_decoded(b, kind, kind.window_of(b, [group for row in groups for group in row])))
            columns.fold(b, ends, end_offset, store)

        if kind.block != BLOCK:
            columns.fold(b, [], end_offset, store)
        else:
            with b.if_else(_has_end(b, left)) as (has_end, otherwise):
                with has_end:
                    fold(QUAD, 1, last_block)
                with otherwise, b.if_else(_has_pairs(b, left)) as (has_pairs, neither):
                    with has_pairs:
                        fold(QUAD // 2, 2, None)
                    with neither:
                        columns.fold(b, [], end_offset, store)


def emit_rows(b: Builder, kind: BlockType, rows: MatrixRows, x: Value, out: Value) -> None:
    """out[i] = the i-th row . x."""
    _emit_quads(b, kind, rows, _FewColumns(b, [x], [I64(0)]), out, I64(0))


def emit_strips(
    b: Builder, kind: BlockType, rows: MatrixRows, xs: Value, n: Value, out: Value, out_stride: Value
) -> None:
    """out[c, r] = row r . x[c] for n columns, at most MAX_COLUMNS, whose addresses lie at xs."""
    few = b.or_(b.icmp_signed("==", n, I64(FEW_COLUMNS)), b.icmp_signed("==", n, I64(FEW_COLUMNS - 1)))
    with b.if_else(few) as (then, otherwise):
        with then:
            # of three the last one stands in for a fourth
            last = b.sub(n, I64(1))
            numbers = [b.select(b.icmp_signed("<", I64(c), last), I64(c), last) for c in range(FEW_COLUMNS)]
            addresses = [load(b, b.add(xs, b.mul(c, I64(8))), I64, align=8) for c in numbers]
            _emit_quads(b, kind, rows, _FewColumns(b, addresses, numbers), out, out_stride)
        with otherwise:
            _emit_quads(b, kind, rows, _ManyColumns(b, xs, n), out, out_stride)
