"""Prompts with quantised weights: panels of rows decoded once for all tokens, and tiles whose lanes are rows.

A panel holds ROWS rows as bytes, block of 32 after block of 32:

    8 times   ROWS dwords: 4 neighbouring numbers of each row
    ROWS      float32: the block's scale in each row
    ROWS      where the type has them: float32 minima
    ROWS      likewise: int16 scales of numbers 0..15 and of 16..31; then, with minima, minus those of the minimum

A tile multiplies a panel with COLUMNS tokens. It goes through the 16 chains of `block_sums.py` one after
another, so a chain is a register for each token and 16 rows, and folds them at the end: the same sums, bit
for bit, as a row's own.

Measured choices, 5632 x 2048 by 256 tokens: 32 rows by 4 tokens, since 16 x 8, 32 x 6 and 64 x 4 are slower or
equal; without AVX-512, whose registers are twice as many and as wide, 16 by 4, one token after another.
"""

from dataclasses import dataclass

import numpy as np
from numba.core import cgutils

from hotcold.kernels.cpu import elementwise, simd
from hotcold.kernels.cpu.block_sums import BLOCKS
from hotcold.kernels.cpu.byte_dots import dot_bytes, dot_signed_bytes, dot_words, halves_of_pairs
from hotcold.kernels.cpu.compiled import compiled, family
from hotcold.kernels.cpu.operations import store_i64
from hotcold.kernels.cpu.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    VT,
    Builder,
    Value,
    constant,
    load,
)
from hotcold.kernels.cpu.sizes import PACKED_WINDOW_BYTES
from hotcold.kernels.cpu.weight_types import BLOCK_TYPES, BY_ID
from hotcold.kernels.cpu.weights import (
    BLOCK,
    DWORDS,
    GROUPS,
    HALF_SUMS,
    SCALED_SUMS,
    SCALES,
    SUMS,
    BlockType,
    WeightType,
    block_lane,
)

IS_WIDE = "avx512f" in simd.target_features()
VECTORS = 2 if IS_WIDE else 1  # of 16 rows
ROWS = 16 * VECTORS
COLUMNS = 4
ROW_BYTES = 64 * VECTORS  # of a panel's row of dwords
MOST_FACTORS = 4

# what a block's sum is made of, in `_emit_tile`
PLAIN, SIGNED, MINIMUM, PARTS, MINIMUM_PARTS = range(5)


def sum_kind(kind: WeightType) -> int:
    """How a tile adds up a block of this type."""
    assert isinstance(kind, BlockType)
    if kind.has_parts:
        return MINIMUM_PARTS if kind.has_minimum else PARTS
    return MINIMUM if kind.has_minimum else SIGNED if kind.is_signed else PLAIN


def n_factors(kind: int) -> int:
    """Vectors beside a block's dwords."""
    return {PLAIN: 1, SIGNED: 1, MINIMUM: 2, PARTS: 2, MINIMUM_PARTS: MOST_FACTORS}[kind]


# by GGUF's type numbers, where compiled code reads them
_N_IDS = 1 + max(BY_ID)
_FACTORS, _SHIFTS = (np.zeros(_N_IDS, np.int64) for _ in range(2))
for _kind in BLOCK_TYPES:
    _FACTORS[_kind.type_id] = n_factors(sum_kind(_kind))
    _SHIFTS[_kind.type_id] = _kind.offset_shift

# this file's part of a thread's scratch memory, in bytes
_COLUMNS, _OUT = 0, 64
_STAGED = _OUT + COLUMNS * ROW_BYTES
STAGED_ROW = 64 * (2 * 4 + MOST_FACTORS)
_CHAINS = _STAGED + 16 * STAGED_ROW
_PANEL = _CHAINS + BLOCKS * COLUMNS * ROW_BYTES


