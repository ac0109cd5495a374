"""How each block type is read: IR that unpacks weights, and multiplies them with inputs.

A weight type gives two views of a row:

* its numbers for dot products: float types 16 at a time, block types a *window* of 512 at a time and, where
  a row ends, a *group* of 128;
* its *values* as float vectors for the down product, which adds scaled rows.

Float types meet float32 inputs. Block types meet inputs packed by `pack.py`: windows of 512
int8 in 768 bytes, block c = 4 g + j of 32 being the j-th of group g,

    128 g        64 int8: numbers 0..15 of each of the group's 4 blocks
    128 g + 64   64 int8: numbers 16..31 of each
    512          16 float32: the blocks' scales
    576          16 int32: -8 times the sum of a block
    640          16 float32: scale times sum
    704          16 int32: -8 times the sum of a block's numbers 0..15

The last four have block 4 g + j in lane 4 j + g: where `block_sums.py` gets the sum of its products. The sums
undo the offset of unsigned weights: sum (q - 8) x = sum q x + (-8 sum x).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llvmlite import ir

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.byte_dots import dot_bytes, dot_signed_bytes
from hotcold.kernels.cpu.simd import F32, I1, I8, I16, I32, I64, VT, Builder, Value, constant, load

BLOCK = 32
GROUP = 128  # numbers that two vectors of bytes hold
GROUPS = 4  # of a window
WINDOW = GROUPS * GROUP
GROUP_BYTES, PACKED_WINDOW_BYTES = 128, 768
LOW, HIGH = 0, 64  # offsets in a packed group
SCALES, SUMS, SCALED_SUMS, FIRST_SUMS = 512, 576, 640, 704  # offsets in a packed window
LANE_BLOCKS = [lane // 4 for lane in range(16)]  # of a group, whose lanes are 4 neighbouring bytes


def block_lane(c: int) -> int:
    """The lane of a window's vectors that belongs to its block c."""
    return 4 * (c % 4) + c // 4


Read = Callable[[int, int], Value]  # read(offset, n): n bytes of a group of blocks from an offset on


def permutes_bytes() -> bool:
    """Whether the target permutes 64 bytes in one instruction and loads bytes under a mask."""
    return {"avx512bw", "avx512vbmi"} <= simd.target_features()


