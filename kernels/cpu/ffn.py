"""The sparse FFN of a ReLU model, gated or not: only rows of neurons that fire are read."""

from numba import njit

from hotcold.kernels.cpu import elementwise, rows, simd
from hotcold.kernels.cpu.program import RELU_BOTH_ACTIVATION
from hotcold.kernels.cpu.rows import MAX_COLUMNS, ROWS, dot_row
from hotcold.kernels.cpu.simd import JIT, load_f32, load_i64, store_f32, store_i64
from hotcold.kernels.cpu.weights import BLOCK

LISTED = 120  # most listed rows between the gate, up and down passes of a piece
WIDE_COLUMNS = 4096  # of a row that is widened to float32, in the room for scales
SCALED_COLUMNS = rows.SCALES_BYTES // 4 * BLOCK  # whose scales `add_rows` has room for

WORD = 64  # rows whose states a word of bits holds
DOWN_COLUMNS = 256  # of a batch's sums that are made at once
DOWN_TOKENS = 64  # likewise

# this file's part of a thread's scratch memory, in bytes
_LIVE, _GATES, _ADDRESSES, _AHEAD = 0, 1024, 2048, 2112
_COLUMNS, _DOTS, _TOKENS, _ROW_WORDS, _SCALES = 2176, 2304, 2368, 2560, 4096
_WORDS, _WIDE = 4096, 8192
_SUMS = _WIDE + 4 * WORD * DOWN_COLUMNS
SCRATCH_BYTES = _SUMS + 4 * DOWN_TOKENS * DOWN_COLUMNS


@njit(**JIT)  # type: ignore[untyped-decorator]
def listed_row(listed: int, i: int) -> int:
    """The i-th row of a list of int64 at `listed`; without a list (0) row i itself."""
    return load_i64(listed + 8 * i) if listed else i


@njit(**JIT)  # type: ignore[untyped-decorator]
def first_at_least(listed: int, n: int, row: int) -> int:
    """How many of the n rows of a list come before a row; the list ascends, or is 0 for all rows."""
    if not listed:
        return row
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        if load_i64(listed + 8 * middle) < row:
            low = middle + 1
        else:
            high = middle
    return low


