"""Prompts with float weights: slices of rows widened once for some tokens, and dot products in register tiles.

A lane of a vector is a chain of `float_sums.py`, so the sums are a row's own, bit for bit. The two vectors of
chains are done one after the other, so a slice is every second step of 16 numbers:

    panel   [part of a vector] [step] [ROWS] LANES float32
    sums    [vector of chains] [ROWS at a time] [token] [row] 16 float32

A panel stays in the first-level cache while some tokens' numbers pass, COLUMNS at a time; these and their sums stay
in the second-level cache while PASSING rows pass. Where vectors of the CPU have fewer than 16 lanes, the parts
of one follow one another over inputs that are in the first-level cache.

Measured choices: 8 rows by 3 tokens (4 by 3 of AVX2's 16 registers), since of what passes, three lines for 24
multiply-adds, a second-level cache gives no more. Lanes that are rows, as in `panels.py`, would need less, but a
transposed copy of the inputs for each chain, made anew by every thread.
"""

from numba.core import cgutils

from hotcold.kernels.cpu import rows, simd
from hotcold.kernels.cpu.compiled import compiled, family
from hotcold.kernels.cpu.counting import emit_count
from hotcold.kernels.cpu.float_sums import CHAINS, STEP, add_tail
from hotcold.kernels.cpu.simd import F32, I64, VT, Builder, Value, constant, load
from hotcold.kernels.cpu.weight_types import FLOAT_TYPES
from hotcold.kernels.cpu.weights import FloatType

_FEATURES = simd.target_features()
LANES = 16 if "avx512f" in _FEATURES else 8 if "avx" in _FEATURES else 4
ROWS, COLUMNS = 8 if LANES == 16 else 4, 3  # of a tile
SLICE = 32  # steps of a panel
PASSING, TOKENS = 32, 96  # rows and tokens whose sums are kept
ASKED = 4  # rows at most that a tile asks for: the next ROWS are spread over a pass

# this file's part of a thread's scratch memory, in bytes
_VECTOR = 4 * LANES
_PART = SLICE * ROWS * _VECTOR
_PARTS = STEP // LANES
_SUMS = _PARTS * _PART
_ROW_SUMS = TOKENS * ROWS * 4 * STEP
_CHAIN = PASSING // ROWS * _ROW_SUMS
SCRATCH_BYTES = _SUMS + CHAINS * _CHAIN

_TYPES = {kind.type_id: kind for kind in FLOAT_TYPES}
_ONE = dict.fromkeys(_TYPES, "floats")  # a kernel that all of them share


@family(_TYPES, 5)
def _widen_slice(b: Builder, kind: FloatType, *arguments: Value) -> None:
    """A panel of every second step of ROWS rows from w on; the last row stands in for missing ones."""
    w, stride, n_rows, n_steps, panel = arguments
    emit_count(b, kind, n_rows, b.mul(n_steps, I64(STEP)))
    last = b.sub(n_rows, I64(1))
    with cgutils.for_range(b, I64(ROWS)) as loop:
        r = b.select(b.icmp_signed("<", loop.index, last), loop.index, last)
        row, to = b.add(w, b.mul(stride, r)), b.add(panel, b.mul(loop.index, I64(_VECTOR)))
        with cgutils.for_range(b, n_steps) as steps:
            offset = b.mul(steps.index, I64(CHAINS * STEP * kind.type_size))
            v, at = kind.load16(b, b.add(row, offset)), b.add(to, b.mul(steps.index, I64(ROWS * _VECTOR)))
            for part in range(_PARTS):
                own = simd.shuffle(b, v, v, range(LANES * part, LANES * (part + 1)))
                simd.store(b, own, at, _PART * part, _VECTOR)


