"""K types: blocks of 256 numbers with scales of parts inside; two of them are a window.

The numbers of a block are taken in two halves of 128, as they meet a packed group: half h has blocks of 32
numbered 4 h to 4 h + 3, and of those the numbers 0..15 ("part 0") and 16..31 ("part 1"), <64 x i8> each.
"""

from typing import Any

from llvmlite import ir

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.byte_dots import dot_bytes
from hotcold.kernels.cpu.simd import F32, I8, I16, I32, I64, VT, Builder, Value, constant, load
from hotcold.kernels.cpu.weights import (
    FIRST_SUMS,
    HIGH,
    LOW,
    SUMS,
    BlockType,
    Window,
    block_lane,
)


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


def lanes_of_pair(b: Builder, first: Value, second: Value, where: list[int]) -> Value:
    """A window's vector from those of its two blocks; `where` are the lanes of a block's 8 parts."""
    lanes = [0] * 16
    for c in range(16):
        lanes[block_lane(c)] = 16 * (c // 8) + where[c % 8]
    return simd.shuffle(b, first, second, lanes)


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


def quarter(b: Builder, numbers: Value, j: int) -> Value:
    """16 of 64 bytes."""
    return simd.shuffle(b, numbers, numbers, range(16 * j, 16 * j + 16))


class Q4_K(KType):
    """Halfs d and m, 12 bytes of 6-bit scales s and minima t of 8 parts of 32, nibbles: d s q - m t.

    Each 32 bytes of nibbles hold two blocks of 32, the low ones first.
    """

    name = "Q4_K"
    type_id = 12
    type_size = 144
    NIBBLES = 16
    has_minimum = True

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        first, second = (self._factors(b, at) for at in blocks)
        both = [lanes_of_pair(b, first, second, list(range(i, i + 8))) for i in (0, 8)]
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

    def widened(self, b: Builder, at: Value) -> list[Value]:
        vectors: list[Value] = [None] * 16
        factors = self._factors(b, at)
        for half in (0, 1):
            for part, numbers in enumerate(self.numbers(b, at, half)):
                for j in range(4):
                    scale, minimum = (
                        simd.shuffle(b, factors, factors, [8 * i + 4 * half + j] * 16) for i in (0, 1)
                    )
                    wide = b.uitofp(quarter(b, numbers, j), VT(F32, 16))
                    vectors[8 * half + 2 * j + part] = simd.fma(b, wide, scale, minimum)
        return vectors


class Q5_K(Q4_K):
    """As Q4_K, with 32 bytes of fifth bits between scales and nibbles: bit j of byte l for number l of block j."""

    name = "Q5_K"
    type_id = 13
    type_size = 176
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
    NIBBLES, PAIRS, PART_SCALES, SCALE = 0, 128, 192, 208
    has_parts = True

    def unpack_pair(self, b: Builder, blocks: list[Value]) -> Window:
        first, second = (b.sext(load(b, at, VT(I8, 16), self.PART_SCALES), VT(I32, 16)) for at in blocks)
        parts = [lanes_of_pair(b, first, second, list(range(i, 16, 2))) for i in (0, 1)]
        first, second = (simd.splat(b, load(b, at, I16, self.SCALE), 16) for at in blocks)
        scales = simd.half_to_float(b, lanes_of_pair(b, first, second, [0] * 8))
        return Window(self.numbers_of(b, blocks), [scales], parts)

    def group_lanes(self, b: Builder, window: Window | None, g: int, numbers: Any, x: Value) -> Value:
        """Each part's sums times its integer scale."""
        assert window is not None
        lanes = []
        for part, scales, offset in zip(numbers, window.parts, (LOW, HIGH), strict=True):
            own = simd.shuffle(b, scales, scales, [lane // 4 * 4 + g for lane in range(16)])
            sums = dot_bytes(b, constant(I32, 16, 0), part, load(b, x, VT(I8, 64), offset))
            lanes.append(b.mul(sums, own))
        return b.add(*lanes)

    def offsets(self, b: Builder, window: Window | None, x: Value) -> Value | None:
        assert window is not None
        first = load(b, x, VT(I32, 16), FIRST_SUMS)
        second = b.sub(load(b, x, VT(I32, 16), SUMS), first)
        products = [b.mul(sums, part) for sums, part in zip((first, second), window.parts, strict=True)]
        return b.shl(b.add(*products), constant(I32, 16, 2))

    def _factors(self, b: Builder, at: Value) -> Value:
        """The scale of each 16 numbers."""
        scales = b.sitofp(load(b, at, VT(I8, 16), self.PART_SCALES), VT(F32, 16))
        return b.fmul(scales, simd.splat(b, self.scale(b, b.add(at, I64(self.SCALE))), 16))

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

    def widened(self, b: Builder, at: Value) -> list[Value]:
        vectors: list[Value] = [None] * 16
        factors = self._factors(b, at)
        for half in (0, 1):
            for part, numbers in enumerate(self.numbers(b, at, half)):
                signed = b.sub(numbers, constant(I8, 64, 32))
                for j in range(4):
                    i = 8 * half + 2 * j + part
                    scale = simd.shuffle(b, factors, factors, [i] * 16)
                    vectors[i] = b.fmul(b.sitofp(quarter(b, signed, j), VT(F32, 16)), scale)
        return vectors
