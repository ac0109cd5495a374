"""The sparse FFN of several tokens: sums of down's rows, by one token after another, or by row for all tokens."""

from hotcold.kernels.cpu import elementwise, operations, rows
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.ffn import add_listed
from hotcold.kernels.cpu.ffn_batch import FEW_TOKENS
from hotcold.kernels.cpu.ffn_scratch import DOWN_COLUMNS, DOWN_TOKENS, GATES, LISTED, LIVE, SUMS, WIDE, WORDS
from hotcold.kernels.cpu.operations import load_f32, load_i64, store_f32, store_i64
from hotcold.kernels.cpu.row_lists import WORD, not_zero, prefetch_row

FEW_ROWS = 0.25  # share of wanted rows below which tokens add their rows one token after another


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
    part = scratch + SUMS
    for piece in range(op.n_parts):
        begin, end = op.n_rows * piece // op.n_parts, op.n_rows * (piece + 1) // op.n_parts
        for t in range(n_tokens):
            elementwise.clear(part, last - first)
            for start in range(begin, end, LISTED):
                stop = min(start + LISTED, end)
                n = _list_down(op, t, start, stop, scratch)
                where = scratch + LIVE, scratch + GATES
                acc = part - 4 * first
                add_listed(op.w_type, op.w, op.w_stride, where[0], where[1], n, first, last, scratch, acc)
            _add_piece(piece, part, last - first, op.y + t * op.y_stride + 4 * first)


@compiled
def _list_down(op, t: int, start: int, stop: int, scratch: int) -> int:  # type: ignore[no-untyped-def]
    """List rows start..stop-1 whose coefficient is not 0, with it; how many."""
    live, coefficients, n = scratch + LIVE, scratch + GATES, 0
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
    sums, column = scratch + SUMS, rows.column_offset(op.w_type, first)
    row_bytes = rows.column_offset(op.w_type, last) - column
    for piece in range(op.n_parts):
        begin, end = op.n_rows * piece // op.n_parts, op.n_rows * (piece + 1) // op.n_parts
        elementwise.clear(sums, (stop - start) * width)
        words, other = scratch + WORDS, scratch + WORDS + 8 * (1 + DOWN_TOKENS[1])
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
        rows.widen_row(op.w_type, row, last - first, scratch + WIDE + 4 * width * i)


@compiled
def _add_wanted(word: int, x: int, acc: int, n_vectors: int, width: int, scratch: int) -> None:
    """acc += sum of x[i] times widened row i over the bits of a word."""
    addresses, coefficients, n = scratch + LIVE, scratch + GATES, 0
    while word != 0:
        i = operations.lowest_bit(word)
        word &= word - 1
        store_i64(addresses + 8 * n, scratch + WIDE + 4 * width * i)
        store_f32(coefficients + 4 * n, load_f32(x + 4 * i))
        n += 1
    if n:
        rows.add_wide(acc, n_vectors, addresses, coefficients, n)