def nibbles_of_span(b: Builder, read: Read, type_size: int, start: int) -> tuple[Value, Value]:
    """The nibbles of 4 blocks, 16 bytes each from byte `start` of a block on, and the group's first 64 bytes.

    One load holds three blocks and a byte permute sorts them (vpermb); the fourth is loaded on top.
    """
    first = read(0, 64)
    sorted_ = [type_size * (i // 16) + start + i % 16 for i in range(48)] + [0] * 16
    fourth = read(3 * type_size + start, 16)
    fourth = simd.shuffle(b, fourth, fourth, [i % 16 for i in range(64)])
    q = simd.shuffle(
        b, simd.shuffle(b, first, first, sorted_), fourth, [i + 64 * (i >= 48) for i in range(64)]
    )
    return q, first


def halfs_of_span(b: Builder, first: Value, type_size: int, start: int) -> Value:
    """The half at byte `start` of each of 4 blocks, one a lane, as <16 x i16>; all lie in the 64 bytes."""
    words = b.bitcast(first, VT(I16, 32))
    return simd.shuffle(b, words, words, [(type_size * block + start) // 2 for block in LANE_BLOCKS])


def split_nibbles(b: Builder, q: Value) -> tuple[Value, Value]:
    """Low and high nibbles of each byte."""
    n = q.type.count
    return b.and_(q, constant(I8, n, 15)), b.lshr(q, constant(I8, n, 4))


@dataclass(frozen=True)
class FloatType:
    """F32, F16 or BF16: 16 weights a step."""

    name: str
    type_id: int  # GGUF's number
    type_size: int  # bytes a weight
    block = 1  # numbers a block
    in_sparse_ffn = True

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


@dataclass(frozen=True)
class Group:
    """128 weights: stored numbers 0..15 and 16..31 of 4 blocks, <64 x i8>; their halfs, one a lane."""

    low: Value
    high: Value
    halfs: list[Value]  # <16 x i16>: the scales, and the minima where the type has them


@dataclass(frozen=True)
class Window:
    """512 weights: (low, high) of 4 groups, and what their sums are multiplied by, one block a lane.

    Attributes:
        factors: <16 x float> scales, and minima where the type has them. parts: of a type whose blocks
            have two scales within, those as <16 x i32>.
    """

    numbers: list[tuple[Value, Value]]
    factors: list[Value]
    parts: list[Value] = field(default_factory=list)


class BlockType:
    """A quantised type with blocks of 32 and one half scale at the start of each block."""

    name: str
    type_id: int  # GGUF's number
    type_size: int  # bytes a block
    block = BLOCK  # numbers a block
    in_sparse_ffn = False  # whether sums of rows are made without widening them first
    has_span = False  # whether 64 bytes hold what `unpack_span` permutes
    offset_shift = 0  # log2 of an eighth of the offset that makes the stored numbers unsigned
    has_minimum = False  # whether a number is scale * q + minimum, with q unsigned and no offset
    has_parts = False  # whether numbers 0..15 and 16..31 of a block of 32 have a scale of their own each

    @property
    def is_signed(self) -> bool:
        """Whether the stored numbers are int8, for want of an instruction that takes them unsigned."""
        return False

    @property
    def window_bytes(self) -> int:
        """Bytes of a row's 512 numbers."""
        return WINDOW // self.block * self.type_size

    def unpack_group(self, b: Builder, row: Value, group: Value, last_block: Value | None = None) -> Group:
        """The weights of a row's group by its number.

        Args:
            last_block: number of the row's last block, for a group that may reach past the row's end,
                where the packed scales are zero: the last block or zeros stand in. None for a group that
                lies inside the row.
        """
        at = b.add(row, b.mul(group, I64(4 * self.type_size)))
        first = b.mul(group, I64(4))
        if self.has_span and permutes_bytes():
            left = None
            if last_block is not None:
                n_blocks = b.sub(b.add(last_block, I64(1)), first)
                n_blocks = b.select(b.icmp_signed("<", n_blocks, I64(4)), n_blocks, I64(4))
                n_blocks = b.select(b.icmp_signed("<", n_blocks, I64(0)), I64(0), n_blocks)
                left = b.mul(n_blocks, I64(self.type_size))
            return self.unpack_span(b, lambda offset, n: simd.load_bytes(b, at, offset, n, left))
        if last_block is None:
            return self.unpack(b, [b.add(at, I64(j * self.type_size)) for j in range(4)])
        numbers = [b.add(first, I64(j)) for j in range(4)]
        numbers = [b.select(b.icmp_signed("<", n, last_block), n, last_block) for n in numbers]
        return self.unpack(b, [b.add(row, b.mul(n, I64(self.type_size))) for n in numbers])

    def unpack_window(self, b: Builder, row: Value, window: Value, last_block: Value | None = None) -> Window:
        """The weights of a row's window by its number; `last_block` as in `unpack_group`."""
        first = b.mul(window, I64(GROUPS))
        groups = [self.unpack_group(b, row, b.add(first, I64(g)), last_block) for g in range(GROUPS)]
        factors = []
        for halfs in zip(*(group.halfs for group in groups), strict=True):
            bits = halfs[0]
            for g in range(1, GROUPS):
                own = ir.Constant(VT(I1, 16), [lane % 4 == g for lane in range(16)])
                bits = b.select(own, halfs[g], bits)
            factors.append(simd.half_to_float(b, bits))
        return Window([(group.low, group.high) for group in groups], factors)

    def group_lanes(self, b: Builder, window: Window | None, g: int, numbers: Any, x: Value) -> Value:
        """Sums of 4 neighbouring products each, <16 x i32>, of (low, high) and the packed group at x."""
        lanes = constant(I32, 16, 0)
        for part, offset in zip(numbers, (LOW, HIGH), strict=True):
            lanes = self.dot(b, lanes, part, load(b, x, VT(I8, 64), offset))
        return lanes

    def dot(self, b: Builder, lanes: Value, numbers: Value, x: Value) -> Value:
        """lanes + sums of 4 neighbouring products of stored numbers and those of inputs."""
        return (dot_signed_bytes if self.is_signed else dot_bytes)(b, lanes, numbers, x)

    def offsets(self, b: Builder, window: Window | None, x: Value) -> Value | None:
        """What the sums of a window's stored numbers lack, one block a lane; None if nothing."""
        if self.has_minimum or self.is_signed:
            return None
        return b.shl(load(b, x, VT(I32, 16), SUMS), constant(I32, 16, self.offset_shift))

    def add_blocks(
        self, b: Builder, acc: Value, sums: Value, factors: list[Value], x: Value, own: Value | None = None
    ) -> Value:
        """acc with a block's products in its lane: the one rule of `ref.dots_of_blocks`.

        Args:
            sums: <16 x i32>. factors: as in Window. x: address of the packed window.
            own: <16 x i1>, which lanes are meant; None for all.
        """

        def of_x(offset: int) -> Value:
            v = load(b, x, VT(F32, 16), offset)
            return v if own is None else b.select(own, v, constant(F32, 16, 0.0))

        scales = b.fmul(factors[0], of_x(SCALES))
        acc = simd.fma(b, b.sitofp(sums, VT(F32, 16)), scales, acc)
        return simd.fma(b, factors[1], of_x(SCALED_SUMS), acc) if self.has_minimum else acc

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

    def scaled(self, b: Builder, at: Value, scales: Value) -> list[Value]:
        """The block's 32 numbers, as two <16 x float>, by its scale in every lane."""
        return [b.fmul(v, scales) for v in self.values(b, at)]

    def widened(self, b: Builder, at: Value) -> list[Value]:
        """The block's numbers, as <16 x float>."""
        return self.scaled(b, at, simd.splat(b, self.scale(b, at), 16))

    def unpack_halfs(self, b: Builder, addresses: list[Value]) -> Value:
        """The halfs at 4 addresses, one a lane, as <16 x i16>."""
        bits = ir.Constant(VT(I16, 4), ir.Undefined)
        for i, at in enumerate(addresses):
            bits = b.insert_element(bits, load(b, at, I16), I32(i))
        return simd.shuffle(b, bits, bits, LANE_BLOCKS)

    def unpack(self, b: Builder, blocks: list[Value]) -> Group:
        """The 4 blocks at these addresses."""
        return Group(*self.halves(b, blocks), [self.unpack_halfs(b, blocks)])

    def unpack_span(self, b: Builder, read: Read) -> Group:
        """`unpack` of 4 blocks in a row, for a type with `has_span`."""
        raise NotImplementedError


class Q4_0(BlockType):
    """Half scale, 16 bytes: low nibbles are numbers 0..15, high nibbles 16..31; minus 8."""

    name = "Q4_0"
    type_id = 2
    type_size = 18
    in_sparse_ffn = True
    has_span = True

    def halves(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value]:
        return split_nibbles(b, simd.concatenate(b, [load(b, at, VT(I8, 16), 2) for at in blocks]))

    def unpack_span(self, b: Builder, read: Read) -> Group:
        q, first = nibbles_of_span(b, read, self.type_size, 2)
        return Group(*split_nibbles(b, q), [halfs_of_span(b, first, self.type_size, 0)])

    def scaled(self, b: Builder, at: Value, scales: Value) -> list[Value]:
        q = b.zext(load(b, at, VT(I8, 16), 2), VT(I32, 16))
        high = b.lshr(q, constant(I32, 16, 4))
        if "avx512f" in simd.target_features():
            # the block's 16 numbers in one register; vpermps looks at the low 4 bits only
            table = b.fmul(ir.Constant(VT(F32, 16), [float(i - 8) for i in range(16)]), scales)
            name = "llvm.x86.avx512.permvar.sf.512"
            return [simd.call(b, name, VT(F32, 16), table, half) for half in (q, high)]
        low, eight = b.and_(q, constant(I32, 16, 15)), constant(I32, 16, 8)
        return [b.fmul(b.sitofp(b.sub(half, eight), VT(F32, 16)), scales) for half in (low, high)]


class Q8_0(BlockType):
    """Half scale, 32 int8."""

    name = "Q8_0"
    type_id = 8
    type_size = 34
    in_sparse_ffn = True
    offset_shift = 4

    def halves(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value]:
        low = simd.concatenate(b, [load(b, at, VT(I8, 16), 2) for at in blocks])
        high = simd.concatenate(b, [load(b, at, VT(I8, 16), 18) for at in blocks])
        if self.is_signed:
            return low, high
        flip = constant(I8, 64, -128)
        return b.xor(low, flip), b.xor(high, flip)

    def values(self, b: Builder, at: Value) -> list[Value]:
        return [b.sitofp(load(b, at, VT(I8, 16), offset), VT(F32, 16)) for offset in (2, 18)]

    @property
    def is_signed(self) -> bool:
        # numbers up to 255 need vpdpbusd: pmaddubsw would saturate
        return not {"avx512f", "avx512vnni"} <= simd.target_features()


class FifthBits(BlockType):
    """Blocks of 32 numbers of 5 bits: halfs, 32 fifth bits, 16 bytes of nibbles as in Q4_0."""

    fifths: int  # where they start in a block

    def halves(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value]:
        """Numbers 0..15 and 16..31 of each block, unsigned."""
        n = 16 * len(blocks)
        heads = simd.concatenate(b, [load(b, at, VT(I8, 16)) for at in blocks])
        nibbles = simd.concatenate(b, [load(b, at, VT(I8, 16), self.fifths + 4) for at in blocks])
        mask = ir.Constant(VT(I8, n), [1 << i % 8 for i in range(n)])
        whole = []
        for part, nibble in enumerate(split_nibbles(b, nibbles)):
            # each byte that holds 8 of the bits, 8 times
            where = [16 * (i // 16) + self.fifths + 2 * part + i % 16 // 8 for i in range(n)]
            bits = b.and_(simd.shuffle(b, heads, heads, where), mask)
            is_set = b.icmp_unsigned("!=", bits, constant(I8, n, 0))
            whole.append(b.or_(nibble, b.select(is_set, constant(I8, n, 16), constant(I8, n, 0))))
        return whole[0], whole[1]

    def halfs(self, b: Builder, blocks: list[Value], start: int) -> Value:
        """The half at byte `start` of each block, one a lane, as <16 x i16>."""
        words = simd.concatenate(b, [load(b, at, VT(I16, 8)) for at in blocks])
        return simd.shuffle(b, words, words, [8 * block + start // 2 for block in LANE_BLOCKS])


class Q5_0(FifthBits):
    """A scale, fifth bits, nibbles; minus 16."""

    name = "Q5_0"
    type_id = 6
    type_size = 22
    fifths = 2
    offset_shift = 1

    def unpack(self, b: Builder, blocks: list[Value]) -> Group:
        return Group(*self.halves(b, blocks), [self.halfs(b, blocks, 0)])

    def values(self, b: Builder, at: Value) -> list[Value]:
        return [b.sitofp(b.sub(v, constant(I8, 16, 16)), VT(F32, 16)) for v in self.halves(b, [at])]


class Q4_1(BlockType):
    """Scale d, minimum m, 16 bytes of nibbles as in Q4_0: d q + m."""

    name = "Q4_1"
    type_id = 3
    type_size = 20
    has_span = True
    has_minimum = True

    def halves(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value]:
        return split_nibbles(b, simd.concatenate(b, [load(b, at, VT(I8, 16), 4) for at in blocks]))

    def unpack(self, b: Builder, blocks: list[Value]) -> Group:
        halfs = [self.unpack_halfs(b, [b.add(at, I64(i)) for at in blocks]) for i in (0, 2)]
        return Group(*self.halves(b, blocks), halfs)

    def unpack_span(self, b: Builder, read: Read) -> Group:
        q, first = nibbles_of_span(b, read, self.type_size, 4)
        return Group(*split_nibbles(b, q), [halfs_of_span(b, first, self.type_size, i) for i in (0, 2)])

    def widened(self, b: Builder, at: Value) -> list[Value]:
        return widened_with_minimum(b, self, at)


class Q5_1(FifthBits):
    """Scale d, minimum m, fifth bits, nibbles: d q + m."""

    name = "Q5_1"
    type_id = 7
    type_size = 24
    fifths = 4
    has_minimum = True

    def unpack(self, b: Builder, blocks: list[Value]) -> Group:
        return Group(*self.halves(b, blocks), [self.halfs(b, blocks, start) for start in (0, 2)])

    def widened(self, b: Builder, at: Value) -> list[Value]:
        return widened_with_minimum(b, self, at)


def widened_with_minimum(b: Builder, kind: BlockType, at: Value) -> list[Value]:
    """The block's numbers as two <16 x float>: d q + m with both halfs at the block's start."""
    scale = simd.splat(b, kind.scale(b, at), 16)
    minimum = simd.splat(b, kind.scale(b, b.add(at, I64(2))), 16)
    return [simd.fma(b, b.uitofp(v, VT(F32, 16)), scale, minimum) for v in kind.halves(b, [at])]


F32_TYPE = FloatType("F32", 0, 4)
F16_TYPE = FloatType("F16", 1, 2)
BF16_TYPE = FloatType("BF16", 30, 2)
WeightType = FloatType | BlockType