def scratch_bytes(k: int) -> int:
    """Bytes of a thread's scratch memory that rows of k numbers want."""
    return _PANEL + -(-k // (BLOCK * BLOCKS)) * BLOCKS * ROW_BYTES * (DWORDS + MOST_FACTORS)


# ---- decoding rows to a panel -----------------------------------------------------


@family({kind.type_id: kind for kind in BLOCK_TYPES}, 6)
def _stage(
    b: Builder, kind: BlockType, w: Value, stride: Value, n_rows: Value, window: Value, k: Value, out: Value
) -> None:
    last_block = b.sub(b.udiv(k, I64(BLOCK)), I64(1))
    last_row = b.sub(n_rows, I64(1))
    offset = b.mul(window, I64(kind.window_bytes))
    with cgutils.for_range(b, I64(16)) as loop:
        r = b.select(b.icmp_signed("<", loop.index, last_row), loop.index, last_row)
        row = b.add(w, b.mul(stride, r))
        later = b.add(b.add(row, offset), b.mul(stride, I64(ROWS)))
        simd.emit_prefetches(b, later, kind.window_bytes, 2)
        decoded = kind.unpack_window(b, row, window, last_block)
        to = b.add(out, b.mul(loop.index, I64(STAGED_ROW)))
        vectors = [v for pair in decoded.numbers for v in pair] + decoded.factors + decoded.parts
        for i, v in enumerate(vectors):
            simd.store(b, v, to, 64 * i, 64)


def _transposed(b: Builder, v: list[Value]) -> list[Value]:
    """16 vectors of 16 lanes, lane i of vector j to lane j of vector i."""
    bit = 1
    while bit < 16:
        out: list[Value] = [None] * 16
        for i in range(16):
            x, y = v[i & ~bit], v[i | bit]
            if i & bit:
                lanes = [lane + bit if not lane & bit else 16 + lane for lane in range(16)]
            else:
                lanes = [lane if not lane & bit else 16 + lane - bit for lane in range(16)]
            out[i] = simd.shuffle(b, x, y, lanes)
        v, bit = out, 2 * bit
    return v


@family({0: "whole"}, 4, always=(0,))
def _turn(b: Builder, _: str, staged: Value, n_factors: Value, n_halves: Value, panel: Value) -> None:
    """The staged window of 16 rows to the panel's columns of dwords: n_halves low or high halves of 4 blocks."""
    block_bytes = b.mul(b.add(n_factors, I64(DWORDS)), I64(ROW_BYTES))

    def turn(at: Value, to: Value, place: list[tuple[int, int]]) -> None:
        rows = [load(b, at, VT(I32, 16), STAGED_ROW * i, 64) for i in range(16)]
        for v, (block, dword) in zip(_transposed(b, rows), place, strict=True):
            simd.store(
                b, v, b.add(b.add(to, b.mul(block_bytes, I64(block))), I64(ROW_BYTES * dword)), align=64
            )

    with cgutils.for_range(b, n_halves) as loop:
        group, half = b.lshr(loop.index, I64(1)), b.and_(loop.index, I64(1))
        to = b.add(panel, b.mul(b.mul(group, I64(4)), block_bytes))
        to = b.add(to, b.mul(half, I64(DWORDS // 2 * ROW_BYTES)))
        turn(b.add(staged, b.mul(loop.index, I64(64))), to, [(i // 4, i % 4) for i in range(16)])
    where = [(0, 0)] * 16
    for c in range(BLOCKS):
        where[block_lane(c)] = (c, DWORDS)
    with cgutils.for_range(b, n_factors) as loop:
        at = b.add(staged, b.mul(b.add(loop.index, I64(8)), I64(64)))
        turn(at, b.add(panel, b.mul(loop.index, I64(ROW_BYTES))), where)


# ---- tiles --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """One block of a panel, and the tokens whose numbers it meets.

    Attributes:
        kind: what the block's sum is made of.
        at: address in the panel.
        windows: addresses of the tokens' packed windows.
        lane_at: bytes from a vector of a window to the block's lane.
    """

    b: Builder
    kind: int
    at: Value
    windows: list[Value]
    lane_at: Value

    def of_tokens(self, offset: int, element: object) -> list[Value]:
        """Each token's number for this block, of the vector that begins `offset` bytes into a window."""
        return [load(self.b, self.b.add(w, self.lane_at), element, offset, 4) for w in self.windows]

    def of_rows(self, i: int, element: object) -> list[Value]:
        """The rows' numbers beside the dwords: their i-th vectors."""
        at = ROW_BYTES * (DWORDS + i)
        return [load(self.b, self.at, VT(element, 16), at + 64 * r, 64) for r in range(VECTORS)]

    def pairs(self, i: int) -> list[Value]:
        """The rows' i-th vectors, as pairs of int16."""
        return [self.b.bitcast(v, VT(I16, 32)) for v in self.of_rows(i, I32)]

    def sums_of_pairs(self, i: int) -> list[list[Value]]:
        """By token and vector of rows: both packed sums of halves, times the pair of the rows' i-th vectors."""
        splats = [simd.splat(self.b, v, 16) for v in self.of_tokens(HALF_SUMS, I32)]
        halves = [self.b.bitcast(v, VT(I16, 32)) for v in splats]
        return [[dot_words(self.b, pair, half) for pair in self.pairs(i)] for half in halves]

    def sums(self, starts: list[Value], dwords: range) -> list[list[Value]]:
        """By token and vector of rows: start + the sum of products of these dwords' numbers."""
        dot = dot_signed_bytes if self.kind == SIGNED else dot_bytes
        sums = [[start] * VECTORS for start in starts]
        for d in dwords:
            ws = [load(self.b, self.at, VT(I8, 64), ROW_BYTES * d + 64 * r, 64) for r in range(VECTORS)]
            for i, dword in enumerate(self.of_tokens(64 * d, I32)):
                q = self.b.bitcast(simd.splat(self.b, dword, 16), VT(I8, 64))
                sums[i] = [dot(self.b, v, w, q) for v, w in zip(sums[i], ws, strict=True)]
        return sums


def _emit_sums(block: _Block, shifts: Value) -> list[list[Value]]:
    """The block's sums of products as integers, by token and vector of rows."""
    b, nothing = block.b, constant(I32, 16, 0)
    if block.kind in (PARTS, MINIMUM_PARTS):
        return _emit_sums_of_parts(block, shifts)
    starts = [nothing] * len(block.windows)
    if block.kind == PLAIN:
        starts = [b.shl(simd.splat(b, v, 16), shifts) for v in block.of_tokens(SUMS, I32)]
    return block.sums(starts, range(DWORDS))


def _emit_sums_of_parts(block: _Block, shifts: Value) -> list[list[Value]]:
    """The same, both parts of 16 numbers times their integer scales."""
    b, nothing = block.b, constant(I32, 16, 0)
    if block.kind == MINIMUM_PARTS:
        sums = [[nothing] * VECTORS for _ in block.windows]
    else:
        sums = [[b.shl(v, shifts) for v in row] for row in block.sums_of_pairs(1)]
    scales = [halves_of_pairs(b, pair) for pair in block.pairs(2 if block.kind == MINIMUM_PARTS else 1)]
    for i in (0, 1):
        half = block.sums([nothing] * len(block.windows), range(DWORDS // 2 * i, DWORDS // 2 * (i + 1)))
        for row, own in zip(sums, half, strict=True):
            row[:] = [b.add(v, b.mul(w, both[i])) for v, w, both in zip(row, own, scales, strict=True)]
    return sums


def _emit_scaled_sums(block: _Block, of_x: list[Value]) -> list[list[Value]]:
    """What the block's minima are multiplied by, by token and vector of rows; none without minima.

    Args:
        of_x: the tokens' scales, in all lanes.
    """
    b = block.b
    if block.kind == MINIMUM:
        return [[simd.splat(b, v, 16)] * VECTORS for v in block.of_tokens(SCALED_SUMS, F32)]
    if block.kind != MINIMUM_PARTS:
        return []
    sums = block.sums_of_pairs(3)
    return [[b.fmul(d, b.sitofp(v, VT(F32, 16))) for v in row] for d, row in zip(of_x, sums, strict=True)]


def _emit_block(block: _Block, shifts: Value, acc: list[list[Value]]) -> None:
    """Add a block times the tokens' numbers to their chains' cells."""
    b, sums = block.b, _emit_sums(block, shifts)
    of_x = [simd.splat(b, d, 16) for d in block.of_tokens(SCALES, F32)]
    scales, scaled_sums = block.of_rows(0, F32), _emit_scaled_sums(block, of_x)
    minima = block.of_rows(1, F32) if scaled_sums else []
    for i, cells in enumerate(acc):
        for r, cell in enumerate(cells):
            v = simd.fma(b, b.sitofp(sums[i][r], VT(F32, 16)), b.fmul(scales[r], of_x[i]), b.load(cell))
            b.store(simd.fma(b, minima[r], scaled_sums[i][r], v) if minima else v, cell)


def _emit_tile(
    b: Builder,
    kind: int,
    panel: Value,
    n_blocks: Value,
    xs: list[Value],
    shift: Value,
    chains: Value,
    out: Value,
) -> None:
    """out[column, row] of a panel and the packed vectors at xs; `chains` is memory for their sums."""
    block_bytes = ROW_BYTES * (DWORDS + n_factors(kind))
    n, shifts = len(xs), simd.splat(b, b.trunc(shift, I32), 16)
    few = b.icmp_signed("<=", n_blocks, I64(BLOCKS // 2))  # so that half of the chains stay 0
    with cgutils.for_range(b, b.select(few, I64(BLOCKS // 2), I64(BLOCKS))) as chain:
        group, j = b.lshr(chain.index, I64(2)), b.and_(chain.index, I64(3))
        lane_at = b.mul(b.add(b.mul(j, I64(4)), group), I64(4))
        acc = [[cgutils.alloca_once(b, VT(F32, 16)) for _ in range(VECTORS)] for _ in xs]
        for cell in (cell for column in acc for cell in column):
            b.store(constant(F32, 16, 0.0), cell)
        rounds = b.udiv(b.add(b.sub(n_blocks, chain.index), I64(BLOCKS - 1)), I64(BLOCKS))
        with cgutils.for_range(b, rounds) as loop:
            block = b.add(b.mul(loop.index, I64(BLOCKS)), chain.index)
            at = b.add(panel, b.mul(block, I64(block_bytes)))
            offset = b.mul(loop.index, I64(PACKED_WINDOW_BYTES))
            windows = [b.add(x, offset) for x in xs]
            for columns in [range(n)] if IS_WIDE else [range(c, c + 1) for c in range(n)]:
                some = _Block(b, kind, at, [windows[c] for c in columns], lane_at)
                _emit_block(some, shifts, [acc[c] for c in columns])
        to = b.add(chains, b.mul(chain.index, I64(n * ROW_BYTES)))
        for c in range(n):
            for r in range(VECTORS):
                simd.store(b, b.load(acc[c][r]), to, ROW_BYTES * c + 64 * r, 64)

    def fold(n_chains: int) -> None:
        with cgutils.for_range(b, I64(n * VECTORS)) as loop:
            at = b.add(chains, b.mul(loop.index, I64(64)))
            v = [load(b, at, VT(F32, 16), n * ROW_BYTES * i, 64) for i in range(n_chains)]
            while len(v) > 1:
                half = len(v) // 2
                v = [b.fadd(v[i], v[i + half]) for i in range(half)]
            simd.store(b, v[0], b.add(out, b.mul(loop.index, I64(64))), align=64)

    with b.if_else(few) as (then, otherwise):
        with then:
            fold(BLOCKS // 2)
        with otherwise:
            fold(BLOCKS)


@family({kind.type_id: sum_kind(kind) for kind in BLOCK_TYPES}, 6)
def _tile(b: Builder, kind: int, *arguments: Value) -> None:
    panel, n_blocks, xs, shift, chains, out = arguments
    columns = [load(b, xs, I64, 8 * c) for c in range(COLUMNS)]
    _emit_tile(b, kind, panel, n_blocks, columns, shift, chains, out)


@compiled
def mul_panels(op, first: int, last: int, n_tokens: int, x: int, y: int, y_stride: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """y[t, r] = w[r] . x[t] for rows first..last-1 and n_tokens tokens of a block type; x: packed.

    Args:
        scratch: `scratch_bytes(op.k)` of the thread's own memory, on a cache line.
    """
    columns, staged, panel, out = scratch + _COLUMNS, scratch + _STAGED, scratch + _PANEL, scratch + _OUT
    n_factors, n_blocks = _FACTORS[op.w_type], op.k // BLOCK
    window_bytes = BLOCKS * ROW_BYTES * (DWORDS + n_factors)
    for r in range(first, last, ROWS):
        n_rows = min(ROWS, last - r)
        for window in range((n_blocks + BLOCKS - 1) // BLOCKS):
            n_halves = 2 * min(GROUPS, (n_blocks - window * BLOCKS + 3) // 4)
            for v in range(VECTORS):
                n = max(1, n_rows - 16 * v)  # a vector without rows is decoded and never looked at
                row = op.w + min(r + 16 * v, last - 1) * op.w_stride
                _stage(op.w_type, row, op.w_stride, n, window, op.k, staged)
                _turn(0, staged, n_factors, n_halves, panel + window * window_bytes + 64 * v)
        for t in range(0, n_tokens, COLUMNS):
            n = min(COLUMNS, n_tokens - t)
            for c in range(COLUMNS):
                store_i64(columns + 8 * c, x + (t + min(c, n - 1)) * op.x_stride)
            _tile(op.w_type, panel, n_blocks, columns, _SHIFTS[op.w_type], scratch + _CHAINS, out)
            for c in range(n):
                elementwise.copy(out + c * ROW_BYTES, n_rows, y + (t + c) * y_stride + 4 * r)
