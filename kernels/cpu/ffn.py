"""The sparse FFN of a ReLU model, gated or not, of one token: only rows of neurons that fire are read."""

from hotcold.kernels.cpu import elementwise, operations, rows
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.ffn_scratch import ADDRESSES, AHEAD, FACTORS, GATES, LISTED, LIVE, UPS
from hotcold.kernels.cpu.operations import load_f32, load_i64, store_f32, store_i64
from hotcold.kernels.cpu.program import GELU_ACTIVATION, RELU_BOTH_ACTIVATION, SILU_ACTIVATION
from hotcold.kernels.cpu.row_lists import (
    WORD,
    first_at_least,
    first_bits,
    listed_row,
    prefetch_row,
    rows_ahead,
)
from hotcold.kernels.cpu.rows import ROWS


@compiled
def first_of_piece(op, piece: int) -> int:  # type: ignore[no-untyped-def]
    """The first row of a piece of op.chunks (see `order_of_sums.rows_in_order`)."""
    return op.n_rows * piece // op.chunks


@compiled
def is_smooth(activation: int) -> bool:
    """Whether it has no zeros of its own, so that thresholds say which neurons matter."""
    return activation == SILU_ACTIVATION or activation == GELU_ACTIVATION


@compiled
def ffn_pieces(op, least: int, first: int, last: int, scratch: int) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """For pieces first..last-1: sums of relu(gate x) (up z) down_t over their listed rows.

    Gates are read, then `up` and `down_t` only where the gate is positive, unless op.skip is 0, which reads
    all. While a row is worked on, one of the same matrix some rows ahead is asked for. Without a gate (op.w1
    is 0) op.w is `up`, op.z its bias or 0, and the sum is of relu(up x + bias) down_t. With silu or gelu in
    place of relu, rows with |act(gate x)| below their number at `least` are left out; 0 for none.

    Returns:
        how many rows are listed, and how many have a positive gate, or `up` without one, or were all read.
    """
    live, gates = scratch + LIVE, scratch + GATES
    n = load_i64(op.n_listed) if op.listed else op.n_rows
    begin = first_at_least(op.listed, n, first_of_piece(op, first))
    end = first_at_least(op.listed, n, first_of_piece(op, last))
    for piece in range(first, last):
        elementwise.clear(op.scratch + piece * op.scratch_stride, op.k)
    total, piece = 0, first
    passes = (end - begin + LISTED - 1) // LISTED
    for p in range(passes):
        start = begin + (end - begin) * p // passes
        stop = begin + (end - begin) * (p + 1) // passes
        n_live = _gates(op, least, start, stop, live, gates)
        total += n_live
        if op.w1 != 0:
            _ask_for(op.w1, op.w1_stride, live, min(n_live, rows_ahead(op.w1_stride)))
            _ask_for(op.w2, op.w2_stride, live, min(n_live, ROWS))
            n_live = _times_up(op, live, gates, n_live, scratch + UPS)
        else:
            _ask_for(op.w2, op.w2_stride, live, min(n_live, ROWS))
        i = 0
        while i < n_live:
            while load_i64(live + 8 * i) >= first_of_piece(op, piece + 1):
                piece += 1
            j, after = i + 1, first_of_piece(op, piece + 1)
            while j < n_live and load_i64(live + 8 * j) < after:
                j += 1
            acc = op.scratch + piece * op.scratch_stride
            where = live + 8 * i, gates + 4 * i
            add_listed(op.w2_type, op.w2, op.w2_stride, where[0], where[1], j - i, 0, op.k, scratch, acc)
            i = j
    return end - begin, total


