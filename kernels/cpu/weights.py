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
    type_id: int  # GGUF's number
    type_size: int  # bytes a weight
    step = 16
    block = 1  # numbers a block
    unroll = 4  # steps of a row's loop body
    has_tiles = True
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
    type_id: int  # GGUF's number
    type_size: int  # bytes a block
    block = BLOCK  # numbers a block
    step = GROUP
    unroll = 2  # steps of a row's loop body
    has_tiles = True  # whether prompt tiles and sums of rows are made, which take long to compile
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

    def widened(self, b: Builder, at: Value) -> list[Value]:
        """The block's numbers, as <16 x float>."""
        scale = simd.splat(b, self.scale(b, at), 16)
        return [b.fmul(v, scale) for v in self.values(b, at)]

    def unpack_scales(self, b: Builder, addresses: list[Value]) -> Value:
        """The halfs at 4 addresses, one a lane, as <16 x float>."""
        bits = ir.Constant(VT(I16, 4), ir.Undefined)
        for i, at in enumerate(addresses):
            bits = b.insert_element(bits, load(b, at, I16), I32(i))
        return simd.half_to_float(b, simd.shuffle(b, bits, bits, LANE_BLOCKS))

    def unpack(self, b: Builder, blocks: list[Value]) -> Any:
        """Both halves and the scales, one a lane, of the 4 blocks at these addresses."""
        return *self.halves(b, blocks), self.unpack_scales(b, blocks)

    def unpack_whole(self, b: Builder, at: Value) -> Any:
        """`unpack` of 4 blocks in a row."""
        return self.unpack(b, [b.add(at, I64(j * self.type_size)) for j in range(4)])

    def multiply(self, b: Builder, low: Value, high: Value, x: Value) -> Value:
        """The 16 lane sums, int32, of a group of weights and the packed group at x."""
        lanes = load(b, x, VT(I32, 16), SUMS)
        if self.offset_shift:
            lanes = b.shl(lanes, constant(I32, 16, self.offset_shift))
        lanes = dot_bytes(b, lanes, low, load(b, x, VT(I8, 64), LOW))
        return dot_bytes(b, lanes, high, load(b, x, VT(I8, 64), HIGH))

    def dot(self, b: Builder, acc: Value, weights: Any, x: Value) -> Value:
        """acc + the group's products, each lane scaled."""
        low, high, scales = weights
        lanes = self.multiply(b, low, high, x)
        scale = b.fmul(scales, load(b, x, VT(F32, 16), SCALES))
        return simd.fma(b, b.sitofp(lanes, VT(F32, 16)), scale, acc)


class Q4_0(BlockType):
    """Half scale, 16 bytes: low nibbles are numbers 0..15, high nibbles 16..31; minus 8."""

    name = "Q4_0"
    type_id = 2
    type_size = 18
    unroll = 4

    def halves(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value]:
        return self._nibbles(b, simd.concatenate(b, [load(b, at, VT(I8, 16), 2) for at in blocks]))

    def unpack_whole(self, b: Builder, at: Value) -> Any:
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
    type_id = 8
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
    type_id = 6
    has_tiles = False
    type_size = 22
    offset_shift = 1

    def halves(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value]:
        q = simd.concatenate(b, [load(b, at, VT(I8, 16), 6) for at in blocks])
        halves = (b.and_(q, constant(I8, 64, 15)), b.lshr(q, constant(I8, 64, 4)))
        low, high = (
            b.or_(half, fifth_bits(b, [load(b, at, I16, offset) for at in blocks], 64))
            for half, offset in zip(halves, (2, 4), strict=True)
        )
        return low, high

    def values(self, b: Builder, at: Value) -> list[Value]:
        q = load(b, at, VT(I8, 16), 6)
        halves = (b.and_(q, constant(I8, 16, 15)), b.lshr(q, constant(I8, 16, 4)))
        whole = [
            b.or_(half, fifth_bits(b, [load(b, at, I16, offset)], 16))
            for half, offset in zip(halves, (2, 4), strict=True)
        ]
        return [b.sitofp(b.sub(v, constant(I8, 16, 16)), VT(F32, 16)) for v in whole]