@family(_ONE, 10)
def _meet_tokens(b: Builder, _: str, *arguments: Value) -> None:
    """Add a panel's products with n tokens, whose first step is at x, to their sums, or begin these.

    Meanwhile the next ROWS rows, whose first step is at `later`, are asked for, each tile its share of them.
    """
    panel, n_steps, x, x_stride, n, sums, begins, later, stride, step_bytes = arguments
    last, is_first = b.sub(n, I64(1)), b.icmp_signed("!=", begins, I64(0))
    tiles = b.udiv(b.add(n, I64(COLUMNS - 1)), I64(COLUMNS))
    with cgutils.for_range(b, tiles) as loop:
        first = b.mul(loop.index, I64(COLUMNS))
        numbers = [b.add(first, I64(c)) for c in range(COLUMNS)]
        numbers = [b.select(b.icmp_signed("<", c, last), c, last) for c in numbers]
        xs = [b.add(x, b.mul(c, x_stride)) for c in numbers]
        to = b.add(sums, b.mul(first, I64(4 * STEP * ROWS)))
        share, past = (b.udiv(b.mul(i, I64(ROWS)), tiles) for i in (loop.index, b.add(loop.index, I64(1))))
        asked = [b.add(share, I64(i)) for i in range(ASKED)]
        asked = [b.select(b.icmp_signed("<", r, past), r, share) for r in asked]
        ahead = [b.add(later, b.mul(stride, r)) for r in asked]
        for part in range(_PARTS):
            at = [b.add(a, I64(_VECTOR * part)) for a in (to, *xs)]
            _emit_tile(
                b,
                b.add(panel, I64(_PART * part)),
                n_steps,
                at[1:],
                at[0],
                is_first,
                [] if part else ahead,
                step_bytes,
            )


def _emit_tile(
    b: Builder,
    panel: Value,
    n_steps: Value,
    xs: list[Value],
    sums: Value,
    is_first: Value,
    ahead: list[Value],
    step_bytes: Value,
) -> None:
    """One part of the vectors of ROWS rows and COLUMNS tokens; `ahead`: what is asked for, step by step."""
    kind = VT(F32, LANES)
    cells = [[cgutils.alloca_once(b, kind) for _ in range(ROWS)] for _ in xs]
    flat = [(cell, 4 * STEP * i) for i, cell in enumerate(cell for column in cells for cell in column)]
    with b.if_else(is_first) as (then, otherwise):
        with then:
            for cell, _ in flat:
                b.store(constant(F32, LANES, 0.0), cell)
        with otherwise:
            for cell, place in flat:
                b.store(load(b, sums, kind, place, _VECTOR), cell)
    with cgutils.for_range(b, n_steps) as loop:
        at, offset = b.mul(loop.index, I64(ROWS * _VECTOR)), b.mul(loop.index, I64(4 * STEP * CHAINS))
        for row in ahead:
            simd.emit_prefetch(b, b.add(row, b.mul(loop.index, step_bytes)), 2)
        vectors = [load(b, b.add(x, offset), kind, align=4) for x in xs]
        for r in range(ROWS):
            w = load(b, b.add(panel, at), kind, _VECTOR * r, _VECTOR)
            for v, column in zip(vectors, cells, strict=True):
                b.store(simd.fma(b, w, v, b.load(column[r])), column[r])
    for cell, place in flat:
        simd.store(b, b.load(cell), sums, place, _VECTOR)


@family(_ONE, 5)
def _fold_sums(b: Builder, _: str, *arguments: Value) -> None:
    """y[t, r] = both vectors of sums of n tokens and n_rows rows, added and folded, 16 at a time."""
    sums, n, n_rows, y, y_stride = arguments
    is_whole = b.icmp_signed("==", n_rows, I64(ROWS))
    room, at_once = simd.room(b, VT(F32, 16)), 16 // ROWS
    with cgutils.for_range(b, b.udiv(b.add(n, I64(at_once - 1)), I64(at_once))) as loop:
        first = b.mul(loop.index, I64(at_once))
        at = b.add(sums, b.mul(first, I64(4 * STEP * ROWS)))
        both = [[load(b, at, VT(F32, 16), _CHAIN * c + 64 * i, 64) for i in range(16)] for c in range(CHAINS)]
        dots = simd.folded16(b, [b.fadd(*pair) for pair in zip(*both, strict=True)])
        simd.store(b, dots, room, align=64)
        for i in range(at_once):
            t = b.add(first, I64(i))
            with b.if_then(b.icmp_signed("<", t, n)):
                to = b.add(y, b.mul(t, y_stride))
                with b.if_else(is_whole) as (then, otherwise):
                    with then:
                        own = simd.shuffle(b, dots, dots, range(ROWS * i, ROWS * (i + 1)))
                        simd.store(b, own, to, align=4)
                    with otherwise, cgutils.for_range(b, n_rows) as rows_left:
                        offset = b.mul(rows_left.index, I64(4))
                        dot = load(b, b.add(room, offset), F32, 4 * ROWS * i, 4)
                        simd.store(b, dot, b.add(to, offset), align=4)


