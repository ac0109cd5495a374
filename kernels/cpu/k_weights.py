"""K types: blocks of 256 numbers with scales of parts inside; two of them are a window.

The numbers of a block are taken in two halves of 128, as they meet a packed group: half h has blocks of 32
numbered 4 h to 4 h + 3, and of those the numbers 0..15 ("part 0") and 16..31 ("part 1"), <64 x i8> each.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.byte_tables import arranged_bits
from hotcold.kernels.cpu.simd import F32, I8, I16, I32, I64, VT, Builder, Value, constant, load
from hotcold.kernels.cpu.weights import BlockType, Window, block_lane
from hotcold.kernels.cpu.weights_of_32 import IQ4_NL


class KType(BlockType):
    """Blocks of 256, two a window, each in two halves of a group; every 32 numbers count as a block."""

    block = 256

    def unpack_window(self, b: Builder, row: Value, window: Value, last_block: Value | None = None) -> Window:
        """The weights of a row's window by its number.

        Args:
            last_block: number of the row's last block of 32; its block of 256 stands in for one past the
                row's end, where the packed scales are zero.
        """
        first = b.mul(window, I64(2))
        second = b.add(first, I64(1))
        if last_block is not None:
            last = b.lshr(last_block, I64(3))
            second = b.select(b.icmp_signed("<", second, last), second, last)
        return self.unpack_pair(b, [b.add(row, b.mul(i, I64(self.type_size))) for i in (first, second)])

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        """The window of the two blocks at these addresses."""
        raise NotImplementedError

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        """Both parts of a half of the block at an address, unsigned."""
        raise NotImplementedError

    def numbers_of(self, b: Builder, blocks: list[Value]) -> list[tuple[Value, Value]]:
        """The numbers of a window."""
        return [self.numbers(b, at, half) for at in blocks for half in (0, 1)]


def lanes_of_pair(b: Builder, pair: Sequence[Value], where: list[int]) -> Value:
    """A window's vector from those of its two blocks; `where` are the lanes of a block's 8 parts."""
    first, second = pair
    lanes = [0] * 16
    for c in range(16):
        lanes[block_lane(c)] = 16 * (c // 8) + where[c % 8]
    return simd.shuffle(b, first, second, lanes)


def loaded_pair(b: Builder, blocks: Sequence[Value], kind: Any, offset: int) -> Value:
    """The `kind` at an offset of both blocks, one after the other."""
    return simd.concatenate(b, [load(b, at, kind, offset) for at in blocks])


def parts_of_pair(b: Builder, both: Value, place: Callable[[int], int], signed: bool = False) -> Value:
    """Pairs of 16 bits in a window's lanes, from some integers of both blocks.

    Args:
        place: which integer of a block the i-th 16 numbers find theirs in.
    """
    a_block = both.type.count // 2
    where = [0] * 32
    for c in range(16):
        for half in (0, 1):
            where[2 * block_lane(c) + half] = c // 8 * a_block + place(c % 8 * 2 + half)
    found = simd.shuffle(b, both, both, where)
    if found.type.element == I16:
        return found
    return (b.sext if signed else b.zext)(found, VT(I16, 32))


def part_bits(b: Builder, parts: Value, shift: Callable[[int], int], mask: int) -> Value:
    """(integer >> shift) & mask of such pairs; the shift of the i-th 16 numbers of a block."""
    shifts = [0] * 32
    for c in range(16):
        for half in (0, 1):
            shifts[2 * block_lane(c) + half] = shift(c % 8 * 2 + half)
    return b.and_(b.lshr(parts, ir.Constant(VT(I16, 32), shifts)), constant(I16, 32, mask))


def halfs_of_pair(b: Builder, blocks: list[Value], offset: int) -> Value:
    """The half at an offset of each of two blocks, as floats in a window's lanes."""
    first, second = (simd.splat(b, load(b, at, I16, offset), 16) for at in blocks)
    return simd.half_to_float(b, lanes_of_pair(b, (first, second), [0] * 8))


def pairs_of_bits(b: Builder, q: Value) -> Value:
    """Two bits of each of 16 bytes, 4 times: the lowest for block 0, the next ones for block 1, and so on."""
    return arranged_bits(b, four_times(b, q), [{0: 2 * j, 1: 2 * j + 1} for j in range(4)])


def four_times(b: Builder, q: Value) -> Value:
    """16 bytes, 4 times."""
    return simd.shuffle(b, q, q, list(range(16)) * 4)