def fifth_bits(b: Builder, words: list[Value], n: int) -> Value:
    """Words of 16 bits as n bytes of 0 or 16, a bit a byte."""
    bits = ir.Constant(VT(I16, len(words)), ir.Undefined)
    for i, word in enumerate(words):
        bits = b.insert_element(bits, word, I32(i))
    return b.select(b.bitcast(bits, VT(I1, n)), constant(I8, n, 16), constant(I8, n, 0))


class MinimumType(BlockType):
    """Blocks of 32 unsigned numbers with a scale d and a minimum m, halfs: d q + m."""

    has_tiles = False

    def nibbles(self, b: Builder, at: Value) -> list[Value]:
        """Stored numbers 0..15 and 16..31 of one block, <16 x i8> each."""
        raise NotImplementedError

    def halves(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value]:
        pairs = [self.nibbles(b, at) for at in blocks]
        low, high = (simd.concatenate(b, list(part)) for part in zip(*pairs, strict=True))
        return low, high

    def unpack(self, b: Builder, blocks: list[Value]) -> Any:
        """Both halves, the scales and the minima, one a lane."""
        low, high, scales = super().unpack(b, blocks)
        return low, high, scales, self.unpack_scales(b, [b.add(at, I64(2)) for at in blocks])

    def dot(self, b: Builder, acc: Value, weights: Any, x: Value) -> Value:
        low, high, scales, minima = weights
        return dot_with_minimum(b, acc, low, high, scales, minima, x)

    def widened(self, b: Builder, at: Value) -> list[Value]:
        scale = simd.splat(b, self.scale(b, at), 16)
        minimum = simd.splat(b, self.scale(b, b.add(at, I64(2))), 16)
        numbers = [b.uitofp(part, VT(F32, 16)) for part in self.nibbles(b, at)]
        return [simd.fma(b, v, scale, minimum) for v in numbers]


def dot_with_minimum(
    b: Builder, acc: Value, low: Value, high: Value, scales: Value, minima: Value, x: Value
) -> Value:
    """acc + scale * (q . x) + minimum * (sum of x), lane by lane; the packed group holds -8 times the sums."""
    lanes = dot_bytes(b, constant(I32, 16, 0), low, load(b, x, VT(I8, 64), LOW))
    lanes = dot_bytes(b, lanes, high, load(b, x, VT(I8, 64), HIGH))
    x_scales = load(b, x, VT(F32, 16), SCALES)
    acc = simd.fma(b, b.sitofp(lanes, VT(F32, 16)), b.fmul(scales, x_scales), acc)
    sums = b.sitofp(load(b, x, VT(I32, 16), SUMS), VT(F32, 16))
    return simd.fma(b, b.fmul(sums, constant(F32, 16, -0.125)), b.fmul(minima, x_scales), acc)


class Q4_1(MinimumType):
    """Scale, minimum, 16 bytes of nibbles as in Q4_0."""

    name = "Q4_1"
    type_id = 3
    type_size = 20

    def nibbles(self, b: Builder, at: Value) -> list[Value]:
        q = load(b, at, VT(I8, 16), 4)
        return [b.and_(q, constant(I8, 16, 15)), b.lshr(q, constant(I8, 16, 4))]


class Q5_1(MinimumType):
    """Scale, minimum, 32 fifth bits, 16 bytes of nibbles as in Q4_0."""

    name = "Q5_1"
    type_id = 7
    type_size = 24

    def nibbles(self, b: Builder, at: Value) -> list[Value]:
        q = load(b, at, VT(I8, 16), 8)
        halves = (b.and_(q, constant(I8, 16, 15)), b.lshr(q, constant(I8, 16, 4)))
        fifths = [fifth_bits(b, [load(b, at, I16, offset)], 16) for offset in (4, 6)]
        return [b.or_(half, bits) for half, bits in zip(halves, fifths, strict=True)]


F32_TYPE = FloatType("F32", 0, 4)
F16_TYPE = FloatType("F16", 1, 2)
BF16_TYPE = FloatType("BF16", 30, 2)
WeightType = FloatType | BlockType
