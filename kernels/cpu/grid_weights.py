"""Types whose numbers are entries of a grid, 4 or 8 neighbours at once: blocks of 256, as in `k_weights.py`.

The grids are those of the gguf package. An entry holds magnitudes, which get their signs from bits elsewhere in the
block, or (IQ1) numbers -1, 0 and 1, all of which are moved by an eighth of a step up or down. Numbers are stored
with an offset that makes them positive.

Block j of a half has 4 entries of 8 numbers: 0 and 1 are its first part, 2 and 3 its second. Lanes of 64 bits that
hold entries are in the order of the packed input: (j, 0), (j, 1) for j = 0..3 in the first part.
"""

from functools import partial
from typing import Any

import numpy as np
from gguf import quants
from llvmlite import ir
from numpy.typing import NDArray

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.byte_tables import (
    grid_bytes,
    listed_bytes,
    listed_words,
    looks_up_words,
    negated,
    shifted_bytes,
)
from hotcold.kernels.cpu.k_weights import (
    KType,
    field_bits,
    halfs_of_pair,
    lanes_of_pair,
    loaded_pair,
    part_bits,
    parts_of_pair,
)
from hotcold.kernels.cpu.simd import F32, I8, I16, I32, I64, VT, Builder, Value, call, constant, load
from hotcold.kernels.cpu.weights import Window

BITS = {8: 2, 4: 3}  # of a number's place among its levels, by the numbers of an entry
MOST_LOOKED_UP = 512  # entries of a grid; more take longer than gathers
EIGHTHS = 8  # of a step, by which IQ1's numbers count
ENTRIES = [[(j, entry) for j in range(4) for entry in pair] for pair in ((0, 1), (2, 3))]  # of both parts


def _grid(source: Any, factor: int = 1, offset: int = 0) -> NDArray[np.int8]:
    """The gguf package's grid of a type, [n, numbers of an entry]; each number times a factor, plus an offset."""
    source.init_grid()
    numbers = np.asarray(source.grid).reshape(source.grid_shape) * factor + offset
    return numbers.astype(np.int8)


def _packed(source: Any, n_bits: int) -> list[int]:
    """The grid with each entry's numbers as places among their levels, n bits each, in one word."""
    places = np.searchsorted(source.grid_map, _grid(source))
    words: list[int] = (places << n_bits * np.arange(places.shape[1])).sum(1).tolist()
    return words


def picked(b: Builder, v: Value, lanes: list[int], element: Any) -> Value:
    """Lanes of unsigned integers, as wider ones."""
    return b.zext(simd.shuffle(b, v, v, lanes), VT(element, len(lanes)))


def fields(b: Builder, wide: Value, shifts: list[int], mask: int) -> Value:
    """(lane >> shift) & mask."""
    kind = wide.type
    return b.and_(b.lshr(wide, ir.Constant(kind, shifts)), constant(kind.element, kind.count, mask))


def odd(b: Builder, s: Value) -> Value:
    """2 s + 1."""
    one = constant(s.type.element, s.type.count, 1)
    return b.or_(b.shl(s, one), one)


def scaled_halfs(b: Builder, blocks: list[Value], factor: float) -> Value:
    """The half that both blocks begin with, times a power of two."""
    return b.fmul(halfs_of_pair(b, blocks, 0), constant(F32, 16, factor))


