"""The sparse FFN of a ReLU model, gated or not: only rows of neurons that fire are read."""

from hotcold.kernels.cpu import elementwise, operations, rows, tiles
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.operations import load_f32, load_i64, store_f32, store_i64
from hotcold.kernels.cpu.program import GELU_ACTIVATION, RELU_BOTH_ACTIVATION, SILU_ACTIVATION
from hotcold.kernels.cpu.rows import MAX_COLUMNS, ROWS, dot_row

LISTED = 240  # most listed rows between the gate, up and down passes

WORD = 64  # rows whose states a word of bits holds
FEW_TOKENS = 16  # up to which a batch reads memory more than it computes
SEGMENTS = (1024, 2 * WORD)  # rows that a batch of few tokens, or of more, meets before others
DENSE = 0.4  # share of wanted products above which all are made, in tiles
FEW_ROWS = 0.25  # share of wanted rows below which tokens add their rows one token after another
DOWN_COLUMNS = (1024, 256)  # of sums that are made at once, for few tokens and for more
DOWN_TOKENS = (16, 64)  # likewise

# this file's part of a thread's scratch memory, in bytes
_LIVE, _GATES, _ADDRESSES, _AHEAD, _FACTORS = 0, 2048, 3072, 3104, 3136
_COLUMNS, _DOTS, _TOKENS = 3200, 3328, 3392
_ROW_WORDS, _ROWS = 4096, 4096 + 8 * SEGMENTS[0]  # of a batch's gates and ups
_WORDS, _WIDE = 4096, 8192  # of its sums
_SUMS = _WIDE + 4 * WORD * DOWN_COLUMNS[0]
SCRATCH_BYTES = _SUMS + 4 * DOWN_TOKENS[1] * DOWN_COLUMNS[1]


@compiled
def listed_row(listed: int, i: int) -> int:
    """The i-th row of a list of int64 at `listed`; without a list (0) row i itself."""
    return load_i64(listed + 8 * i) if listed else i


@compiled
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


