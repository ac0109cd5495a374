"""K types: blocks of 256 numbers with scales of parts inside; a step of a dot product is half a block."""

from typing import Any

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.byte_dots import dot_signed_bytes
from hotcold.kernels.cpu.simd import F32, I8, I32, I64, VT, Builder, Value, constant, load
from hotcold.kernels.cpu.weights import (
    HIGH,
    LANE_BLOCKS,
    LOW,
    SCALES,
    BlockType,
    dot_with_minimum,
)


class KType(BlockType):
    """Blocks of 256, whose halves of 128 are steps; rows are whole blocks, so no step is partial."""

    block = 256
    has_tiles = False

    @property
    def step_bytes(self) -> int:
        return self.type_size // 2

    def half_of(self, b: Builder, row: Value, step: Value) -> tuple[Value, Value]:
        """Address of the step's block, and which half of it the step is."""
        at = b.add(row, b.mul(b.lshr(step, I64(1)), I64(self.type_size)))
        return at, b.and_(step, I64(1))


class Q4_K(KType):
    """Halfs d and m, 12 bytes of 6-bit scales and minima of 8 parts of 32, nibbles: d s q - m t.

    Each 32 bytes of nibbles hold two parts, the low ones first.
    """

    name = "Q4_K"
    type_id = 12
    type_size = 144
    PART_SCALES, NIBBLES = 4, 16

    def unpack_step(self, b: Builder, row: Value, step: Value, last_block: Value | None) -> Any:
        """Both halves, the scales and the minima, one a lane."""
        at, half = self.half_of(b, row, step)
        low, high = (self._numbers(b, at, half, part) for part in (0, 1))
        lanes = [simd.shuffle(b, v, v, LANE_BLOCKS) for v in self._scales(b, at, half)]
        return low, high, *lanes

    def _scales(self, b: Builder, at: Value, half: Value) -> tuple[Value, Value]:
        """d s and -m t of the half's four parts, <4 x float> each.

        Parts 0..3 have 6 bits in bytes 0..3 (s) and 4..7 (t); parts 4..7 have 4 bits in bytes 8..11, low
        for s and high for t, and their upper 2 bits on top of bytes 0..3 and 4..7.
        """

        def c(value: int) -> Value:
            return constant(I8, 4, value)

        first, second, third = (load(b, at, VT(I8, 4), self.PART_SCALES + 4 * i) for i in range(3))
        upper = [b.shl(b.lshr(v, c(6)), c(4)) for v in (first, second)]
        later = (b.or_(b.and_(third, c(15)), upper[0]), b.or_(b.lshr(third, c(4)), upper[1]))
        is_first = b.icmp_unsigned("==", half, I64(0))
        out = []
        for early, late, offset in ((first, later[0], 0), (second, later[1], 2)):
            six = b.select(is_first, b.and_(early, c(63)), late)
            whole = simd.splat(b, self.scale(b, b.add(at, I64(offset))), 4)
            out.append(b.fmul(b.uitofp(six, VT(F32, 4)), whole))
        return out[0], b.fneg(out[1])

    def _numbers(self, b: Builder, at: Value, half: Value, part: int) -> Value:
        """Numbers 16 part .. 16 part + 15 of the half's four parts of 32, <64 x i8>."""
        start = b.add(at, b.mul(half, I64(64)))
        near, far = (load(b, start, VT(I8, 16), self.NIBBLES + 32 * i + 16 * part) for i in (0, 1))
        low, high = constant(I8, 16, 15), constant(I8, 16, 4)
        return simd.concatenate(b, [n for v in (near, far) for n in (b.and_(v, low), b.lshr(v, high))])

    def dot(self, b: Builder, acc: Value, weights: Any, x: Value) -> Value:
        low, high, scales, minima = weights
        return dot_with_minimum(b, acc, low, high, scales, minima, x)

    def widened(self, b: Builder, at: Value) -> list[Value]:
        vectors: list[Value] = [None] * 16
        for half in (0, 1):
            scales, minima = self._scales(b, at, I64(half))
            for part in (0, 1):
                numbers = self._numbers(b, at, I64(half), part)
                for j in range(4):
                    quarter = simd.shuffle(b, numbers, numbers, range(16 * j, 16 * j + 16))
                    scale, minimum = (simd.shuffle(b, v, v, [j] * 16) for v in (scales, minima))
                    wide = b.uitofp(quarter, VT(F32, 16))
                    vectors[8 * half + 2 * j + part] = simd.fma(b, wide, scale, minimum)
        return vectors


