"""The sparse FFN of several tokens: gates and ups, by rows that tokens want, or in tiles where they want many."""

from hotcold.kernels.cpu import elementwise, operations, rows, tiles
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.ffn import is_smooth
from hotcold.kernels.cpu.ffn_scratch import (
    COLUMNS,
    DOTS,
    ROW_TABLE,
    ROW_WORDS,
    SEGMENTS,
    TOKENS,
)
from hotcold.kernels.cpu.operations import load_f32, load_i64, store_f32, store_i64
from hotcold.kernels.cpu.program import RELU_BOTH_ACTIVATION
from hotcold.kernels.cpu.row_lists import (
    WORD,
    bit,
    first_bits,
    mask_token,
    not_zero,
    positive,
    rows_ahead,
)
from hotcold.kernels.cpu.rows import MAX_COLUMNS, dot_row

FEW_TOKENS = 16  # up to which a batch reads memory more than it computes
DENSE = 0.4  # share of wanted products above which all are made, in tiles


@compiled
def mask_rows(op, first: int, last: int, n_tokens: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """MASK_ROWS of rows first..last-1, whole words of bits; the products never leave the second-level cache."""
    products, stride = scratch + tiles.PRODUCTS, 4 * tiles.PRODUCT_ROWS
    for start in range(first, last, tiles.PRODUCT_ROWS):
        end = min(start + tiles.PRODUCT_ROWS, last)
        for t in range(0, n_tokens, tiles.PRODUCT_TOKENS):
            n, x = min(tiles.PRODUCT_TOKENS, n_tokens - t), op.x + t * op.x_stride
            tiles.mul_mat(op, start, end, n, x, products - 4 * start, stride, scratch)
            for i in range(n):
                bits = op.y + (t + i) * op.y_stride + start // WORD * 8
                mask_token(products + i * stride, end - start, op.threshold, bits, 0)


@compiled
def wanted_rows(op, first: int, last: int, n_tokens: int, scratch: int, times_gate: bool) -> int:  # type: ignore[no-untyped-def]
    """GATE_ROWS and, with `times_gate`, UP_ROWS of rows first..last-1; gives how many products are wanted.

    y[t, r] = w[r] . x[t] for the tokens whose mask has bit r; or z[t, r] times that for those with z[t, r] > 0, of
    silu and gelu not 0; 0 for the others. A row is read once for 64 tokens, and decoded for 16. Where tokens
    want many of a segment's products, all of them are made in tiles, as for a dense matrix.
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
        room = op.n_rows - start
        return not_zero(z, n, room) if is_smooth(op.activation) else positive(z, n, room)
    word, shift = load_i64(op.z + t * op.z_stride + start // WORD * 8), start % WORD
    if shift:
        word = (word >> shift) & first_bits(WORD - shift)
    return word & first_bits(n)


@compiled
def _note_wanted(op, start: int, end: int, t: int, stop: int, scratch: int, times_gate: bool) -> None:  # type: ignore[no-untyped-def]
    """Set bit i of a row's word for each token t + i < stop that wants it, and clear y."""
    words = scratch + ROW_WORDS
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
    listed, found = scratch + ROW_TABLE, 0
    for i in range(n):
        if load_i64(scratch + ROW_WORDS + 8 * i) != 0:
            found += 1
            store_i64(listed + 16 * found, start + i)
            store_i64(listed + 16 * found + 8, load_i64(scratch + ROW_WORDS + 8 * i))
    store_i64(listed, found)


@compiled
def _listed_products(op, t: int, stop: int, scratch: int, times_gate: bool) -> None:  # type: ignore[no-untyped-def]
    """The products that tokens t..stop-1 want, row by row of the list."""
    listed, far = scratch + ROW_TABLE, rows_ahead(op.w_stride)
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
    columns, tokens, dots = scratch + COLUMNS, scratch + TOKENS, scratch + DOTS
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
            store_f32(dots, dot_row(op.w_type, w, load_i64(columns), op.k, ahead))
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
