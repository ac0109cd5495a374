"""Types with blocks of 32 numbers: a half scale or two, then the numbers."""

from collections.abc import Sequence

from gguf import quants
from llvmlite import ir

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.byte_dots import takes_unsigned_bytes
from hotcold.kernels.cpu.byte_tables import listed_bytes
from hotcold.kernels.cpu.simd import F32, I8, I16, I32, I64, VT, Builder, Value, constant, load
from hotcold.kernels.cpu.weights import (
    LANE_BLOCKS,
    BlockType,
    Group,
    Read,
    halfs_of_span,
    nibbles_of_span,
    split_nibbles,
)


class Nibbles(BlockType):
    """Halfs, then 16 bytes: low nibbles are numbers 0..15, high nibbles 16..31."""

    largest = 15
    has_span = True
    halfs: tuple[int, ...] = (0,)  # where they are in a block

    @property
    def first(self) -> int:
        """The first byte of nibbles."""
        return self.type_size - 16

    def unpack(self, b: Builder, blocks: list[Value]) -> Group:
        q = simd.concatenate(b, [load(b, at, VT(I8, 16), self.first) for at in blocks])
        return Group(*self.split(b, q), self.codes(b, blocks), q)

    def codes(self, b: Builder, blocks: list[Value]) -> list[Value]:
        """What the blocks' factors are made of, one a lane."""
        return [self.unpack_halfs(b, [b.add(at, I64(i)) for at in blocks]) for i in self.halfs]

    def unpack_span(self, b: Builder, read: Read) -> Group:
        q, head = nibbles_of_span(b, read, self.type_size, self.first)
        return Group(*self.split(b, q), self.codes_of_span(b, head), q)

    def codes_of_span(self, b: Builder, head: Value) -> list[Value]:
        """`codes` from a group's first 64 bytes."""
        return [halfs_of_span(b, head, self.type_size, i) for i in self.halfs]


class Q4_0(Nibbles):
    """Half scale, nibbles; minus 8."""

    name = "Q4_0"
    type_id = 2
    type_size = 18
    offset_shift = 3


class Q8_0(BlockType):
    """Half scale, 32 int8."""

    name = "Q8_0"
    type_id = 8
    type_size = 34
    offset_shift = 7

    def halves(self, b: Builder, blocks: list[Value]) -> tuple[Value, Value]:
        low = simd.concatenate(b, [load(b, at, VT(I8, 16), 2) for at in blocks])
        high = simd.concatenate(b, [load(b, at, VT(I8, 16), 18) for at in blocks])
        if self.is_signed:
            return low, high
        flip = constant(I8, 64, -128)
        return b.xor(low, flip), b.xor(high, flip)

    @property
    def is_signed(self) -> bool:
        return not takes_unsigned_bytes()


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
    offset_shift = 4

    def unpack(self, b: Builder, blocks: list[Value]) -> Group:
        return Group(*self.halves(b, blocks), [self.halfs(b, blocks, 0)])


class Q4_1(Nibbles):
    """Scale d, minimum m, 16 bytes of nibbles as in Q4_0: d q + m."""

    name = "Q4_1"
    type_id = 3
    type_size = 20
    halfs = (0, 2)
    has_minimum = True


class Q5_1(FifthBits):
    """Scale d, minimum m, fifth bits, nibbles: d q + m."""

    name = "Q5_1"
    type_id = 7
    type_size = 24
    fifths = 4
    has_minimum = True

    def unpack(self, b: Builder, blocks: list[Value]) -> Group:
        return Group(*self.halves(b, blocks), [self.halfs(b, blocks, start) for start in (0, 2)])


class IQ4_NL(Q4_0):
    """As Q4_0, but a nibble is the place of a number in a table."""

    name = "IQ4_NL"
    type_id = 20
    largest = 255
    offset_shift = 7

    def split(self, b: Builder, nibbles: Value) -> tuple[Value, Value]:
        table = _table(quants.IQ4_NL.kvalues, 0 if self.is_signed else 128)
        low, high = split_nibbles(b, nibbles)
        return listed_bytes(b, table, low), listed_bytes(b, table, high)

    @property
    def is_signed(self) -> bool:
        return not takes_unsigned_bytes()


class MXFP4(Nibbles):
    """The power of two that is the scale, 16 bytes of nibbles as in Q4_0: places of the 16 numbers of e2m1."""

    name = "MXFP4"
    type_id = 39
    type_size = 17
    largest = 255
    offset_shift = 4

    def codes(self, b: Builder, blocks: list[Value]) -> list[Value]:
        exponents = ir.Constant(VT(I8, 4), ir.Undefined)
        for i, at in enumerate(blocks):
            exponents = b.insert_element(exponents, load(b, at, I8), I32(i))
        return [b.zext(simd.shuffle(b, exponents, exponents, LANE_BLOCKS), VT(I16, 16))]

    def codes_of_span(self, b: Builder, head: Value) -> list[Value]:
        exponents = simd.shuffle(b, head, head, [self.type_size * block for block in LANE_BLOCKS])
        return [b.zext(exponents, VT(I16, 16))]

    def split(self, b: Builder, nibbles: Value) -> tuple[Value, Value]:
        table = _table(quants.MXFP4.kvalues, 16)
        low, high = split_nibbles(b, nibbles)
        return listed_bytes(b, table, low), listed_bytes(b, table, high)

    def factor(self, b: Builder, codes: Value) -> Value:
        """2^(e - 128); the table's numbers are twice those of e2m1."""
        e = b.zext(codes, VT(I32, 16))
        normal = b.shl(b.sub(e, constant(I32, 16, 1)), constant(I32, 16, 23))
        small = b.shl(constant(I32, 16, 0x00200000), b.and_(e, constant(I32, 16, 1)))
        bits = b.select(b.icmp_unsigned("<", e, constant(I32, 16, 2)), small, normal)
        return b.bitcast(bits, VT(F32, 16))


def _table(values: Sequence[int], offset: int) -> list[int]:
    """The numbers of a table as they are stored."""
    return [value + offset for value in values]