@compiled
def rows_ahead(stride: int) -> int:
    """How many listed rows ahead the prefetch runs: about AHEAD bytes, at least two rows."""
    return max(2, rows.AHEAD // stride)


@compiled
def prefetch_row(at: int, n_bytes: int) -> None:
    """Ask for all lines of a row that the next pass begins with."""
    for line in range(0, n_bytes, 64):
        operations.prefetch_stream(at + line)


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
    all. While a row is worked on, others are asked for: the gate some rows ahead, and the row of `up`, then
    of `down_t`, that the last product has shown to be wanted. Without a gate (op.w1 is 0) op.w is `up`,
    op.z its bias or 0, and the sum is of relu(up x + bias) down_t. With silu or gelu in place of relu, rows
    with |act(gate x)| below their number at `least` are left out; 0 for none.

    Returns:
        how many rows are listed, and how many have a positive gate, or `up` without one, or were all read.
    """
    live, gates = scratch + _LIVE, scratch + _GATES
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
        n_live = _gates(op, least, start, stop, end, live, gates)
        total += n_live
        if op.w1 != 0:
            n_live = _times_up(op, live, gates, n_live)
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
def _gates(  # type: ignore[no-untyped-def]
    op, least: int, start: int, stop: int, end: int, live: int, gates: int
) -> int:
    """List those of the rows at start..stop-1 of the list that go on, with their gates; how many."""
    second, second_stride = (op.w1, op.w1_stride) if op.w1 != 0 else (op.w2, op.w2_stride)
    far, wanted, n = rows_ahead(op.w_stride), 0, 0
    for i in range(start, stop):
        r = listed_row(op.listed, i)
        row = op.w + r * op.w_stride
        ahead = rows.AHEAD
        if op.listed:
            ahead = (listed_row(op.listed, min(i + far, end - 1)) - r) * op.w_stride
        g = dot_row(op.w_type, row, op.x, op.k, ahead, wanted - row if wanted else 0)
        if op.w1 == 0 and op.z != 0:
            g += load_f32(op.z + 4 * r)
        wanted, zero = 0, operations.to_f32(0.0)
        if is_smooth(op.activation):
            g = elementwise.large(g, load_f32(least + 4 * r) if least else zero, op.activation)
            goes_on = g != 0
        else:
            goes_on, g = g > 0 or op.skip == 0, max(g, zero)
        if goes_on:
            store_i64(live + 8 * n, r)
            store_f32(gates + 4 * n, g)
            n += 1
            wanted = second + r * second_stride
    if wanted:
        prefetch_row(wanted, second_stride)
    return n


@compiled
def _times_up(op, live: int, gates: int, n: int) -> int:  # type: ignore[no-untyped-def]
    """gates *= up x for the n rows listed at `live`; how many stay listed.

    Where `up` has a ReLU too, neurons without a positive one leave the list.
    """
    kept = 0
    for i in range(n):
        r = load_i64(live + 8 * i)
        row = op.w1 + r * op.w1_stride
        u = dot_row(op.w1_type, row, op.z, op.k, op.w2 + r * op.w2_stride - row, 0)
        if op.activation == RELU_BOTH_ACTIVATION and not u > 0:
            continue
        store_i64(live + 8 * kept, r)
        store_f32(gates + 4 * kept, load_f32(gates + 4 * i) * u)
        kept += 1
    return kept


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
    addresses, ahead, factors = scratch + _ADDRESSES, scratch + _AHEAD, scratch + _FACTORS
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


@compiled
def bit(bits: int, i: int) -> bool:
    """Bit i of the mask of 64-bit words at `bits`."""
    return (load_i64(bits + (i >> 6 << 3)) >> (i & 63)) & 1 == 1


@compiled
def wanted_rows(op, first: int, last: int, n_tokens: int, scratch: int, times_gate: bool) -> int:  # type: ignore[no-untyped-def]
    """GATE_ROWS and, with `times_gate`, UP_ROWS of rows first..last-1; gives how many products are wanted.

    y[t, r] = w[r] . x[t] for the tokens whose mask has bit r; or z[t, r] times that for those with z[t, r] > 0, of
    silu and gelu not 0; 0 for the others. A row is read once for 64 tokens, and decoded for 16. Where tokens want many of a segment's
    products, all of them are made in tiles, as for a dense matrix.
    """
    few, total = n_tokens <= FEW_TOKENS, 0
    segment = SEGMENTS[0] if few else SEGMENTS[1]
    for start in range(first, last, segment):
        end = min(start + segment, last)
        for t in range(0, n_tokens, WORD):
            stop = min(t + WORD, n_tokens)
            n_pairs = _count_wanted(op, start, end, t, stop, times_gate)
            total += n_pairs
            if n_pairs > DENSE * (end - start) * (stop - t) and tiles.has_tiles(op, stop - t):
                x, y = op.x + t * op.x_stride, op.y + t * op.y_stride
                tiles.mul_mat(op, start, end, stop - t, x, y, op.y_stride, scratch)
                for token in range(t, stop):
                    _keep_wanted(op, start, end, token, times_gate)
            else:
                _note_wanted(op, start, end, t, stop, scratch, times_gate)
                _note_rows(end - start, start, scratch)
                _listed_products(op, t, stop, scratch, times_gate)
    return total


@compiled
def _count_wanted(op, start: int, end: int, t: int, stop: int, times_gate: bool) -> int:  # type: ignore[no-untyped-def]
    """How many products with rows start..end-1 the tokens t..stop-1 want."""
    r, total = start, 0
    while r < end:
        n = min(end, (r // WORD + 1) * WORD) - r
        for token in range(t, stop):
            total += operations.count_bits(_wanted_word(op, r, n, token, times_gate))
        r += n
    return total


@compiled
def _wanted_word(op, start: int, n: int, t: int, times_gate: bool) -> int:  # type: ignore[no-untyped-def]
    """Which of the n rows from `start` on, which share a word of the mask, token t wants."""
    if times_gate:
        z = op.z + t * op.z_stride + 4 * start
        return not_zero(z, n) if is_smooth(op.activation) else positive(z, n)
    word, shift = load_i64(op.z + t * op.z_stride + start // WORD * 8), start % WORD
    if shift:
        word = (word >> shift) & ~(-1 << (WORD - shift))
    return word if n == WORD else word & ~(-1 << n)


@compiled
def _note_wanted(op, start: int, end: int, t: int, stop: int, scratch: int, times_gate: bool) -> None:  # type: ignore[no-untyped-def]
    """Set bit i of a row's word for each token t + i < stop that wants it, and clear y."""
    words = scratch + _ROW_WORDS
    for i in range(end - start):
        store_i64(words + 8 * i, 0)
    r = start
    while r < end:
        n = min(end, (r // WORD + 1) * WORD) - r
        for token in range(t, stop):
            word = _wanted_word(op, r, n, token, times_gate)
            elementwise.clear(op.y + token * op.y_stride + 4 * r, n)
            while word != 0:
                at = words + 8 * (r - start + operations.lowest_bit(word))
                word &= word - 1
                store_i64(at, load_i64(at) | 1 << (token - t))
        r += n


@compiled
def _note_rows(n: int, start: int, scratch: int) -> None:
    """List the rows that a token wants: their number, then themselves."""
    listed, found = scratch + _ROWS, 0
    for i in range(n):
        if load_i64(scratch + _ROW_WORDS + 8 * i) != 0:
            found += 1
            store_i64(listed + 16 * found, start + i)
            store_i64(listed + 16 * found + 8, load_i64(scratch + _ROW_WORDS + 8 * i))
    store_i64(listed, found)


@compiled
def _listed_products(op, t: int, stop: int, scratch: int, times_gate: bool) -> None:  # type: ignore[no-untyped-def]
    """The products that tokens t..stop-1 want, row by row of the list."""
    listed, far = scratch + _ROWS, rows_ahead(op.w_stride)
    n = load_i64(listed)
    for i in range(1, n + 1):
        r, word = load_i64(listed + 16 * i), load_i64(listed + 16 * i + 8)
        ahead = (load_i64(listed + 16 * min(i + far, n)) - r) * op.w_stride
        _row_for_tokens(op, r, t, word, ahead, scratch, times_gate)


@compiled
def _row_for_tokens(  # type: ignore[no-untyped-def]
    op, r: int, first: int, word: int, ahead: int, scratch: int, times_gate: bool
) -> None:
    """The row's products with the tokens first + i for every bit i of a word, as many as go at once."""
    columns, tokens, dots = scratch + _COLUMNS, scratch + _TOKENS, scratch + _DOTS
    w = op.w + r * op.w_stride
    while word != 0:
        n = 0
        while word != 0 and n < MAX_COLUMNS:
            t = first + operations.lowest_bit(word)
            word &= word - 1
            store_i64(tokens + 8 * n, t)
            store_i64(columns + 8 * n, op.x + t * op.x_stride)
            n += 1
        if n == 1:
            store_f32(dots, dot_row(op.w_type, w, load_i64(columns), op.k, ahead, 0))
        else:
            rows.dot_strips(op.w_type, w, 0, 1, columns, n, op.k, ahead, dots, 4)
        for j in range(n):
            t = load_i64(tokens + 8 * j)
            v = load_f32(dots + 4 * j)
            if times_gate:
                v = _gated_up(v, load_f32(op.z + t * op.z_stride + 4 * r), op.activation)
            store_f32(op.y + t * op.y_stride + 4 * r, v)


@compiled
def _gated_up(up: float, gate: float, activation: int) -> float:
    """A gate times `up`, or times its ReLU."""
    return (max(up, operations.to_f32(0.0)) if activation == RELU_BOTH_ACTIVATION else up) * gate


@compiled
def _keep_wanted(op, start: int, end: int, t: int, times_gate: bool) -> None:  # type: ignore[no-untyped-def]
    """Of a token's products with rows start..end-1 keep those that it wants, times their gates; else 0."""
    r, y = start, op.y + t * op.y_stride
    while r < end:
        n = min(end, (r // WORD + 1) * WORD) - r
        word, gates = _wanted_word(op, r, n, t, times_gate), op.z + t * op.z_stride
        if n < WORD:
            _keep_some(word, n, y + 4 * r, gates + 4 * r, op.activation, times_gate)
        elif not times_gate:
            operations.keep_word(y + 4 * r, word)
        elif op.activation == RELU_BOTH_ACTIVATION:
            operations.gate_positive_word(y + 4 * r, gates + 4 * r, word)
        else:
            operations.gate_word(y + 4 * r, gates + 4 * r, word)
        r += n


@compiled
def _keep_some(word: int, n: int, y: int, gates: int, activation: int, times_gate: bool) -> None:
    """The same of less than a word's products."""
    for i in range(n):
        v = operations.to_f32(0.0)
        if word & 1:
            v = load_f32(y + 4 * i)
            if times_gate:
                v = _gated_up(v, load_f32(gates + 4 * i), activation)
        store_f32(y + 4 * i, v)
        word >>= 1


@compiled
def fire_rows(op, first: int, last: int, n_tokens: int) -> int:  # type: ignore[no-untyped-def]
    """y[t, r] = max(x[t, r] + bias[r], 0) where the mask has bit r, else 0; how many are positive.

    Args:
        op: w is the address of the bias, z of the mask's bits; 0 for none, which means all bits.
    """
    n, zero = 0, operations.to_f32(0.0)
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


@compiled
def not_zero(x: int, n: int) -> int:
    """Which of n floats, at most 64, are not 0, as bits."""
    if n == WORD:
        return operations.word_not_zero(x)
    word = 0
    for i in range(n):
        word |= int(load_f32(x + 4 * i) != 0) << i
    return word


@compiled
def positive(x: int, n: int) -> int:
    """Which of n floats, at most 64, are above 0, as bits."""
    if n == WORD:
        return operations.word_positive(x)
    word = 0
    for i in range(n):
        word |= int(load_f32(x + 4 * i) > 0) << i
    return word


@compiled
def down_rows(op, first: int, last: int, n_tokens: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """y[t, first:last] = sum_r x[t, r] w[r, first:last] for every token; rows with x = 0 are not read.

    Where tokens want few rows, each adds its own, which the others find in the cache. Where they want many,
    a row is widened once for all of them. The sums are those of op.n_parts pieces, as in `ffn_pieces` and REDUCE.
    """
    if _wanted(op, n_tokens) < FEW_ROWS * op.n_rows * n_tokens:
        _down_listed(op, first, last, n_tokens, scratch)
        return
    columns, tokens = DOWN_COLUMNS[0], DOWN_TOKENS[0]
    if n_tokens > FEW_TOKENS:
        columns, tokens = DOWN_COLUMNS[1], DOWN_TOKENS[1]
    for begin in range(first, last, columns):
        end = min(begin + columns, last)
        for t in range(0, n_tokens, tokens):
            _down_part(op, begin, end, t, min(t + tokens, n_tokens), columns, scratch)


@compiled
def _wanted(op, n_tokens: int) -> int:  # type: ignore[no-untyped-def]
    """How many of all tokens' coefficients are not 0."""
    n = 0
    for t in range(n_tokens):
        for r in range(0, op.n_rows, WORD):
            n += operations.count_bits(not_zero(op.x + t * op.x_stride + 4 * r, min(WORD, op.n_rows - r)))
    return n


@compiled
def _down_listed(op, first: int, last: int, n_tokens: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """`down_rows`, each token's rows by a list; all tokens go through a piece before the next one."""
    part = scratch + _SUMS
    for piece in range(op.n_parts):
        begin, end = op.n_rows * piece // op.n_parts, op.n_rows * (piece + 1) // op.n_parts
        for t in range(n_tokens):
            elementwise.clear(part, last - first)
            for start in range(begin, end, LISTED):
                stop = min(start + LISTED, end)
                n = _list_down(op, t, start, stop, scratch)
                where = scratch + _LIVE, scratch + _GATES
                acc = part - 4 * first
                add_listed(op.w_type, op.w, op.w_stride, where[0], where[1], n, first, last, scratch, acc)
            _add_piece(piece, part, last - first, op.y + t * op.y_stride + 4 * first)


@compiled
def _list_down(op, t: int, start: int, stop: int, scratch: int) -> int:  # type: ignore[no-untyped-def]
    """List rows start..stop-1 whose coefficient is not 0, with it; how many."""
    live, coefficients, n = scratch + _LIVE, scratch + _GATES, 0
    for r in range(start, stop, WORD):
        x = op.x + t * op.x_stride + 4 * r
        word = not_zero(x, min(WORD, stop - r))
        while word != 0:
            i = operations.lowest_bit(word)
            word &= word - 1
            store_i64(live + 8 * n, r + i)
            store_f32(coefficients + 4 * n, load_f32(x + 4 * i))
            n += 1
    return n


@compiled
def _add_piece(piece: int, part: int, n: int, y: int) -> None:
    """y += a piece's n sums; the first piece is y."""
    if piece == 0:
        elementwise.copy(part, n, y)
    else:
        elementwise.add(y, part, n, y)


@compiled
def _down_part(op, first: int, last: int, start: int, stop: int, width: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """Columns first..last-1, at most `width`, of tokens start..stop-1."""
    n_vectors = (last - first + 15) // 16
    sums, column = scratch + _SUMS, rows.column_offset(op.w_type, first)
    row_bytes = rows.column_offset(op.w_type, last) - column
    for piece in range(op.n_parts):
        begin, end = op.n_rows * piece // op.n_parts, op.n_rows * (piece + 1) // op.n_parts
        elementwise.clear(sums, (stop - start) * width)
        words, other = scratch + _WORDS, scratch + _WORDS + 8 * (1 + DOWN_TOKENS[1])
        _note_down(op, begin, min(WORD, end - begin), start, stop, words, column, row_bytes)
        for r in range(begin, end, WORD):
            later = r + WORD
            if later < end:  # rows of the next word are asked for while those of this one are added
                _note_down(op, later, min(WORD, end - later), start, stop, other, column, row_bytes)
            _widen_wanted(op, r, load_i64(words), first, last, width, scratch)
            for t in range(start, stop):
                word, acc = load_i64(words + 8 * (1 + t - start)), sums + 4 * width * (t - start)
                _add_wanted(word, op.x + t * op.x_stride + 4 * r, acc, n_vectors, width, scratch)
            words, other = other, words
        for t in range(start, stop):
            part = sums + 4 * width * (t - start)
            _add_piece(piece, part, last - first, op.y + t * op.y_stride + 4 * first)


@compiled
def _note_down(  # type: ignore[no-untyped-def]
    op, r: int, n: int, start: int, stop: int, words: int, column: int, row_bytes: int
) -> None:
    """The bits of the n rows from r on that any token wants, then each token's; the rows are asked for."""
    union = 0
    for t in range(start, stop):
        word = not_zero(op.x + t * op.x_stride + 4 * r, n)
        store_i64(words + 8 * (1 + t - start), word)
        union |= word
    store_i64(words, union)
    while union != 0:
        prefetch_row(op.w + (r + operations.lowest_bit(union)) * op.w_stride + column, row_bytes)
        union &= union - 1


@compiled
def _widen_wanted(op, r: int, union: int, first: int, last: int, width: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """Columns first..last-1 of row r + i as float32 for every bit i."""
    column = rows.column_offset(op.w_type, first)
    while union != 0:
        i = operations.lowest_bit(union)
        union &= union - 1
        row = op.w + (r + i) * op.w_stride + column
        rows.widen_row(op.w_type, row, last - first, scratch + _WIDE + 4 * width * i)


@compiled
def _add_wanted(word: int, x: int, acc: int, n_vectors: int, width: int, scratch: int) -> None:
    """acc += sum of x[i] times widened row i over the bits of a word."""
    addresses, coefficients, n = scratch + _LIVE, scratch + _GATES, 0
    while word != 0:
        i = operations.lowest_bit(word)
        word &= word - 1
        store_i64(addresses + 8 * n, scratch + _WIDE + 4 * width * i)
        store_f32(coefficients + 4 * n, load_f32(x + 4 * i))
        n += 1
    if n:
        rows.add_wide(acc, n_vectors, addresses, coefficients, n)


@compiled
def mask_token(z: int, n_ff: int, threshold: float, bits: int, listed: int) -> int:
    """Set bit i and list row i where not z[i] < threshold; gives the number of rows.

    Args:
        bits: address of ceil(n_ff / 64) words. listed: address for n_ff int64, or 0.
    """
    n, limit = 0, operations.to_f32(threshold)
    for first in range(0, n_ff, WORD):
        at = z + 4 * first
        if first + WORD <= n_ff:
            word = operations.word_not_below(at, limit)
        else:
            word = 0
            for i in range(n_ff - first):
                word |= int(not load_f32(at + 4 * i) < limit) << i
        store_i64(bits + first // 8, word)
        n = list_word(word, first, listed, n) if listed else n + operations.count_bits(word)
    return n


@compiled
def list_word(word: int, first: int, listed: int, n: int) -> int:
    """Append first + i for every bit i of a word to the n int64 at `listed`; their number then."""
    while word != 0:
        store_i64(listed + 8 * n, first + operations.lowest_bit(word))
        word &= word - 1
        n += 1
    return n


@compiled
def and_bits(bits: int, others: int, n: int, out: int) -> None:
    """out = bits & others, n bits in words of 64."""
    for at in range(0, (n + 63) // 64 * 8, 8):
        store_i64(out + at, load_i64(bits + at) & load_i64(others + at))


@compiled
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