def odd_nibbles(b: Builder, blocks: list[Value], offset: int) -> Value:
    """2 s + 1 for each 16 numbers, with s the nibbles of 8 bytes at an offset, low ones first."""
    parts = parts_of_pair(b, loaded_pair(b, blocks, VT(I8, 8), offset), lambda i: i // 2)
    return odd(b, part_bits(b, parts, lambda i: i % 2 * 4, 15))


class SignedGrid(KType):
    """Magnitudes of a grid, with signs: d (2 s + 1) / 2^n times them, s a scale of 32 or of 16 numbers."""

    offset_shift = 6
    is_slow = True

    def stored(self, b: Builder, places: Value, signs: list[Value]) -> tuple[Value, Value]:
        """Both parts' numbers from the places of their entries, i16, and the words of their signs, a bit a number."""
        offset = constant(I8, 64, 1 << self.offset_shift)
        first, second = (
            b.add(offset, negated(b, part, word))
            for part, word in zip(self._magnitudes(b, places), signs, strict=True)
        )
        return first, second

    def _magnitudes(self, b: Builder, places: Value) -> list[Value]:
        """Those of both parts: looked up, packed to words, in registers where they hold the grid, else gathered."""
        source = getattr(quants, self.name)
        a_part, size = places.type.count // 2, 128 // places.type.count  # entries, and numbers of one
        lanes = [list(range(a_part * part, a_part * (part + 1))) for part in (0, 1)]
        element = I64 if size == 8 else I32
        if not looks_up_words() or source.grid_shape[0] > MOST_LOOKED_UP:
            grid = partial(_grid, source)
            return [
                grid_bytes(b, f"grid_{self.name}", grid, picked(b, places, some, element)) for some in lanes
            ]
        levels, n_bits = source.grid_map, BITS[size]
        whole = simd.shuffle(b, places, places, [i % (2 * a_part) for i in range(32)])
        packed = listed_words(b, _packed(source, n_bits), whole)
        shifts = (
            [n_bits * i for i in range(8)]
            if size == 8
            else [32 * i + n_bits * j for i in (0, 1) for j in range(4)]
        )
        table = [*levels, *([0] * (16 - len(levels)))]
        found = []
        for some in lanes:
            codes = shifted_bytes(b, picked(b, packed, some, element), shifts)
            found.append(listed_bytes(b, table, b.and_(codes, constant(I8, 64, (1 << n_bits) - 1))))
        return found

    def signs_of_sevens(self, b: Builder, words: Value) -> list[Value]:
        """The sign words of both parts from four i32, a block each: 4 times 7 bits, whose eighth makes them even."""
        lanes = [entry for part in ENTRIES for entry in part]
        wide = simd.shuffle(b, words, words, [j for j, _ in lanes])
        return self.with_parity(b, fields(b, wide, [7 * entry for _, entry in lanes], 127))

    def with_parity(self, b: Builder, sevens: Value) -> list[Value]:
        """The sign words of both parts from 16 sevens, in the order of entries."""
        parity = b.shl(call(b, "llvm.ctpop.v16i32", VT(I32, 16), sevens), constant(I32, 16, 7))
        both = b.bitcast(b.trunc(b.or_(sevens, parity), VT(I8, 16)), VT(I64, 2))
        return [b.extract_element(both, I32(i)) for i in (0, 1)]

    def signs_of_bytes(self, b: Builder, at: Value) -> list[Value]:
        """The sign words of both parts from the 16 bytes at an address, 4 a block."""
        q = load(b, at, VT(I8, 16))
        q = simd.shuffle(b, q, q, [4 * j + entry for part in ENTRIES for j, entry in part])
        both = b.bitcast(q, VT(I64, 2))
        return [b.extract_element(both, I32(i)) for i in (0, 1)]


class IQ2_XXS(SignedGrid):
    """A half; for each 32 numbers 4 places in a grid of 8, then 4 sevens of signs below a scale of 4 bits."""

    name = "IQ2_XXS"
    type_id = 16
    type_size = 66

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        tops = [b.lshr(load(b, at, VT(I32, 16), 2), constant(I32, 16, 28)) for at in blocks]
        scales = odd(b, lanes_of_pair(b, tops, list(range(1, 16, 2))))
        scale = b.fmul(b.sitofp(scales, VT(F32, 16)), scaled_halfs(b, blocks, 1 / 8))
        return Window(self.numbers_of(b, blocks), [scale])

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        q = load(b, at, VT(I8, 32), 2 + 32 * half)
        words = b.bitcast(q, VT(I32, 8))
        words = simd.shuffle(b, words, words, [1, 3, 5, 7])
        places = picked(b, q, [8 * j + entry for part in ENTRIES for j, entry in part], I16)
        return self.stored(b, places, self.signs_of_sevens(b, words))


class IQ2_XS(SignedGrid):
    """A half; for each 8 numbers 9 bits of place and a seven of signs [64 bytes]; nibbles: scales of each 16."""

    name = "IQ2_XS"
    type_id = 17
    type_size = 74
    SCALES = 66
    has_parts = True

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        parts = odd_nibbles(b, blocks, self.SCALES)
        return Window(self.numbers_of(b, blocks), [scaled_halfs(b, blocks, 1 / 8)], [parts])

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        q = load(b, at, VT(I16, 16), 2 + 32 * half)
        lanes = [4 * j + entry for part in ENTRIES for j, entry in part]
        places = b.and_(simd.shuffle(b, q, q, lanes), constant(I16, 16, 511))
        sevens = b.lshr(picked(b, q, lanes, I32), constant(I32, 16, 9))
        return self.stored(b, places, self.with_parity(b, sevens))


class IQ2_S(SignedGrid):
    """A half; low 8 bits of places [32], signs [32], upper 2 bits of places [8]; nibbles: scales of each 16."""

    name = "IQ2_S"
    type_id = 22
    type_size = 82
    PLACES, SIGNS, UPPER, SCALES = 2, 34, 66, 74
    has_parts = True

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        parts = odd_nibbles(b, blocks, self.SCALES)
        return Window(self.numbers_of(b, blocks), [scaled_halfs(b, blocks, 1 / 8)], [parts])

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        q = load(b, at, VT(I8, 16), self.PLACES + 16 * half)
        upper = load(b, at, VT(I8, 4), self.UPPER + 4 * half)
        both = [entry for part in ENTRIES for entry in part]
        low = picked(b, q, [4 * j + entry for j, entry in both], I16)
        high = fields(b, picked(b, upper, [j for j, _ in both], I16), [2 * entry for _, entry in both], 3)
        places = b.or_(low, b.shl(high, constant(I16, 16, 8)))
        return self.stored(b, places, self.signs_of_bytes(b, b.add(at, I64(self.SIGNS + 16 * half))))


class IQ3_XXS(SignedGrid):
    """A half; places in a grid of 4 [64 bytes]; for each 32 numbers 4 sevens of signs below a scale of 4 bits."""

    name = "IQ3_XXS"
    type_id = 18
    type_size = 98
    PLACES, WORDS = 2, 66

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        tops = [b.lshr(load(b, at, VT(I32, 8), self.WORDS), constant(I32, 8, 28)) for at in blocks]
        tops = [simd.shuffle(b, top, top, [i % 8 for i in range(16)]) for top in tops]
        scales = odd(b, lanes_of_pair(b, tops, list(range(8))))
        scale = b.fmul(b.sitofp(scales, VT(F32, 16)), scaled_halfs(b, blocks, 1 / 4))
        return Window(self.numbers_of(b, blocks), [scale])

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        q = load(b, at, VT(I8, 32), self.PLACES + 32 * half)
        places = picked(
            b, q, [8 * j + 4 * part + i for part in (0, 1) for j in range(4) for i in range(4)], I16
        )
        words = load(b, at, VT(I32, 4), self.WORDS + 16 * half)
        return self.stored(b, places, self.signs_of_sevens(b, words))


class IQ3_S(SignedGrid):
    """A half; places in a grid of 4: low 8 bits [64 bytes], ninth ones [8]; signs [32]; nibbles: scales of 32."""

    name = "IQ3_S"
    type_id = 21
    type_size = 110
    PLACES, NINTHS, SIGNS, SCALES = 2, 66, 74, 106

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        four = [load(b, at, VT(I8, 4), self.SCALES) for at in blocks]
        places, shifts = [i % 8 // 2 for i in range(16)], [i % 2 * 4 for i in range(16)]
        scales = odd(
            b, lanes_of_pair(b, [field_bits(b, q, places, shifts, 15) for q in four], list(range(8)))
        )
        scale = b.fmul(b.sitofp(scales, VT(F32, 16)), halfs_of_pair(b, blocks, 0))
        return Window(self.numbers_of(b, blocks), [scale])

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        q = load(b, at, VT(I8, 32), self.PLACES + 32 * half)
        ninths = load(b, at, VT(I8, 4), self.NINTHS + 4 * half)
        entries = [(j, 4 * part + i) for part in (0, 1) for j in range(4) for i in range(4)]
        low = picked(b, q, [8 * j + entry for j, entry in entries], I16)
        high = fields(b, picked(b, ninths, [j for j, _ in entries], I16), [entry for _, entry in entries], 1)
        places = b.or_(low, b.shl(high, constant(I16, 32, 8)))
        return self.stored(b, places, self.signs_of_bytes(b, b.add(at, I64(self.SIGNS + 16 * half))))


class MovedGrid(KType):
    """-1, 0 or 1, an eighth more or less: d (2 s + 1) times it, s a scale of 32 or of 16 numbers."""

    offset_shift = 4
    is_slow = True

    def stored(self, b: Builder, places: list[Value], downs: list[Value]) -> tuple[Value, Value]:
        """Both parts' numbers from the places of their entries; `downs`, <8 x i64>: not 0 where an eighth less."""
        grid, both = partial(_grid, quants.IQ1_S, EIGHTHS, 2 * EIGHTHS), []
        for place, down in zip(places, downs, strict=True):
            less = b.icmp_unsigned("!=", down, constant(I64, 8, 0))
            step = b.select(less, constant(I64, 8, -1), constant(I64, 8, 0x0101010101010101))
            both.append(b.add(grid_bytes(b, "grid_IQ1", grid, place), b.bitcast(step, VT(I8, 64))))
        return both[0], both[1]


class IQ1_S(MovedGrid):
    """A half; low 8 bits of places [32]; for each 32 numbers 4 times 3 upper bits, a scale of 3, a bit for less."""

    name = "IQ1_S"
    type_id = 19
    type_size = 50
    PLACES, UPPER = 2, 34

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        each = []
        for at in blocks:
            upper = load(b, at, VT(I16, 8), self.UPPER)
            each.append(fields(b, picked(b, upper, [i % 8 for i in range(16)], I32), [12] * 16, 7))
        scales = odd(b, lanes_of_pair(b, each, list(range(8))))
        scale = b.fmul(b.sitofp(scales, VT(F32, 16)), scaled_halfs(b, blocks, 1 / EIGHTHS))
        return Window(self.numbers_of(b, blocks), [scale])

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        q = load(b, at, VT(I8, 16), self.PLACES + 16 * half)
        upper = load(b, at, VT(I16, 4), self.UPPER + 8 * half)
        places, downs = [], []
        for part in ENTRIES:
            low = picked(b, q, [4 * j + entry for j, entry in part], I64)
            wide = picked(b, upper, [j for j, _ in part], I64)
            high = fields(b, wide, [3 * entry for _, entry in part], 7)
            places.append(b.or_(low, b.shl(high, constant(I64, 8, 8))))
            downs.append(b.and_(wide, constant(I64, 8, 0x8000)))
        return self.stored(b, places, downs)


class IQ1_M(MovedGrid):
    """Low 8 bits of places [32]; nibbles: 3 upper bits, a bit for less [16]; 4 words of 4 scales of 3 bits [8].

    The half that all scales are times lies in the words' upper nibbles, the lowest in the first.
    """

    name = "IQ1_M"
    type_id = 29
    type_size = 56
    largest = 2 * EIGHTHS + EIGHTHS + 1
    PLACES, UPPER, SCALES = 0, 32, 48
    has_parts = True

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        words = [load(b, at, VT(I16, 4), self.SCALES) for at in blocks]
        places = parts_of_pair(b, simd.concatenate(b, words), lambda i: i // 4)
        parts = odd(b, part_bits(b, places, lambda i: i % 4 * 3, 7))
        first, second = (simd.splat(b, self._half(b, each), 16) for each in words)
        halfs = simd.half_to_float(b, lanes_of_pair(b, (first, second), [0] * 8))
        return Window(self.numbers_of(b, blocks), [b.fmul(halfs, constant(F32, 16, 1 / EIGHTHS))], [parts])

    def _half(self, b: Builder, words: Value) -> Value:
        """The half in four words, as i16."""
        bits = b.shl(b.lshr(words, constant(I16, 4, 12)), ir.Constant(VT(I16, 4), [0, 4, 8, 12]))
        half = b.extract_element(bits, I32(0))
        for i in (1, 2, 3):
            half = b.or_(half, b.extract_element(bits, I32(i)))
        return half

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        q = load(b, at, VT(I8, 16), self.PLACES + 16 * half)
        upper = load(b, at, VT(I8, 8), self.UPPER + 8 * half)
        places, downs = [], []
        for part in ENTRIES:
            low = picked(b, q, [4 * j + entry for j, entry in part], I64)
            wide = picked(b, upper, [2 * j + entry // 2 for j, entry in part], I64)
            four = fields(b, wide, [entry % 2 * 4 for _, entry in part], 15)
            high = b.and_(four, constant(I64, 8, 7))
            places.append(b.or_(low, b.shl(high, constant(I64, 8, 8))))
            downs.append(b.and_(four, constant(I64, 8, 8)))
        return self.stored(b, places, downs)