def field_bits(b: Builder, q: Value, places: list[int], shifts: list[int], mask: int) -> Value:
    """Of some bytes, as <16 x i32>: (byte >> shift) & mask."""
    wide = b.zext(simd.shuffle(b, q, q, places), VT(I32, 16))
    return b.and_(b.lshr(wide, ir.Constant(VT(I32, 16), shifts)), constant(I32, 16, mask))


def shifted(b: Builder, q: Value, lanes: list[int], shifts: list[int]) -> Value:
    """Lanes of 16 bytes of q as listed, each with its bits moved right (a shift below 0: left).

    Bits cross into the neighbouring byte: the caller masks them out.
    """
    n = q.type.count
    wide = simd.shuffle(b, q, q, [(16 * lane + i) % n for lane in lanes for i in range(16)])
    words = b.bitcast(wide, VT(I64, 8))
    left = ir.Constant(VT(I64, 8), [-shift % 64 for shift in shifts for _ in range(2)])
    rotated = simd.call(b, "llvm.fshl.v8i64", VT(I64, 8), words, words, left)
    return b.bitcast(rotated, VT(I8, 64))


class Q4_K(KType):
    """Halfs d and m, 12 bytes of 6-bit scales s and minima t of 8 parts of 32, nibbles: d s q - m t.

    Each 32 bytes of nibbles hold two blocks of 32, the low ones first.
    """

    name = "Q4_K"
    type_id = 12
    type_size = 144
    largest = 15
    NIBBLES = 16
    has_minimum = True

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        first, second = (self._factors(b, at) for at in blocks)
        both = [lanes_of_pair(b, (first, second), list(range(i, i + 8))) for i in (0, 8)]
        return Window(self.numbers_of(b, blocks), both)

    def _factors(self, b: Builder, at: Value) -> Value:
        """d s of the 8 parts, then -m t.

        Of the 12 bytes, parts 0..3 have 6 bits in bytes 0..3 (s) and 4..7 (t); parts 4..7 have 4 bits in
        bytes 8..11, low for s and high for t, and their upper 2 bits on top of bytes 0..3 and 4..7.
        """

        def dwords(values: tuple[int, int, int, int]) -> Value:
            return ir.Constant(VT(I32, 4), values)

        head = load(b, at, VT(I32, 4))  # d and m, then the 12 bytes
        low = b.lshr(simd.shuffle(b, head, head, [1, 3, 2, 3]), dwords((0, 0, 0, 4)))
        low = b.and_(low, dwords((0x3F3F3F3F, 0x0F0F0F0F, 0x3F3F3F3F, 0x0F0F0F0F)))
        high = b.lshr(simd.shuffle(b, head, head, [1, 1, 2, 2]), constant(I32, 4, 2))
        high = b.and_(high, dwords((0, 0x30303030, 0, 0x30303030)))
        six = b.uitofp(b.bitcast(b.or_(low, high), VT(I8, 16)), VT(F32, 16))
        halfs = b.bitcast(head, VT(I16, 8))
        whole = simd.half_to_float(b, simd.shuffle(b, halfs, halfs, [0] * 8 + [1] * 8))
        return b.fmul(b.fmul(six, ir.Constant(VT(F32, 16), [1.0] * 8 + [-1.0] * 8)), whole)

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        """Both parts of a half, unsigned."""
        q = load(b, at, VT(I8, 64), self.NIBBLES + 64 * half)
        low = constant(I8, 64, 15)
        first, second = (
            b.and_(shifted(b, q, [part, part, 2 + part, 2 + part], [0, 4, 0, 4]), low) for part in (0, 1)
        )
        return first, second


class Q5_K(Q4_K):
    """As Q4_K, with 32 bytes of fifth bits between scales and nibbles: bit j of byte l for number l of block j."""

    name = "Q5_K"
    type_id = 13
    type_size = 176
    largest = 31
    FIFTHS, NIBBLES = 16, 48

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        out = []
        for part, nibbles in enumerate(super().numbers(b, at, half)):
            bits = load(b, at, VT(I8, 16), self.FIFTHS + 16 * part)
            fifths = shifted(b, bits, [0] * 4, [4 * half + j - 4 for j in range(4)])
            out.append(b.or_(nibbles, b.and_(fifths, constant(I8, 64, 16))))
        return out[0], out[1]


