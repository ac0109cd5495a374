"""How each block type is read: IR that unpacks weights, and multiplies them with activations.

A weight type gives two views of a row:

* a *step* of a dot product: `unpack` loads a step's weights once, `dot` multiplies them with one
  activation vector, so that a tile can use them for several columns;
* its *values* as float vectors for the down product, which adds scaled rows.

Float types meet float32 activations. Block types meet activations packed by `pack.py`: groups of 128
int8 in 256 bytes,

    0    64 int8: numbers 0..15 of each of 4 blocks      128  16 int32: -8 times the sum of a lane
    64   64 int8: numbers 16..31 of each                 192  16 float32: the scale of a lane's block

A lane is 4 neighbouring bytes, so lanes 4j..4j+3 belong to block j in both halves. The sums undo the
offset of unsigned weights: sum (q - 8) x = sum q x + (-8 sum x).
"""

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.byte_dots import dot_bytes, dot_signed_bytes
from hotcold.kernels.cpu.simd import F32, I1, I8, I16, I32, I64, VT, Builder, Value, constant, load

BLOCK = 32
GROUP = 128  # weights a step of a block type
PACKED_GROUP_BYTES = 256
LOW, HIGH, SUMS, SCALES = 0, 64, 128, 192  # offsets in a packed group
LANE_BLOCKS = [lane // 4 for lane in range(16)]


@dataclass(frozen=True)
class FloatType:
    """F32, F16 or BF16: 16 weights a step."""

    name: str
    type_size: int  # bytes a weight
    step = 16
    activation_bytes = 64  # that one step reads

    @property
    def step_bytes(self) -> int:
        """Bytes of a row that one step reads."""
        return self.step * self.type_size

    def unpack_step(self, b: Builder, row: Value, step: Value, last_block: Value | None) -> Value:
        """The 16 weights of step number `step`; the tail of a row is not a step."""
        return self.load16(b, b.add(row, b.mul(step, I64(self.step_bytes))))

    def load16(self, b: Builder, at: Value) -> Value:
        """16 weights as <16 x float>."""
        if self.name == "F32":
            return load(b, at, VT(F32, 16))
        bits = load(b, at, VT(I16, 16))
        if self.name == "F16":
            return simd.half_to_float(b, bits)
        wide = b.shl(b.zext(bits, VT(I32, 16)), constant(I32, 16, 16))
        return b.bitcast(wide, VT(F32, 16))

    def load1(self, b: Builder, at: Value) -> Value:
        """One weight as float."""
        if self.name == "F32":
            return load(b, at, F32)
        bits = b.insert_element(constant(I16, 1, 0), load(b, at, I16), I32(0))
        if self.name == "F16":
            return b.extract_element(simd.half_to_float(b, bits), I32(0))
        return b.bitcast(b.shl(b.zext(b.extract_element(bits, I32(0)), I32), I32(16)), F32)

    def dot(self, b: Builder, acc: Value, weights: Value, x: Value) -> Value:
        """acc + weights * the 16 float32 at x, lane by lane."""
        return simd.fma(b, weights, load(b, x, VT(F32, 16)), acc)


class BlockType:
    """A quantised type with blocks of 32 and one half scale at the start of each block."""

    name: str
    type_size: int  # bytes a block
    block = BLOCK  # numbers a block
    scale_offset = 0  # bytes from a block's start to its half scale
    step = GROUP
    activation_bytes = PACKED_GROUP_BYTES  # that one step reads
    offset_shift = 0  # log2 of an eighth of the offset that makes the stored numbers unsigned

    @property
    def step_bytes(self) -> int:
        """Bytes of a row that one step reads."""
        return self.step // BLOCK * self.type_size

    def unpack_step(self, b: Builder, row: Value, step: Value, last_block: Value | None) -> Any:
        """The weights of step number `step` of a row.

        Args:
            last_block: number of the row's last block, for a step that may reach past the row's end:
                that block then stands in, and the packed activations are zero there. None for a step
                that lies inside the row.
        """
        if last_block is None:
            return self.unpack_whole(b, b.add(row, b.mul(step, I64(self.step_bytes))))
        first = b.mul(step, I64(4))
        numbers = [b.add(first, I64(j)) for j in range(4)]
        numbers = [b.select(b.icmp_signed("<", n, last_block), n, last_block) for n in numbers]
        return self.unpack(b, [b.add(row, b.mul(n, I64(self.type_size))) for n in numbers])

    def scale(self, b: Builder, at: Value) -> Value:
        """The block's scale as float."""
        bits = b.insert_element(constant(I16, 1, 0), load(b, at, I16), I32(0))
        return b.extract_element(simd.half_to_float(b, bits), I32(0))

    def halves(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value]:
        """Stored numbers 0..15 and 16..31 of 4 blocks, <64 x i8> each."""
        raise NotImplementedError

    def values(self, b: Builder, at: Value) -> list[Value]:
        """The block's 32 numbers before scaling, as two <16 x float>."""
        raise NotImplementedError

    def unpack(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value, Value]:
        """Both halves and the scales, one a lane, of the 4 blocks at these addresses."""
        bits = ir.Constant(VT(I16, 4), ir.Undefined)
        for i, at in enumerate(blocks):
            bits = b.insert_element(bits, load(b, at, I16), I32(i))
        return *self.halves(b, blocks), simd.half_to_float(b, simd.shuffle(b, bits, bits, LANE_BLOCKS))

    def unpack_whole(self, b: Builder, at: Value) -> tuple[Value, Value, Value]:
        """`unpack` of 4 blocks in a row."""
        return self.unpack(b, [b.add(at, I64(j * self.type_size)) for j in range(4)])

    def multiply(self, b: Builder, low: Value, high: Value, x: Value) -> Value:
        """The 16 lane sums, int32, of a group of weights and the packed group at x."""
        lanes = load(b, x, VT(I32, 16), SUMS)
        if self.offset_shift:
            lanes = b.shl(lanes, constant(I32, 16, self.offset_shift))
        lanes = dot_bytes(b, lanes, low, load(b, x, VT(I8, 64), LOW))
        return dot_bytes(b, lanes, high, load(b, x, VT(I8, 64), HIGH))

    def dot(self, b: Builder, acc: Value, weights: tuple[Value, Value, Value], x: Value) -> Value:
        """acc + the group's products, each lane scaled."""
        low, high, scales = weights
        lanes = self.multiply(b, low, high, x)
        scale = b.fmul(scales, load(b, x, VT(F32, 16), SCALES))
        return simd.fma(b, b.sitofp(lanes, VT(F32, 16)), scale, acc)


class Q4_0(BlockType):
    """Half scale, 16 bytes: low nibbles are numbers 0..15, high nibbles 16..31; minus 8."""

    name = "Q4_0"
    type_size = 18
    offset_shift = 0

    def halves(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value]:
        return self._nibbles(b, simd.concatenate(b, [load(b, at, VT(I8, 16), 2) for at in blocks]))

    def unpack_whole(self, b: Builder, at: Value) -> tuple[Value, Value, Value]:
        if "avx512vbmi" not in simd.target_features():
            return super().unpack_whole(b, at)
        # One load holds three blocks and all four scales; a byte permute sorts them (vpermb, vpermw).
        first = load(b, at, VT(I8, 64))
        sorted_ = simd.shuffle(b, first, first, [18 * (i // 16) + 2 + i % 16 for i in range(48)] + [0] * 16)
        fourth = load(b, at, VT(I8, 16), 56)
        fourth = simd.shuffle(b, fourth, fourth, [i % 16 for i in range(64)])
        q = simd.shuffle(b, sorted_, fourth, [i if i < 48 else 64 + i for i in range(64)])
        words = b.bitcast(first, VT(I16, 32))
        scales = simd.shuffle(b, words, words, [9 * block for block in LANE_BLOCKS])
        return *self._nibbles(b, q), simd.half_to_float(b, scales)

    @staticmethod
    def _nibbles(b: Builder, q: Value) -> tuple[Value, Value]:
        return b.and_(q, constant(I8, 64, 15)), b.lshr(q, constant(I8, 64, 4))

    def values(self, b: Builder, at: Value) -> list[Value]:
        q = b.zext(load(b, at, VT(I8, 16), 2), VT(I32, 16))
        high = b.lshr(q, constant(I32, 16, 4))
        if "avx512f" in simd.target_features():
            # a 16-entry table in one register; vpermps looks at the low 4 bits only
            table = ir.Constant(VT(F32, 16), [float(i - 8) for i in range(16)])
            name = "llvm.x86.avx512.permvar.sf.512"
            return [simd.call(b, name, VT(F32, 16), table, half) for half in (q, high)]
        low, eight = b.and_(q, constant(I32, 16, 15)), constant(I32, 16, 8)
        return [b.sitofp(b.sub(half, eight), VT(F32, 16)) for half in (low, high)]


class Q8_0(BlockType):
    """Half scale, 32 int8."""

    name = "Q8_0"
    type_size = 34
    offset_shift = 4

    def halves(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value]:
        low = simd.concatenate(b, [load(b, at, VT(I8, 16), 2) for at in blocks])
        high = simd.concatenate(b, [load(b, at, VT(I8, 16), 18) for at in blocks])
        if not self._unsigned():
            return low, high
        flip = constant(I8, 64, -128)
        return b.xor(low, flip), b.xor(high, flip)

    def multiply(self, b: Builder, low: Value, high: Value, x: Value) -> Value:
        if self._unsigned():
            return super().multiply(b, low, high, x)
        lanes = dot_signed_bytes(b, constant(I32, 16, 0), low, load(b, x, VT(I8, 64), LOW))
        return dot_signed_bytes(b, lanes, high, load(b, x, VT(I8, 64), HIGH))

    def values(self, b: Builder, at: Value) -> list[Value]:
        return [b.sitofp(load(b, at, VT(I8, 16), offset), VT(F32, 16)) for offset in (2, 18)]

    @staticmethod
    def _unsigned() -> bool:
        # numbers up to 255 need vpdpbusd: pmaddubsw would saturate
        return {"avx512f", "avx512vnni"} <= simd.target_features()


class Q5_0(BlockType):
    """Half scale, 32 fifth bits, 16 bytes of nibbles as in Q4_0; minus 16."""

    name = "Q5_0"
    type_size = 22
    offset_shift = 1

    def halves(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value]:
        q = simd.concatenate(b, [load(b, at, VT(I8, 16), 6) for at in blocks])
        halves = (b.and_(q, constant(I8, 64, 15)), b.lshr(q, constant(I8, 64, 4)))
        low, high = (
            b.or_(half, self._fifth(b, [load(b, at, I16, offset) for at in blocks], 64))
            for half, offset in zip(halves, (2, 4), strict=True)
        )
        return low, high

    def values(self, b: Builder, at: Value) -> list[Value]:
        q = load(b, at, VT(I8, 16), 6)
        halves = (b.and_(q, constant(I8, 16, 15)), b.lshr(q, constant(I8, 16, 4)))
        whole = [
            b.or_(half, self._fifth(b, [load(b, at, I16, offset)], 16))
            for half, offset in zip(halves, (2, 4), strict=True)
        ]
        return [b.sitofp(b.sub(v, constant(I8, 16, 16)), VT(F32, 16)) for v in whole]

    @staticmethod
    def _fifth(b: Builder, words: list[Value], n: int) -> Value:
        """Words of 16 bits as n bytes of 0 or 16, a bit a byte."""
        bits = ir.Constant(VT(I16, len(words)), ir.Undefined)
        for i, word in enumerate(words):
            bits = b.insert_element(bits, word, I32(i))
        return b.select(b.bitcast(bits, VT(I1, n)), constant(I8, n, 16), constant(I8, n, 0))


class Q6_K(BlockType):
    """256 numbers: low nibbles [128 bytes], upper pairs of bits [64], 16 int8 scales, one half; minus 32.

    Half h of a block is a step. Its blocks of 32, numbered j, take bytes 32 (j mod 2) of the half's
    nibbles (the upper ones for j > 1) and pair j of the bits; each 16 numbers have their own scale.
    """

    name = "Q6_K"
    type_size = 210
    block = 256
    step_bytes = 105
    scale_offset = 208
    NIBBLES, PAIRS, PART_SCALES = 0, 128, 192

    def unpack_step(self, b: Builder, row: Value, step: Value, last_block: Value | None) -> Any:
        """Low and high halves, signed, and the scale of each half's lanes."""
        half = b.and_(step, I64(1))
        at = b.add(row, b.mul(b.lshr(step, I64(1)), I64(self.type_size)))
        nibbles, pairs = b.add(at, b.mul(half, I64(64))), b.add(at, b.mul(half, I64(32)))
        scales = b.sitofp(load(b, b.add(at, b.mul(half, I64(8))), VT(I8, 8), self.PART_SCALES), VT(F32, 8))
        scales = b.fmul(scales, simd.splat(b, self.scale(b, b.add(at, I64(self.scale_offset))), 8))
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

    def values(self, b: Builder, at: Value) -> list[Value]:
        """The block's 256 numbers before its half scale, as sixteen <16 x float>."""
        vectors: list[Value] = [None] * 16
        for half in (0, 1):
            for part in (0, 1):
                numbers = self._numbers(b, b.add(at, I64(64 * half)), b.add(at, I64(32 * half)), part)
                for j in range(4):
                    quarter = simd.shuffle(b, numbers, numbers, range(16 * j, 16 * j + 16))
                    i = 8 * half + 2 * j + part
                    scale = b.sitofp(load(b, at, I8, self.PART_SCALES + i), F32)
                    vectors[i] = b.fmul(b.sitofp(quarter, VT(F32, 16)), simd.splat(b, scale, 16))
        return vectors


F32_TYPE = FloatType("F32", 4)
F16_TYPE = FloatType("F16", 2)
BF16_TYPE = FloatType("BF16", 2)
Q8_0_TYPE = Q8_0()
Q4_0_TYPE = Q4_0()
Q5_0_TYPE = Q5_0()
Q6_K_TYPE = Q6_K()

WeightType = FloatType | BlockType