class Q5_K(Q4_K):
    """As Q4_K, with 32 bytes of fifth bits between scales and nibbles: bit j of byte l for number l of part j."""

    name = "Q5_K"
    type_id = 13
    type_size = 176
    FIFTHS, NIBBLES = 16, 48

    def _numbers(self, b: Builder, at: Value, half: Value, part: int) -> Value:
        nibbles = super()._numbers(b, at, half, part)
        bits = load(b, at, VT(I8, 16), self.FIFTHS + 16 * part)
        bits = b.lshr(bits, simd.splat(b, b.mul(b.trunc(half, I8), I8(4)), 16))
        fifths = [
            b.shl(b.and_(b.lshr(bits, constant(I8, 16, j)), constant(I8, 16, 1)), constant(I8, 16, 4))
            for j in range(4)
        ]
        return b.or_(nibbles, simd.concatenate(b, fifths))


class Q6_K(KType):
    """256 numbers: low nibbles [128 bytes], upper pairs of bits [64], 16 int8 scales, one half; minus 32.

    Half h of a block is a step. Its blocks of 32, numbered j, take bytes 32 (j mod 2) of the half's
    nibbles (the upper ones for j > 1) and pair j of the bits; each 16 numbers have their own scale.
    """

    name = "Q6_K"
    type_id = 14
    type_size = 210
    NIBBLES, PAIRS, PART_SCALES, SCALE = 0, 128, 192, 208

    def unpack_step(self, b: Builder, row: Value, step: Value, last_block: Value | None) -> Any:
        """Low and high halves, signed, and the scale of each half's lanes."""
        at, half = self.half_of(b, row, step)
        nibbles, pairs = b.add(at, b.mul(half, I64(64))), b.add(at, b.mul(half, I64(32)))
        scales = b.sitofp(load(b, b.add(at, b.mul(half, I64(8))), VT(I8, 8), self.PART_SCALES), VT(F32, 8))
        scales = b.fmul(scales, simd.splat(b, self.scale(b, b.add(at, I64(self.SCALE))), 8))
        out = []
        for part in (0, 1):
            out.append(self._numbers(b, nibbles, pairs, part))
            out.append(simd.shuffle(b, scales, scales, [2 * j + part for j in LANE_BLOCKS]))
        return out

    def _numbers(self, b: Builder, nibbles: Value, pairs: Value, part: int) -> Value:
        """Numbers 16 part .. 16 part + 15 of the four blocks of a half, <64 x i8> in -32..31."""
        near = load(b, nibbles, VT(I8, 16), self.NIBBLES + 16 * part)
        far = load(b, nibbles, VT(I8, 16), self.NIBBLES + 16 * part + 32)
        bits = load(b, pairs, VT(I8, 16), self.PAIRS + 16 * part)
        low = [b.and_(v, constant(I8, 16, 15)) for v in (near, far)]
        high = [b.lshr(v, constant(I8, 16, 4)) for v in (near, far)]
        upper = [
            b.shl(b.and_(b.lshr(bits, constant(I8, 16, 2 * j)), constant(I8, 16, 3)), constant(I8, 16, 4))
            for j in range(4)
        ]
        whole = simd.concatenate(b, [b.or_(v, u) for v, u in zip(low + high, upper, strict=True)])
        return b.sub(whole, constant(I8, 64, 32))

    def dot(self, b: Builder, acc: Value, weights: Any, x: Value) -> Value:
        """acc + both halves' products, each 16 numbers scaled by their own scale."""
        x_scales = load(b, x, VT(F32, 16), SCALES)
        for part, offset in enumerate((LOW, HIGH)):
            numbers, scales = weights[2 * part : 2 * part + 2]
            lanes = dot_signed_bytes(b, constant(I32, 16, 0), numbers, load(b, x, VT(I8, 64), offset))
            acc = simd.fma(b, b.sitofp(lanes, VT(F32, 16)), b.fmul(scales, x_scales), acc)
        return acc

    def widened(self, b: Builder, at: Value) -> list[Value]:
        vectors: list[Value] = [None] * 16
        whole = self.scale(b, b.add(at, I64(self.SCALE)))
        for half in (0, 1):
            for part in (0, 1):
                numbers = self._numbers(b, b.add(at, I64(64 * half)), b.add(at, I64(32 * half)), part)
                for j in range(4):
                    quarter = simd.shuffle(b, numbers, numbers, range(16 * j, 16 * j + 16))
                    i = 8 * half + 2 * j + part
                    scale = b.fmul(whole, b.sitofp(load(b, at, I8, self.PART_SCALES + i), F32))
                    vectors[i] = b.fmul(b.sitofp(quarter, VT(F32, 16)), simd.splat(b, scale, 16))
        return vectors