class Q6_K(KType):
    """256 numbers: low nibbles [128 bytes], upper pairs of bits [64], 16 int8 scales, one half; minus 32.

    The blocks of 32 of half h, numbered j, take bytes 32 (j mod 2) of the half's nibbles (the upper ones for
    j > 1) and pair j of the bits; each 16 numbers have their own scale.
    """

    name = "Q6_K"
    type_id = 14
    type_size = 210
    largest = 63
    NIBBLES, PAIRS, PART_SCALES, SCALE = 0, 128, 192, 208
    has_parts = True
    offset_shift = 5

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        both = loaded_pair(b, blocks, VT(I8, 16), self.PART_SCALES)
        parts = parts_of_pair(b, both, lambda i: i, signed=True)
        return Window(self.numbers_of(b, blocks), [halfs_of_pair(b, blocks, self.SCALE)], [parts])

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        """Both parts of a half, 0..63."""
        q = load(b, at, VT(I8, 64), self.NIBBLES + 64 * half)
        out = []
        for part in (0, 1):
            nibbles = shifted(b, q, [part, 2 + part, part, 2 + part], [0, 0, 4, 4])
            bits = load(b, at, VT(I8, 16), self.PAIRS + 32 * half + 16 * part)
            pairs = shifted(b, bits, [0] * 4, [2 * j - 4 for j in range(4)])
            out.append(b.or_(b.and_(nibbles, constant(I8, 64, 15)), b.and_(pairs, constant(I8, 64, 48))))
        return out[0], out[1]


class Q2_K(KType):
    """16 bytes: scales s (low nibbles), minima t of 16 numbers each; pairs of bits [64], halfs d and m: d s q - m t.

    Half h takes bytes 32 h of the pairs, its block j the j-th pair of each of them.
    """

    name = "Q2_K"
    type_id = 10
    few_tokens = 32  # four tokens' panels, whose sums are of 16, take longer than a row and a half
    type_size = 84
    largest = 3
    PAIRS, SCALE, MINIMUM = 16, 80, 82
    has_minimum = True
    has_parts = True

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        both = parts_of_pair(b, loaded_pair(b, blocks, VT(I8, 16), 0), lambda i: i)
        parts = [b.and_(both, constant(I16, 32, 15)), b.lshr(both, constant(I16, 32, 4))]
        return Window(self.numbers_of(b, blocks), self._factors(b, blocks), parts)

    def _factors(self, b: Builder, blocks: list[Value]) -> list[Value]:
        """Both blocks' d, and their m."""
        four = simd.half_to_float(
            b, simd.concatenate(b, [load(b, at, VT(I16, 2), self.SCALE) for at in blocks])
        )
        return [
            lanes_of_pair(b, [simd.shuffle(b, four, four, [i + j] * 16) for j in (0, 2)], [0] * 8)
            for i in (0, 1)
        ]

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        """Both parts of a half, 0..3."""
        first, second = (
            pairs_of_bits(b, load(b, at, VT(I8, 16), self.PAIRS + 32 * half + 16 * part)) for part in (0, 1)
        )
        return first, second