@njit(**JIT)  # type: ignore[untyped-decorator]
def rows_ahead(stride: int) -> int:
    """How many listed rows ahead the prefetch runs: about AHEAD bytes, at least two rows."""
    return max(2, rows.AHEAD // stride)


@njit(**JIT)  # type: ignore[untyped-decorator]
def prefetch_row(at: int, n_bytes: int) -> None:
    """Ask for all lines of a row that the next pass begins with."""
    for line in range(0, n_bytes, 64):
        simd.prefetch(at + line)


@njit(**JIT)  # type: ignore[untyped-decorator]
def ffn_piece(op, listed: int, first: int, last: int, scratch: int, acc: int) -> int:  # type: ignore[no-untyped-def]
    """acc[:k] = sum of relu(gate x) (up z) down_t over listed rows first..last-1.

    Gates of all of them are read, `up` and `down_t` only where the gate is positive, unless op.p2 is
    0, which reads all. The next rows of a list are prefetched while one is worked on. Without a gate
    (op.w1 is 0) op.w is `up`, op.z its bias or 0, and the sum is of relu(up x + bias) down_t.

    Returns:
        the number of neurons whose gate, or `up` without one, was positive or all were read.
    """
    live, gates = scratch + _LIVE, scratch + _GATES
    gated = op.w1 != 0
    second, second_stride = (op.w1, op.w1_stride) if gated else (op.w2, op.w2_stride)
    far, far_second = rows_ahead(op.w_stride), rows_ahead(second_stride)
    elementwise.clear(acc, op.k)
    total = 0
    passes = (last - first + LISTED - 1) // LISTED
    for p in range(passes):
        start = first + (last - first) * p // passes
        end = first + (last - first) * (p + 1) // passes
        n = 0
        for i in range(start, end):
            r = listed_row(listed, i)
            ahead = rows.AHEAD
            if listed:
                ahead = (listed_row(listed, min(i + far, last - 1)) - r) * op.w_stride
            g = dot_row(op.w_type, op.w + r * op.w_stride, op.x, op.k, ahead)
            if not gated and op.z != 0:
                g += load_f32(op.z + 4 * r)
            if g > 0 or op.p2 == 0:
                store_i64(live + 8 * n, r)
                store_f32(gates + 4 * n, max(g, simd.to_f32(0.0)))
                if n < far_second:
                    prefetch_row(second + r * second_stride, second_stride)
                n += 1
        total += n
        if gated:
            n = _times_up(op, live, gates, n, far_second)
        add_listed(op.w2_type, op.w2, op.w2_stride, live, gates, n, 0, op.k, scratch, acc)
    return total


@njit(**JIT)  # type: ignore[untyped-decorator]
def _times_up(op, live: int, gates: int, n: int, far: int) -> int:  # type: ignore[no-untyped-def]
    """gates *= up x for the n rows listed at `live`; how many stay listed.

    Where `up` has a ReLU too, neurons without a positive one leave the list.
    """
    kept = 0
    for i in range(n):
        r = load_i64(live + 8 * i)
        ahead = (load_i64(live + 8 * min(i + far, n - 1)) - r) * op.w1_stride
        u = dot_row(op.w1_type, op.w1 + r * op.w1_stride, op.z, op.k, ahead)
        if op.p3 == RELU_BOTH_ACTIVATION and not u > 0:
            continue
        store_i64(live + 8 * kept, r)
        store_f32(gates + 4 * kept, load_f32(gates + 4 * i) * u)
        if kept < ROWS:
            prefetch_row(op.w2 + r * op.w2_stride, op.w2_stride)
        kept += 1
    return kept


@njit(**JIT)  # type: ignore[untyped-decorator]
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

    The list and its coefficients have room for ROWS - 1 more: the last four are filled up with the
    last row and 0.
    """
    addresses, ahead = scratch + _ADDRESSES, scratch + _AHEAD
    if n == 0:
        return
    if not rows.is_in_sparse_ffn(type_id):
        _add_widened(type_id, w, stride, live, coefficients, n, first, last, scratch + _SCALES, acc)
        return
    padded = (n + ROWS - 1) // ROWS * ROWS
    for i in range(n, padded):
        store_i64(live + 8 * i, load_i64(live + 8 * (n - 1)))
        store_f32(coefficients + 4 * i, simd.to_f32(0.0))
    for i in range(0, padded, ROWS):
        for j in range(ROWS):
            r = load_i64(live + 8 * (i + j))
            later = load_i64(live + 8 * min(i + j + ROWS, padded - 1))
            store_i64(addresses + 8 * j, w + r * stride)
            store_i64(ahead + 8 * j, (later - r) * stride)
        for begin in range(first, last, SCALED_COLUMNS):
            end = min(begin + SCALED_COLUMNS, last)
            at = coefficients + 4 * i
            rows.add_rows(type_id, acc, addresses, at, begin, end, ahead, scratch + _SCALES)


@njit(**JIT)  # type: ignore[untyped-decorator]
def _add_widened(
    type_id: int,
    w: int,
    stride: int,
    live: int,
    coefficients: int,
    n: int,
    first: int,
    last: int,
    wide: int,
    acc: int,
) -> None:
    """`add_listed` for types that have no sums of rows of their own: each row as float32 first.

    Args:
        wide: address of WIDE_COLUMNS float32 of the thread's own memory.
    """
    for i in range(n):
        row = w + load_i64(live + 8 * i) * stride
        factor = simd.splat16(load_f32(coefficients + 4 * i))
        for begin in range(first, last, WIDE_COLUMNS):
            n_columns = min(WIDE_COLUMNS, last - begin)
            rows.widen_row(type_id, row + rows.column_offset(type_id, begin), n_columns, wide)
            for at in range(0, 4 * n_columns, 64):
                to = acc + 4 * begin + at
                simd.store16(to, simd.fma16(factor, simd.load16(wide + at), simd.load16(to)))


@njit(**JIT)  # type: ignore[untyped-decorator]
def bit(bits: int, i: int) -> bool:
    """Bit i of the mask of 64-bit words at `bits`."""
    return (load_i64(bits + (i >> 6 << 3)) >> (i & 63)) & 1 == 1


@njit(**JIT)  # type: ignore[untyped-decorator]
def gate_rows(op, first: int, last: int, n_tokens: int, scratch: int) -> int:  # type: ignore[no-untyped-def]
    """y[t, r] = w[r] . x[t] for the tokens whose mask has bit r, 0 for the others; how many have it."""
    return _wanted_rows(op, first, last, n_tokens, scratch, False)


@njit(**JIT)  # type: ignore[untyped-decorator]
def up_rows(op, first: int, last: int, n_tokens: int, scratch: int) -> int:  # type: ignore[no-untyped-def]
    """y[t, r] = z[t, r] (w[r] . x[t]) for the tokens with z[t, r] > 0, 0 for the others; how many."""
    return _wanted_rows(op, first, last, n_tokens, scratch, True)


@njit(**JIT)  # type: ignore[untyped-decorator]
def _wanted_rows(op, first: int, last: int, n_tokens: int, scratch: int, times_gate: bool) -> int:  # type: ignore[no-untyped-def]
    """`up_rows` or `gate_rows` of rows first..last-1: each is read once for 64 tokens, and decoded for 16."""
    total, start = 0, first
    while start < last:
        end = min(last, (start // WORD + 1) * WORD)  # of a word of the mask
        for t in range(0, n_tokens, WORD):
            stop = min(t + WORD, n_tokens)
            union = 0
            for i in range(end - start):
                store_i64(scratch + _ROW_WORDS + 8 * i, 0)
            for token in range(t, stop):
                word = _wanted_word(op, start, end, token, times_gate)
                union |= word
                elementwise.clear(op.y + token * op.y_stride + 4 * start, end - start)
                while word != 0:
                    at = scratch + _ROW_WORDS + 8 * simd.lowest_bit(word)
                    word &= word - 1
                    store_i64(at, load_i64(at) | 1 << (token - t))
                    total += 1
            n = list_word(union, start, scratch + _LIVE, 0)
            far = rows_ahead(op.w_stride)
            for i in range(n):
                r = load_i64(scratch + _LIVE + 8 * i)
                ahead = (load_i64(scratch + _LIVE + 8 * min(i + far, n - 1)) - r) * op.w_stride
                word = load_i64(scratch + _ROW_WORDS + 8 * (r - start))
                _row_for_tokens(op, r, t, word, ahead, scratch, times_gate)
        start = end
    return total


@njit(**JIT)  # type: ignore[untyped-decorator]
def _wanted_word(op, start: int, end: int, t: int, times_gate: bool) -> int:  # type: ignore[no-untyped-def]
    """Which of rows start..end-1, which share a word of the mask, token t wants."""
    if not times_gate:
        word = load_i64(op.z + t * op.z_stride + start // WORD * 8)
        word = (
            (word >> (start % WORD))
            if start % WORD == 0
            else (word >> (start % WORD)) & ~(-1 << (WORD - start % WORD))
        )
        return word if end - start == WORD else word & ~(-1 << (end - start))
    gates = op.z + t * op.z_stride + 4 * start
    if end - start == WORD:
        return simd.word_positive(gates)
    word = 0
    for i in range(end - start):
        word |= int(load_f32(gates + 4 * i) > 0) << i
    return word


@njit(**JIT)  # type: ignore[untyped-decorator]
def _row_for_tokens(  # type: ignore[no-untyped-def]
    op, r: int, first: int, word: int, ahead: int, scratch: int, times_gate: bool
) -> None:
    """The row's products with the tokens first + i for every bit i of a word, as many as go at once."""
    columns, tokens, dots = scratch + _COLUMNS, scratch + _TOKENS, scratch + _DOTS
    w = op.w + r * op.w_stride
    while word != 0:
        n = 0
        while word != 0 and n < MAX_COLUMNS:
            t = first + simd.lowest_bit(word)
            word &= word - 1
            store_i64(tokens + 8 * n, t)
            store_i64(columns + 8 * n, op.x + t * op.x_stride)
            n += 1
        if n == 1:
            store_f32(dots, dot_row(op.w_type, w, load_i64(columns), op.k, ahead))
        else:
            rows.dot_strips(op.w_type, w, 0, 1, columns, n, op.k, ahead, dots, 4)
        for j in range(n):
            t = load_i64(tokens + 8 * j)
            v = load_f32(dots + 4 * j)
            if times_gate:
                if op.p3 == RELU_BOTH_ACTIVATION:
                    v = max(v, simd.to_f32(0.0))
                v *= load_f32(op.z + t * op.z_stride + 4 * r)
            store_f32(op.y + t * op.y_stride + 4 * r, v)


@njit(**JIT)  # type: ignore[untyped-decorator]
def fire_rows(op, first: int, last: int, n_tokens: int) -> int:  # type: ignore[no-untyped-def]
    """y[t, r] = max(x[t, r] + bias[r], 0) where the mask has bit r, else 0; how many are positive.

    Args:
        op: w is the address of the bias, z of the mask's bits; 0 for none, which means all bits.
    """
    n, zero = 0, simd.to_f32(0.0)
    for t in range(n_tokens):
        x, y, bits = op.x + t * op.x_stride, op.y + t * op.y_stride, op.z + t * op.z_stride
        for r in range(first, last):
            v = load_f32(x + 4 * r)
            if op.w != 0:
                v += load_f32(op.w + 4 * r)
            fires = v > 0 and (op.z == 0 or bit(bits, r))
            store_f32(y + 4 * r, v if fires else zero)
            n += int(fires)
    return n


@njit(**JIT)  # type: ignore[untyped-decorator]
def not_zero(x: int, n: int) -> int:
    """Which of n floats, at most 64, are not 0, as bits."""
    if n == WORD:
        return simd.word_not_zero(x)
    word = 0
    for i in range(n):
        word |= int(load_f32(x + 4 * i) != 0) << i
    return word


@njit(**JIT)  # type: ignore[untyped-decorator]
def down_rows(op, first: int, last: int, n_tokens: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """y[t, first:last] = sum_r x[t, r] w[r, first:last] for every token; rows with x = 0 are not read.

    A row is widened once for all tokens that want it. The sums are those of op.p0 pieces, as in
    `ffn_piece` and REDUCE.
    """
    for begin in range(first, last, DOWN_COLUMNS):
        end = min(begin + DOWN_COLUMNS, last)
        for t in range(0, n_tokens, DOWN_TOKENS):
            _down_part(op, begin, end, t, min(t + DOWN_TOKENS, n_tokens), scratch)


@njit(**JIT)  # type: ignore[untyped-decorator]
def _down_part(op, first: int, last: int, start: int, stop: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """Columns first..last-1 of tokens start..stop-1."""
    n_vectors = (last - first + 15) // 16
    sums, row_bytes = scratch + _SUMS, 4 * DOWN_COLUMNS
    for piece in range(op.p0):
        elementwise.clear(sums, (stop - start) * DOWN_COLUMNS)
        end = op.n_rows * (piece + 1) // op.p0
        for r in range(op.n_rows * piece // op.p0, end, WORD):
            _widen_wanted(op, r, min(WORD, end - r), first, last, start, stop, scratch)
            for t in range(start, stop):
                word = load_i64(scratch + _WORDS + 8 * (t - start))
                acc = sums + (t - start) * row_bytes
                _add_wanted(word, op.x + t * op.x_stride + 4 * r, acc, n_vectors, scratch)
        for t in range(start, stop):
            part, y = sums + (t - start) * row_bytes, op.y + t * op.y_stride + 4 * first
            if piece == 0:
                elementwise.copy(part, last - first, y)
            else:
                elementwise.add(y, part, last - first, y)


@njit(**JIT)  # type: ignore[untyped-decorator]
def _widen_wanted(  # type: ignore[no-untyped-def]
    op, r: int, n: int, first: int, last: int, start: int, stop: int, scratch: int
) -> None:
    """Widen those of the n rows from r on that a token wants, and note each token's bits."""
    union = 0
    for t in range(start, stop):
        word = not_zero(op.x + t * op.x_stride + 4 * r, n)
        store_i64(scratch + _WORDS + 8 * (t - start), word)
        union |= word
    column = rows.column_offset(op.w_type, first)
    while union != 0:
        i = simd.lowest_bit(union)
        union &= union - 1
        row = op.w + (r + i) * op.w_stride + column
        rows.widen_row(op.w_type, row, last - first, scratch + _WIDE + 4 * DOWN_COLUMNS * i)


@njit(**JIT)  # type: ignore[untyped-decorator]
def _add_wanted(word: int, x: int, acc: int, n_vectors: int, scratch: int) -> None:
    """acc += sum of x[i] times widened row i over the bits of a word."""
    addresses, coefficients, n = scratch + _LIVE, scratch + _GATES, 0
    while word != 0:
        i = simd.lowest_bit(word)
        word &= word - 1
        store_i64(addresses + 8 * n, scratch + _WIDE + 4 * DOWN_COLUMNS * i)
        store_f32(coefficients + 4 * n, load_f32(x + 4 * i))
        n += 1
    if n:
        rows.add_wide(acc, n_vectors, addresses, coefficients, n)


@njit(**JIT)  # type: ignore[untyped-decorator]
def mask_token(z: int, n_ff: int, threshold: float, bits: int, listed: int) -> int:
    """Set bit i and list row i where not z[i] < threshold; gives the number of rows.

    Args:
        bits: address of ceil(n_ff / 64) words. listed: address for n_ff int64, or 0.
    """
    n, limit = 0, simd.to_f32(threshold)
    for first in range(0, n_ff, WORD):
        at = z + 4 * first
        if first + WORD <= n_ff:
            word = simd.word_not_below(at, limit)
        else:
            word = 0
            for i in range(n_ff - first):
                word |= int(not load_f32(at + 4 * i) < limit) << i
        store_i64(bits + first // 8, word)
        n = list_word(word, first, listed, n) if listed else n + simd.count_bits(word)
    return n


@njit(**JIT)  # type: ignore[untyped-decorator]
def list_word(word: int, first: int, listed: int, n: int) -> int:
    """Append first + i for every bit i of a word to the n int64 at `listed`; their number then."""
    while word != 0:
        store_i64(listed + 8 * n, first + simd.lowest_bit(word))
        word &= word - 1
        n += 1
    return n


@njit(**JIT)  # type: ignore[untyped-decorator]
def and_bits(bits: int, others: int, n: int, out: int) -> None:
    """out = bits & others, n bits in words of 64."""
    for at in range(0, (n + 63) // 64 * 8, 8):
        store_i64(out + at, load_i64(bits + at) & load_i64(others + at))


@njit(**JIT)  # type: ignore[untyped-decorator]
def list_bits(bits: int, others: int, n: int, listed: int) -> int:
    """List, ascending as int64 at `listed`, which of n bits are set in both; others is 0 for all set.

    Returns:
        how many are listed.
    """
    found = 0
    for first in range(0, n, 64):
        word = load_i64(bits + first // 8)
        if others != 0:
            word &= load_i64(others + first // 8)
        if n - first < WORD:
            word &= (1 << (n - first)) - 1
        found = list_word(word, first, listed, found)
    return found
