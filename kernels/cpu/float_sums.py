"""Dot products of float rows: the one order of sums of `order_of_sums.dots_of_floats_in_order`, as IR.

Steps of 16 numbers go to two chains in turns, whose lanes are added and folded by halves; the last numbers
of a row that fill no step are added one by one. One emitter writes the loop for a row and one vector and for a row
and four; `float_tiles.py` has the same sums in another shape.
"""

from collections.abc import Callable

import numpy as np
from numba.core import cgutils

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.matrix_rows import MatrixRows
from hotcold.kernels.cpu.simd import F32, I64, VT, Builder, Value, constant
from hotcold.kernels.cpu.weights import FloatType

STEP = 16  # numbers
CHAINS = 2
UNROLL = 4  # steps of a row's loop body
COLUMNS = 4  # inputs that meet a row at once


def _emit_dots(
    b: Builder,
    kind: FloatType,
    rows: list[Value],
    xs: list[Value],
    k: Value,
    unroll: int,
    ahead: Value | None = None,
) -> list[list[Value]]:
    """Dot products of every row with every input along k, in the one order of sums.

    Step i adds to chain i mod CHAINS.

    Args:
        rows, xs: addresses. unroll: steps a loop body, a multiple of CHAINS.
        ahead: bytes to what is asked for meanwhile, or None.

    Returns:
        dots[row][column], floats.
    """
    chains = [
        [[cgutils.alloca_once_value(b, constant(F32, 16, 0.0)) for _ in xs] for _ in rows]
        for _ in range(CHAINS)
    ]
    for cell in (cell for chain in chains for row in chain for cell in row):
        b.store(constant(F32, 16, 0.0), cell)

    def step(i: Value, chain: int) -> None:
        weights = [kind.load16(b, b.add(row, b.mul(i, I64(STEP * kind.type_size)))) for row in rows]
        for c, x in enumerate(xs):
            numbers = simd.load(b, b.add(x, b.mul(i, I64(4 * STEP))), VT(F32, STEP))
            for r, w in enumerate(weights):
                cell = chains[chain][r][c]
                b.store(simd.fma(b, w, numbers, b.load(cell)), cell)

    whole = b.udiv(k, I64(STEP))
    _emit_steps(b, kind, rows, whole, unroll, ahead, step)

    dots: list[list[Value]] = []
    for r in range(len(rows)):
        dots.append([])
        for c in range(len(xs)):
            total = b.load(chains[0][r][c])
            for chain in range(1, CHAINS):
                total = b.fadd(total, b.load(chains[chain][r][c]))
            dots[r].append(simd.sum_lanes(b, total))
    return _with_tails(b, kind, rows, xs, k, dots)


def _emit_steps(
    b: Builder,
    kind: FloatType,
    rows: list[Value],
    n: Value,
    unroll: int,
    ahead: Value | None,
    step: Callable[[Value, int], None],
) -> None:
    """n steps, `unroll` a loop body, the rest one round of chains at a time, the very last alone."""
    whole = b.udiv(n, I64(unroll))
    with cgutils.for_range(b, whole) as loop:
        n_bytes = unroll * STEP * kind.type_size
        for row in rows:
            if ahead is not None:
                at = b.add(row, b.mul(loop.index, I64(n_bytes)))
                simd.emit_prefetches(b, b.add(at, ahead), n_bytes)
        for i in range(unroll):
            step(b.add(b.mul(loop.index, I64(unroll)), I64(i)), i % CHAINS)
    done = b.mul(whole, I64(unroll))
    with cgutils.for_range(b, b.udiv(b.sub(n, done), I64(CHAINS))) as loop:
        for i in range(CHAINS):
            step(b.add(b.add(done, b.mul(loop.index, I64(CHAINS))), I64(i)), i)
    rounds = b.mul(b.udiv(n, I64(CHAINS)), I64(CHAINS))
    with cgutils.if_likely(b, b.icmp_signed("<", rounds, n)):  # of two chains, at most one step is left
        step(rounds, 0)


def _with_tails(
    b: Builder, kind: FloatType, rows: list[Value], xs: list[Value], k: Value, dots: list[list[Value]]
) -> list[list[Value]]:
    """Add the last k mod 16 products, one by one."""
    cells = [[cgutils.alloca_once_value(b, dot) for dot in row] for row in dots]
    for r, c in np.ndindex(len(rows), len(xs)):
        b.store(dots[r][c], cells[r][c])
    start = b.and_(k, I64(-STEP))
    last_rows = [b.add(row, b.mul(start, I64(kind.type_size))) for row in rows]
    last_xs = [b.add(x, b.mul(start, I64(4))) for x in xs]
    add_tail(b, kind, last_rows, last_xs, b.sub(k, start), cells)
    return [[b.load(cell) for cell in row] for row in cells]


def add_tail(
    b: Builder, kind: FloatType, rows: list[Value], xs: list[Value], n: Value, cells: list[list[Value]]
) -> None:
    """Add the products of n numbers of every row and input, one by one, to cells[row][input]."""
    with cgutils.for_range(b, n) as loop:
        for r, row in enumerate(rows):
            w = kind.load1(b, b.add(row, b.mul(loop.index, I64(kind.type_size))))
            for c, x in enumerate(xs):
                number = simd.load(b, b.add(x, b.mul(loop.index, I64(4))), F32)
                b.store(simd.fma(b, w, number, b.load(cells[r][c])), cells[r][c])


def emit_rows(b: Builder, kind: FloatType, rows: MatrixRows, x: Value, out: Value) -> None:
    """out[i] = the i-th row . x."""
    with cgutils.for_range(b, rows.n_rows) as loop:
        row, ahead = rows.row(b, loop.index)
        dot = _emit_dots(b, kind, [row], [x], rows.k, UNROLL, ahead)[0][0]
        simd.store(b, dot, b.add(out, b.mul(loop.index, I64(4))), align=4)


def emit_strips(
    b: Builder, kind: FloatType, rows: MatrixRows, xs: Value, n: Value, out: Value, out_stride: Value
) -> None:
    """out[c, r] = row r . x[c] for n columns whose addresses lie at xs; the last stands in for missing ones."""
    last = b.sub(n, I64(1))
    with cgutils.for_range(b, rows.n_rows) as loop:
        (row, ahead), to = rows.row(b, loop.index), b.add(out, b.mul(loop.index, I64(4)))
        with cgutils.for_range(b, b.udiv(b.add(n, I64(COLUMNS - 1)), I64(COLUMNS))) as part:
            first = b.mul(part.index, I64(COLUMNS))
            numbers = [b.add(first, I64(i)) for i in range(COLUMNS)]
            numbers = [b.select(b.icmp_signed("<", c, last), c, last) for c in numbers]
            columns = [simd.load(b, b.add(xs, b.mul(c, I64(8))), I64, align=8) for c in numbers]
            # every number is stored, those of stand-ins in the place of the last
            dots = _emit_dots(b, kind, [row], columns, rows.k, CHAINS, ahead)[0]
            for c, dot in zip(numbers, dots, strict=True):
                simd.store(b, dot, b.add(to, b.mul(c, out_stride)), align=4)