class Q3_K(KType):
    """Third bits [32 bytes], pairs of bits as in Q2_K [64], 12 bytes of 6-bit scales, a half; minus 4, scales minus 32.

    Bit 4 h + j of byte l is the third of number l of block j of half h. Scale i has low bits in byte i mod 8 (the
    upper nibble from i = 8 on), and its upper two in byte 8 + i mod 4, pair i / 4.
    """

    name = "Q3_K"
    type_id = 11
    type_size = 110
    largest = 7
    THIRDS, PAIRS, PART_SCALES, SCALE = 0, 32, 96, 108
    has_parts = True
    offset_shift = 2

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        parts = self._scales(b, blocks)
        return Window(self.numbers_of(b, blocks), [halfs_of_pair(b, blocks, self.SCALE)], [parts])

    def _scales(self, b: Builder, blocks: list[Value]) -> Value:
        """The scales of each 16 numbers, in a window's lanes."""
        before = self.type_size - 16  # 16 bytes that end with the block
        both, skip = loaded_pair(b, blocks, VT(I8, 16), before), self.PART_SCALES - before
        low = part_bits(b, parts_of_pair(b, both, lambda i: skip + i % 8), lambda i: i // 8 * 4, 15)
        high = part_bits(b, parts_of_pair(b, both, lambda i: skip + 8 + i % 4), lambda i: i // 4 * 2, 3)
        return b.sub(b.or_(low, b.shl(high, constant(I16, 32, 4))), constant(I16, 32, 32))

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        """Both parts of a half, 0..7."""
        out = []
        for part in (0, 1):
            pairs = pairs_of_bits(b, load(b, at, VT(I8, 16), self.PAIRS + 32 * half + 16 * part))
            thirds = load(b, at, VT(I8, 16), self.THIRDS + 16 * part)
            thirds = arranged_bits(b, four_times(b, thirds), [{2: 4 * half + j} for j in range(4)])
            out.append(b.or_(pairs, thirds))
        return out[0], out[1]


class IQ4_XS(KType):
    """A half, upper pairs of bits of 8 scales [2 bytes], their nibbles [4], nibbles of IQ4_NL [128]; scales minus 32.

    Block i of 32 has 16 bytes of nibbles, low ones first.
    """

    name = "IQ4_XS"
    type_id = 23
    type_size = 136
    NIBBLES = 8
    offset_shift = IQ4_NL.offset_shift

    @property
    def is_signed(self) -> bool:
        return _LISTED.is_signed

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        first, second = (self._scales(b, at) for at in blocks)
        scales = b.sitofp(lanes_of_pair(b, (first, second), list(range(8))), VT(F32, 16))
        return Window(self.numbers_of(b, blocks), [b.fmul(scales, halfs_of_pair(b, blocks, 0))])

    def _scales(self, b: Builder, at: Value) -> Value:
        """The scales of the 8 blocks of 32, twice."""
        q = load(b, at, VT(I8, 8))
        low = field_bits(b, q, [4 + i % 8 // 2 for i in range(16)], [i % 2 * 4 for i in range(16)], 15)
        high = field_bits(b, q, [2 + i % 8 // 4 for i in range(16)], [i % 4 * 2 for i in range(16)], 3)
        return b.sub(b.or_(low, b.shl(high, constant(I32, 16, 4))), constant(I32, 16, 32))

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        """Both parts of a half."""
        return _LISTED.split(b, load(b, at, VT(I8, 64), self.NIBBLES + 64 * half))


class TQ2_0(KType):
    """Pairs of bits as in Q2_K [64 bytes], a half; minus 1."""

    name = "TQ2_0"
    type_id = 35
    type_size = 66
    largest = 2
    SCALE = 64

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        return Window(self.numbers_of(b, blocks), [halfs_of_pair(b, blocks, self.SCALE)])

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        """Both parts of a half, 0..2."""
        first, second = (pairs_of_bits(b, load(b, at, VT(I8, 16), 32 * half + 16 * part)) for part in (0, 1))
        return first, second


class TQ1_0(KType):
    """Digits of base 3, most of them 5 a byte: [32], [16], then 4 a byte [4]; a half; minus 1.

    A byte is the digits as a fraction of 256. Digit m of the 32 bytes is block m of 32; digit m of the 16 bytes is half
    of a block, from 160 on; digit m of the 4 bytes is a quarter of the last half.
    """

    name = "TQ1_0"
    type_id = 34
    is_slow = True
    type_size = 54
    largest = 2
    SCALE = 52
    POWERS = (1, 3, 9, 27, 81)

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        return Window(self.numbers_of(b, blocks), [halfs_of_pair(b, blocks, self.SCALE)])

    def numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        """Both parts of a half, 0..2."""
        first, second = (load(b, at, VT(I8, 16), start) for start in (0, 16))
        third = load(b, at, VT(I8, 16), 32)
        last = load(b, at, VT(I8, 4), 48)
        if half == 0:
            both = [self._digits(b, [(v, [p] * 16) for p in self.POWERS[:4]]) for v in (first, second)]
            return both[0], both[1]
        last = simd.shuffle(b, last, last, [i % 4 for i in range(16)])
        lows = [(first, 81), (third, 1), (third, 9), (third, 81)]
        highs = [(second, 81), (third, 3), (third, 27)]
        quarters = (last, [self.POWERS[i // 4] for i in range(16)])
        return (
            self._digits(b, [(v, [p] * 16) for v, p in lows]),
            self._digits(b, [*((v, [p] * 16) for v, p in highs), quarters]),
        )

    def _digits(self, b: Builder, quarters: list[tuple[Value, list[int]]]) -> Value:
        """The first digits of 4 times 16 bytes, each times its power modulo 256: 3 q / 256."""
        wide = b.zext(simd.concatenate(b, [v for v, _ in quarters]), VT(I16, 64))
        powers = ir.Constant(VT(I16, 64), [power for _, some in quarters for power in some])
        fractions = b.and_(b.mul(wide, powers), constant(I16, 64, 255))
        return b.trunc(b.lshr(b.mul(fractions, constant(I16, 64, 3)), constant(I16, 64, 8)), VT(I8, 64))


_LISTED = IQ4_NL()