@compiled
def _gates(op, least: int, start: int, stop: int, live: int, gates: int) -> int:  # type: ignore[no-untyped-def]
    """List those of the rows at start..stop-1 of the list that go on, with their gates; how many."""
    n = stop - start
    if op.listed:
        listed = op.listed + 8 * start
        rows.dot_listed(op.w_type, op.w, op.w_stride, listed, n, op.x, op.k, rows_ahead(op.w_stride), gates)
        _activate_listed(op, least, listed, n, gates)
    else:
        w = op.w + start * op.w_stride
        rows.dot_rows(op.w_type, w, op.w_stride, n, op.x, op.k, rows.AHEAD, gates)
        _activate_run(op, least, start, n, gates)
    kept, all_go_on = 0, not is_smooth(op.activation) and op.skip == 0
    for first in range(0, n, WORD):
        word = first_bits(min(WORD, n - first))
        if not all_go_on:
            word &= operations.word_not_zero(gates + 4 * first)
        while word != 0:
            i = first + operations.lowest_bit(word)
            word &= word - 1
            store_i64(live + 8 * kept, listed_row(op.listed, start + i))
            store_f32(gates + 4 * kept, load_f32(gates + 4 * i))
            kept += 1
    return kept


@compiled
def _activate_run(op, least: int, start: int, n: int, gates: int) -> None:  # type: ignore[no-untyped-def]
    """The activation of n gates, those of rows from `start` on, plus their biases; 0 for neurons left out."""
    if op.w1 == 0 and op.z != 0:
        elementwise.add(gates, op.z + 4 * start, n, gates)
    if is_smooth(op.activation):
        elementwise.keep_large(gates, least + 4 * start if least else 0, n, op.activation, gates)
    else:
        elementwise.relu(gates, n, gates)


@compiled
def _activate_listed(op, least: int, listed: int, n: int, gates: int) -> None:  # type: ignore[no-untyped-def]
    """The same of n listed rows."""
    zero, smooth = operations.to_f32(0.0), is_smooth(op.activation)
    if not smooth and (op.w1 != 0 or op.z == 0):
        elementwise.relu(gates, n, gates)
        return
    for i in range(n):
        r, g = load_i64(listed + 8 * i), load_f32(gates + 4 * i)
        if smooth:
            g = elementwise.large(g, load_f32(least + 4 * r) if least else zero, op.activation)
        else:
            g = max(g + load_f32(op.z + 4 * r), zero)
        store_f32(gates + 4 * i, g)


@compiled
def _times_up(op, live: int, gates: int, n: int, ups: int) -> int:  # type: ignore[no-untyped-def]
    """gates *= up x for the n rows listed at `live`; how many stay listed.

    Where `up` has a ReLU too, neurons without a positive one leave the list.
    """
    ahead = max(2, rows_ahead(op.w1_stride) // 2)  # nearer than gates, of which fewer are listed
    rows.dot_listed(op.w1_type, op.w1, op.w1_stride, live, n, op.z, op.k, ahead, ups)
    kept = 0
    for i in range(n):
        u = load_f32(ups + 4 * i)
        if op.activation == RELU_BOTH_ACTIVATION and not u > 0:
            continue
        store_i64(live + 8 * kept, load_i64(live + 8 * i))
        store_f32(gates + 4 * kept, load_f32(gates + 4 * i) * u)
        kept += 1
    return kept


@compiled
def _ask_for(w: int, stride: int, live: int, n: int) -> None:
    """Ask for the first of n listed rows, before they are what a pass begins with."""
    for i in range(n):
        prefetch_row(w + load_i64(live + 8 * i) * stride, stride)


@compiled
def add_listed(
    type_id: int,
    w: int,
    stride: int,
    live: int,
    coefficients: int,
    n: int,
    first: int,
    last: int,
    scratch: int,
    acc: int,
) -> None:
    """acc[first:last] += sum of coefficient * row over the n rows listed at `live`, four at a time.

    The last row stands in, times 0, for those that the last four lack.
    """
    addresses, ahead, factors = scratch + ADDRESSES, scratch + AHEAD, scratch + FACTORS
    if n == 0:
        return
    for i in range(0, n, ROWS):
        for j in range(ROWS):
            r = load_i64(live + 8 * min(i + j, n - 1))
            later = load_i64(live + 8 * min(i + j + ROWS, n - 1))
            store_i64(addresses + 8 * j, w + r * stride)
            store_i64(ahead + 8 * j, (later - r) * stride)
            factor = load_f32(coefficients + 4 * (i + j)) if i + j < n else operations.to_f32(0.0)
            store_f32(factors + 4 * j, factor)
        rows.add_rows(type_id, acc, addresses, factors, first, last, ahead)
