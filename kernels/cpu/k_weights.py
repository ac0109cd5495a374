"""K types: blocks of 256 numbers with scales of parts inside; a step of a dot product is a block.

The numbers of a block are taken in two halves of 128, as they meet a packed group: half h has blocks of 32
numbered 4 h to 4 h + 3, and of those the numbers 0..15 ("part 0") and 16..31 ("part 1"), <64 x i8> each.
"""

from typing import Any

from llvmlite import ir

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.byte_dots import dot_bytes
from hotcold.kernels.cpu.simd import F32, I8, I16, I32, I64, VT, Builder, Value, constant, load
from hotcold.kernels.cpu.weights import (
    HIGH,
    LANE_BLOCKS,
    LOW,
    PACKED_GROUP_BYTES,
    SCALES,
    SUMS,
    BlockType,
    dot_with_minimum,
)


class KType(BlockType):
    """Blocks of 256, each a step; rows are whole blocks, so no step is partial."""

    block = 256
    step = 256
    unroll = 1
    activation_bytes = 2 * PACKED_GROUP_BYTES

    @property
    def step_bytes(self) -> int:
        return self.type_size

    def unpack_step(self, b: Builder, row: Value, step: Value, last_block: Value | None) -> Any:
        """For each half: part 0, part 1, and two vectors of what their lanes are scaled by."""
        return self.unpack_block(b, b.add(row, b.mul(step, I64(self.type_size))))

    def unpack_block(self, b: Builder, at: Value) -> Any:
        """`unpack_step` of the block at an address."""
        raise NotImplementedError

    def dot_half(self, b: Builder, acc: Value, weights: Any, x: Value) -> Value:
        """acc + a half's products with the packed group at x."""
        raise NotImplementedError

    def dot(self, b: Builder, acc: Value, weights: Any, x: Value) -> Value:
        for half, part in enumerate(weights):
            acc = self.dot_half(b, acc, part, b.add(x, I64(PACKED_GROUP_BYTES * half)))
        return acc


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

    def unpack_block(self, b: Builder, at: Value) -> Any:
        factors = self._factors(b, at)
        out = []
        for half in (0, 1):
            lanes = [[8 * i + 4 * half + j for j in LANE_BLOCKS] for i in (0, 1)]
            scales, minima = (simd.shuffle(b, factors, factors, where) for where in lanes)
            out.append((*self._numbers(b, at, half), scales, minima))
        return out

    def _factors(self, b: Builder, at: Value) -> Value:
        """d s of the 8 parts, then an eighth of m t: what the packed sums (-8 times) are multiplied by.

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
        return b.fmul(b.fmul(six, ir.Constant(VT(F32, 16), [1.0] * 8 + [0.125] * 8)), whole)

    def _numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        """Both parts of a half, unsigned."""
        q = load(b, at, VT(I8, 64), self.NIBBLES + 64 * half)
        low = constant(I8, 64, 15)
        first, second = (
            b.and_(shifted(b, q, [part, part, 2 + part, 2 + part], [0, 4, 0, 4]), low) for part in (0, 1)
        )
        return first, second

    def dot_half(self, b: Builder, acc: Value, weights: Any, x: Value) -> Value:
        return dot_with_minimum(b, acc, weights, x)

    def widened(self, b: Builder, at: Value) -> list[Value]:
        vectors: list[Value] = [None] * 16
        factors = self._factors(b, at)
        minus_eight = constant(F32, 16, -8.0)
        for half in (0, 1):
            for part, numbers in enumerate(self._numbers(b, at, half)):
                for j in range(4):
                    scale, minimum = (
                        simd.shuffle(b, factors, factors, [8 * i + 4 * half + j] * 16) for i in (0, 1)
                    )
                    wide = b.uitofp(quarter(b, numbers, j), VT(F32, 16))
                    minimum = b.fmul(minimum, minus_eight)
                    vectors[8 * half + 2 * j + part] = simd.fma(b, wide, scale, minimum)
        return vectors


class Q5_K(Q4_K):
    """As Q4_K, with 32 bytes of fifth bits between scales and nibbles: bit j of byte l for number l of block j."""

    name = "Q5_K"
    type_id = 13
    type_size = 176
    FIFTHS, NIBBLES = 16, 48

    def _numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        out = []
        for part, nibbles in enumerate(super()._numbers(b, at, half)):
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

    def unpack_block(self, b: Builder, at: Value) -> Any:
        factors = self._factors(b, at)
        out = []
        for half in (0, 1):
            lanes = [[8 * half + 2 * j + part for j in LANE_BLOCKS] for part in (0, 1)]
            scales = (simd.shuffle(b, factors, factors, where) for where in lanes)
            out.append((*self._numbers(b, at, half), *scales))
        return out

    def _factors(self, b: Builder, at: Value) -> Value:
        """The scale of each 16 numbers."""
        scales = b.sitofp(load(b, at, VT(I8, 16), self.PART_SCALES), VT(F32, 16))
        return b.fmul(scales, simd.splat(b, self.scale(b, b.add(at, I64(self.SCALE))), 16))

    def _numbers(self, b: Builder, at: Value, half: int) -> tuple[Value, Value]:
        """Both parts of a half, 0..63."""
        q = load(b, at, VT(I8, 64), self.NIBBLES + 64 * half)
        out = []
        for part in (0, 1):
            nibbles = shifted(b, q, [part, 2 + part, part, 2 + part], [0, 0, 4, 4])
            bits = load(b, at, VT(I8, 16), self.PAIRS + 32 * half + 16 * part)
            pairs = shifted(b, bits, [0] * 4, [2 * j - 4 for j in range(4)])
            out.append(b.or_(b.and_(nibbles, constant(I8, 64, 15)), b.and_(pairs, constant(I8, 64, 48))))
        return out[0], out[1]

    def dot_half(self, b: Builder, acc: Value, weights: Any, x: Value) -> Value:
        """Each part's sums lose 32 times the sums of x, of which the packed group holds those of both parts."""
        first, second, first_scales, second_scales = weights
        low, high = (load(b, x, VT(I8, 64), offset) for offset in (LOW, HIGH))
        low_sums = dot_bytes(b, constant(I32, 16, 0), constant(I8, 64, 32), low)
        high_sums = b.add(b.shl(load(b, x, VT(I32, 16), SUMS), constant(I32, 16, 2)), low_sums)
        lanes = b.sub(dot_bytes(b, constant(I32, 16, 0), first, low), low_sums)
        whole = b.fmul(b.sitofp(lanes, VT(F32, 16)), first_scales)
        lanes = dot_bytes(b, high_sums, second, high)
        whole = simd.fma(b, b.sitofp(lanes, VT(F32, 16)), second_scales, whole)
        return simd.fma(b, whole, load(b, x, VT(F32, 16), SCALES), acc)

    def widened(self, b: Builder, at: Value) -> list[Value]:
        vectors: list[Value] = [None] * 16
        factors = self._factors(b, at)
        for half in (0, 1):
            for part, numbers in enumerate(self._numbers(b, at, half)):
                signed = b.sub(numbers, constant(I8, 64, 32))
                for j in range(4):
                    i = 8 * half + 2 * j + part
                    scale = simd.shuffle(b, factors, factors, [i] * 16)
                    vectors[i] = b.fmul(b.sitofp(quarter(b, signed, j), VT(F32, 16)), scale)
        return vectors