@family(_TYPES, 9)
def _add_tails(b: Builder, kind: FloatType, *arguments: Value) -> None:
    """Add to y[t, r] the products of the last n_left numbers, which begin at w and x, one by one."""
    w, stride, n_rows, x, x_stride, n, n_left, y, y_stride = arguments
    with cgutils.for_range(b, n) as tokens, cgutils.for_range(b, n_rows) as loop:
        row, numbers = b.add(w, b.mul(loop.index, stride)), b.add(x, b.mul(tokens.index, x_stride))
        to = b.add(b.add(y, b.mul(tokens.index, y_stride)), b.mul(loop.index, I64(4)))
        cell = cgutils.alloca_once(b, F32)
        b.store(load(b, to, F32, align=4), cell)
        add_tail(b, kind, [row], [numbers], n_left, [[cell]])
        simd.store(b, b.load(cell), to, align=4)


@compiled
def mul_tiles(op, first: int, last: int, n_tokens: int, x: int, y: int, y_stride: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """y[t, r] = w[r] . x[t] for rows first..last-1 and n_tokens tokens of a float type.

    Args:
        scratch: SCRATCH_BYTES of the thread's own memory, on a cache line.
    """
    parts = (n_tokens + TOKENS - 1) // TOKENS
    at_once = ((n_tokens + parts - 1) // parts + COLUMNS - 1) // COLUMNS * COLUMNS
    for r in range(first, last, PASSING):
        for t in range(0, n_tokens, at_once):
            n, to = min(at_once, n_tokens - t), y + t * y_stride + 4 * r
            _passing_rows(op, r, min(PASSING, last - r), n, x + t * op.x_stride, to, y_stride, scratch)


@compiled
def _passing_rows(op, r: int, n_rows: int, n: int, x: int, y: int, y_stride: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """y[t, i] = w[r + i] . x[t] for at most PASSING rows and TOKENS tokens."""
    whole, size, w = op.k // STEP, rows.row_bytes_of_float(op.w_type), op.w + r * op.w_stride
    for chain in range(CHAINS):
        n_steps = (whole + CHAINS - 1 - chain) // CHAINS
        slices = max(1, (n_steps + SLICE - 1) // SLICE)
        for s in range(slices):
            begin, end = n_steps * s // slices, n_steps * (s + 1) // slices
            column = STEP * (CHAINS * begin + chain)
            for i in range(0, n_rows, ROWS):
                row, sums = w + i * op.w_stride + size * column, scratch + _SUMS + chain * _CHAIN
                sums += i // ROWS * _ROW_SUMS
                _widen_slice(op.w_type, row, op.w_stride, min(ROWS, n_rows - i), end - begin, scratch)
                _meet_tokens(
                    op.w_type,
                    scratch,
                    end - begin,
                    x + 4 * column,
                    op.x_stride,
                    n,
                    sums,
                    int(s == 0),
                    row + ROWS * op.w_stride,
                    op.w_stride,
                    CHAINS * STEP * size,
                )
    for i in range(0, n_rows, ROWS):
        sums = scratch + _SUMS + i // ROWS * _ROW_SUMS
        _fold_sums(op.w_type, sums, n, min(ROWS, n_rows - i), y + 4 * i, y_stride)
    if op.k % STEP:
        done = whole * STEP
        _add_tails(
            op.w_type,
            w + size * done,
            op.w_stride,
            n_rows,
            x + 4 * done,
            op.x_stride,
            n,
            op.k - done,
            y,
            y_stride,
        )
