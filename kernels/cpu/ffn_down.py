"""The sparse FFN of several tokens: sums of down's rows, by one token after another, or by row for all tokens."""

from hotcold.kernels.cpu import elementwise, operations, rows
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.ffn import add_listed
from hotcold.kernels.cpu.ffn_scratch import DOWN_COLUMNS, DOWN_TOKENS, GATES, LISTED, LIVE, SUMS, WIDE, WORDS
from hotcold.kernels.cpu.operations import load_f32, load_i64, store_f32, store_i64
from hotcold.kernels.cpu.row_lists import WORD, not_zero, prefetch_row
from hotcold.kernels.cpu.rows import STRIP

WIDE_BYTES = 4 * WORD * STRIP  # of a strip of widened rows
# of DOWN_TOKENS those that want a row, on average, below which they add their rows one after another
FEW_BLOCK_ROWS, FEW_FLOAT_ROWS = 3, 8


@compiled
def down_rows(op, first: int, last: int, n_tokens: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """y[t, first:last] = sum_r x[t, r] w[r, first:last] for every token; rows with x = 0 are not read.

    Where tokens want few rows, each adds its own, which the others find in the cache. Where they want many,
    a row is widened once for all of them. The sums are those of op.n_parts pieces, as in `ffn_pieces` and REDUCE.
    """
    few = FEW_BLOCK_ROWS if rows.is_block_type(op.w_type) else FEW_FLOAT_ROWS
    parts = (n_tokens + DOWN_TOKENS - 1) // DOWN_TOKENS
    if _wanted(op, n_tokens) < few * parts * op.n_rows:
        _down_listed(op, first, last, n_tokens, scratch)
        return
    for begin in range(first, last, DOWN_COLUMNS):
        end = min(begin + DOWN_COLUMNS, last)
        for t in range(0, n_tokens, DOWN_TOKENS):
            _down_part(op, begin, end, t, min(t + DOWN_TOKENS, n_tokens), scratch)


@compiled
def _wanted(op, n_tokens: int) -> int:  # type: ignore[no-untyped-def]
    """How many of all tokens' coefficients are not 0."""
    n = 0
    for t in range(n_tokens):
        for r in range(0, op.n_rows, WORD):
            n += operations.count_bits(
                not_zero(op.x + t * op.x_stride + 4 * r, min(WORD, op.n_rows - r), op.n_rows - r)
            )
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
        word = not_zero(x, min(WORD, stop - r), op.n_rows - r)
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
def _down_part(op, first: int, last: int, start: int, stop: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """Columns first..last-1 of tokens start..stop-1, strip by strip of all their widened rows and sums."""
    sums, column = scratch + SUMS, rows.column_offset(op.w_type, first)
    row_bytes = rows.column_offset(op.w_type, last) - column
    strip_bytes = 4 * STRIP * (stop - start)
    for piece in range(op.n_parts):
        begin, end = op.n_rows * piece // op.n_parts, op.n_rows * (piece + 1) // op.n_parts
        words, other = scratch + WORDS, scratch + WORDS + 8 * (1 + DOWN_TOKENS)
        _note_down(op, begin, min(WORD, end - begin), start, stop, words, column, row_bytes)
        for c in range(first, last, STRIP):
            elementwise.clear(sums + (c - first) // STRIP * strip_bytes, strip_bytes // 4)
        for r in range(begin, end, WORD):
            later = r + WORD
            if later < end:  # rows of the next word are asked for while those of this one are added
                _note_down(op, later, min(WORD, end - later), start, stop, other, column, row_bytes)
            _widen_wanted(op, r, load_i64(words), first, last, scratch)
            for c in range(first, last, STRIP):
                i, n_vectors = (c - first) // STRIP, (min(STRIP, last - c) + 15) // 16
                _add_strip(
                    op.x + start * op.x_stride + 4 * r,
                    op.x_stride,
                    stop - start,
                    words,
                    scratch + WIDE + i * WIDE_BYTES,
                    n_vectors,
                    sums + i * strip_bytes,
                )
            words, other = other, words
        for c in range(first, last, STRIP):
            part, n = sums + (c - first) // STRIP * strip_bytes, min(STRIP, last - c)
            for t in range(start, stop):
                _add_piece(piece, part + 4 * STRIP * (t - start), n, op.y + t * op.y_stride + 4 * c)


@compiled
def _note_down(  # type: ignore[no-untyped-def]
    op, r: int, n: int, start: int, stop: int, words: int, column: int, row_bytes: int
) -> None:
    """The bits of the n rows from r on that any token wants, then each token's; the rows are asked for."""
    union = 0
    for t in range(start, stop):
        word = not_zero(op.x + t * op.x_stride + 4 * r, n, op.n_rows - r)
        store_i64(words + 8 * (1 + t - start), word)
        union |= word
    store_i64(words, union)
    while union != 0:
        prefetch_row(op.w + (r + operations.lowest_bit(union)) * op.w_stride + column, row_bytes)
        union &= union - 1


@compiled
def _widen_wanted(op, r: int, union: int, first: int, last: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """Columns first..last-1 of row r + i as float32 for every bit i."""
    column = rows.column_offset(op.w_type, first)
    while union != 0:
        i = operations.lowest_bit(union)
        union &= union - 1
        row, to = op.w + (r + i) * op.w_stride + column, scratch + WIDE + 4 * STRIP * i
        rows.widen_strips(op.w_type, row, last - first, to, WIDE_BYTES)


@compiled
def _add_strip(
    x: int, x_stride: int, n_tokens: int, words: int, wide: int, n_vectors: int, sums: int
) -> None:
    """Add a strip of the widened rows to each token's sums, those that its word names."""
    for t in range(n_tokens):
        word = load_i64(words + 8 * (1 + t))
        rows.add_wide(sums + 4 * STRIP * t, n_vectors, wide, x + t * x_stride, word)
