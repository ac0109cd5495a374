"""How each block type is read: IR that unpacks weights, and multiplies them with inputs.

A float type's numbers are taken 16 at a time. A block type is one thing: how a *window* of 512 numbers becomes
bytes, scales and, where it has them, minima (`unpack_window`). Everything else is made of that: dot products with one
token and with a few (`block_sums.py`), panels for prompts (`panels.py`), sums of scaled rows and rows as float32
(`row_sums.py`). A type whose blocks are of 32 numbers also gives a *group* of 128, where a row ends.

Float types meet float32 inputs. Block types meet inputs packed by `pack.py`: windows of 512
int8 in 768 bytes, vectors of 16 dwords with a lane a block,

    64 d    4 int8: numbers 4 d to 4 d + 3 of a block, for d = 0 .. 7
    512     float32: its scale
    576     int32: minus the sum of its numbers
    640     float32: scale times sum
    704     a pair of int16: minus the sums of numbers 0..15 and 16..31

Block c = 4 g + j of a window, the j-th of group g, lies in lane 4 j + g, so that its products are added up where they
are. Where a row ends with a group, at most 4 blocks after whole windows, the group's blocks stand in all four lanes
4 j to 4 j + 3: four rows of weights meet them at once. The sums undo the offset of unsigned weights:
sum (q - 8) x = sum q x + 8 (-sum x).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from llvmlite import ir

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.byte_dots import dot_bytes, dot_signed_bytes, dot_words, halves_of_pairs
from hotcold.kernels.cpu.simd import F32, I1, I8, I16, I32, I64, VT, Builder, Value, constant, load
from hotcold.kernels.cpu.sizes import WINDOW

BLOCK = 32
GROUP = 128  # numbers that two vectors of bytes hold
GROUPS = 4  # of a window
GROUP_BLOCKS = GROUP // BLOCK
DWORDS = BLOCK // 4
SCALES, SUMS, SCALED_SUMS, HALF_SUMS = 512, 576, 640, 704  # offsets in a packed window
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
    """128 weights: stored numbers 0..15 and 16..31 of 4 blocks, <64 x i8>; what factors are made of, one a lane."""

    low: Value
    high: Value
    codes: list[Value]  # <16 x i16>: the scales, and the minima where the type has them
    nibbles: Value | None = None  # <64 x i8> that `BlockType.split` makes low and high of


@dataclass(frozen=True)
class Window:
    """512 weights: (low, high) of 4 groups, and what their sums are multiplied by, one block a lane.

    Attributes:
        factors: <16 x float> scales, and minima where the type has them.
        parts: of a type whose blocks have two scales within, those in pairs, <32 x i16>; then, with minima, minus
            the integers that are times the minimum.
        nibbles: of a type that has them, what `BlockType.split` makes each group's numbers of.
    """

    numbers: list[tuple[Value, Value]]
    factors: list[Value]
    parts: list[Value] = field(default_factory=list)
    nibbles: list[Value] = field(default_factory=list)


class BlockType:
    """A quantised type: blocks of 32 numbers, or of 256 that are told apart by 32.

    A number is scale * part * (q - offset) or scale * part * q + minimum * part of the minimum, where q is what is
    stored; the parts are 1 in a type without them. The subclasses below and in the other files of weights say how a
    window of one is read, and nothing else.
    """

    name: str
    type_id: int  # GGUF's number
    type_size: int  # bytes a block
    block = BLOCK  # numbers a block
    has_span = False  # whether 64 bytes hold what `unpack_span` permutes
    offset_shift = 0  # log2 of the offset that makes the stored numbers unsigned
    has_minimum = False  # whether a number is scale * q + minimum, with q unsigned and no offset
    has_parts = False  # whether numbers 0..15 and 16..31 of a block of 32 have a scale of their own each
    few_tokens = 10  # up to which rows are shared; above, panels are decoded
    is_slow = False  # whether a row takes longer to decode than some products with it
    largest = 255  # of the stored numbers: says how many of their products fit 16 bits

    @property
    def is_signed(self) -> bool:
        """Whether the stored numbers are int8, for want of an instruction that takes them unsigned."""
        return False

    @property
    def window_bytes(self) -> int:
        """Bytes of a row's 512 numbers."""
        return WINDOW // self.block * self.type_size

    def fits_words(self, n_products: int) -> bool:
        """Whether sums of so many products of stored numbers and bytes stay below 2^15."""
        return n_products * self.largest * 127 < 1 << 15

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
        return self.window_of(b, groups)

    def window_of(self, b: Builder, groups: list[Group]) -> Window:
        """4 groups as a window, of one row or of several."""
        factors = []
        for codes in zip(*(group.codes for group in groups), strict=True):
            bits = codes[0]
            for g in range(1, GROUPS):
                own = ir.Constant(VT(I1, 16), [lane % 4 == g for lane in range(16)])
                bits = b.select(own, codes[g], bits)
            factors.append(self.factor(b, bits))
        nibbles = [group.nibbles for group in groups if group.nibbles is not None]
        return Window([(group.low, group.high) for group in groups], factors, nibbles=nibbles)

    def factor(self, b: Builder, codes: Value) -> Value:
        """A group's codes as floats: they are halfs, unless a type says otherwise."""
        return simd.half_to_float(b, codes)

    def split(self, b: Builder, nibbles: Value) -> tuple[Value, Value]:
        """The stored numbers of which low and high nibbles tell, each lane of bytes by itself."""
        return split_nibbles(b, nibbles)

    def dot(self, b: Builder, lanes: Value, numbers: Value, x: Value) -> Value:
        """lanes + sums of 4 neighbouring products of stored numbers and those of inputs."""
        return (dot_signed_bytes if self.is_signed else dot_bytes)(b, lanes, numbers, x)

    def offsets(self, b: Builder, window: Window, x: Value) -> Value | None:
        """What the sums of a window's stored numbers lack, one block a lane; None if nothing."""
        if self.has_minimum or self.is_signed:
            return None
        sums = load(b, x, VT(I32, 16), SUMS)
        if self.has_parts:
            sums = dot_words(b, window.parts[0], load(b, x, VT(I16, 32), HALF_SUMS))
        return b.shl(sums, constant(I32, 16, self.offset_shift))

    def add_blocks(
        self,
        b: Builder,
        acc: Value,
        sums: Value,
        window: Window,
        x: Value,
    ) -> Value:
        """acc with a block's products in its lane: the one rule of `order_of_sums.dots_of_blocks_in_order`.

        Args:
            sums: <16 x i32>. window: whose factors count. x: address of the packed window.
        """
        scales = load(b, x, VT(F32, 16), SCALES)
        acc = simd.fma(b, b.sitofp(sums, VT(F32, 16)), b.fmul(window.factors[0], scales), acc)
        if not self.has_minimum:
            return acc
        scaled_sums = load(b, x, VT(F32, 16), SCALED_SUMS)
        if self.has_parts:
            of_minima = dot_words(b, window.parts[1], load(b, x, VT(I16, 32), HALF_SUMS))
            scaled_sums = b.fmul(scales, b.sitofp(of_minima, VT(F32, 16)))
        return simd.fma(b, window.factors[1], scaled_sums, acc)

    def halves(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value]:
        """Stored numbers 0..15 and 16..31 of 4 blocks of 32, <64 x i8> each."""
        raise NotImplementedError

    def unpack_halfs(self, b: Builder, addresses: list[Value]) -> Value:
        """The halfs at 4 addresses, one a lane, as <16 x i16>."""
        bits = ir.Constant(VT(I16, 4), ir.Undefined)
        for i, at in enumerate(addresses):
            bits = b.insert_element(bits, load(b, at, I16), I32(i))
        return simd.shuffle(b, bits, bits, LANE_BLOCKS)

    def unpack(self, b: Builder, blocks: list[Value]) -> Group:
        """The 4 blocks of 32 at these addresses."""
        return Group(*self.halves(b, blocks), [self.unpack_halfs(b, blocks)])

    def unpack_span(self, b: Builder, read: Read) -> Group:
        """`unpack` of 4 blocks in a row, for a type with `has_span`."""
        raise NotImplementedError

    def signed_numbers(self, b: Builder, numbers: Value) -> Value:
        """Stored numbers, <64 x i8>, as what their scale multiplies."""
        if self.has_minimum or self.is_signed:
            return numbers
        return b.sub(numbers, constant(I8, numbers.type.count, 1 << self.offset_shift))

    def scales_of_halves(self, b: Builder, window: Window) -> tuple[list[Value], list[Value]]:
        """Scales, and minima if there are any, of numbers 0..15 and, where they have their own, of 16..31."""
        if not self.has_parts:
            return window.factors[:1], window.factors[1:]
        parts = [
            [b.sitofp(half, VT(F32, 16)) for half in halves_of_pairs(b, pairs)] for pairs in window.parts
        ]
        minima = [b.fmul(window.factors[1], b.fneg(half)) for both in parts[1:] for half in both]
        return [b.fmul(window.factors[0], half) for half in parts[0]], minima


F32_TYPE = FloatType("F32", 0, 4)
F16_TYPE = FloatType("F16", 1, 2)
BF16_TYPE = FloatType("BF16", 30, 2)
WeightType = FloatType | BlockType
