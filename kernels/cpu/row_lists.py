"""Lists of rows, and words of bits: made, searched, and which of their rows are asked for ahead."""

from hotcold.kernels.cpu import operations, rows
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.operations import load_f32, load_i64, store_i64

WORD = 64  # rows whose states a word of bits holds


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
def bit(bits: int, i: int) -> bool:
    """Bit i of the mask of 64-bit words at `bits`."""
    return (load_i64(bits + (i >> 6 << 3)) >> (i & 63)) & 1 == 1


@compiled
def first_bits(n: int) -> int:
    """A word whose n lowest bits are set, 0 <= n <= 64."""
    return -1 if n == WORD else ~(-1 << n)


@compiled
def not_zero(x: int, n: int, room: int) -> int:
    """Which of n floats, at most 64, are not 0, as bits; `room` floats may be looked at."""
    if room >= WORD:
        return operations.word_not_zero(x) & first_bits(n)
    word = 0
    for i in range(n):
        word |= int(load_f32(x + 4 * i) != 0) << i
    return word


@compiled
def positive(x: int, n: int, room: int) -> int:
    """Which of n floats, at most 64, are above 0, likewise."""
    if room >= WORD:
        return operations.word_positive(x) & first_bits(n)
    word = 0
    for i in range(n):
        word |= int(load_f32(x + 4 * i) > 0) << i
    return word


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
