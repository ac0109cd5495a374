"""Bytes found in tables: 16 of them in a register, or grids of 4 or 8 neighbours in memory."""

from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from hotcold.kernels.cpu import simd
from hotcold.kernels.cpu.simd import I1, I8, I16, I64, VT, Builder, Value, call, constant, shuffle


def listed_bytes(b: Builder, table: Sequence[int], places: Value) -> Value:
    """table[place] for <64 x i8> places below 16."""
    sixteen = [value % 256 for value in table]
    features = simd.target_features()
    if {"avx512f", "avx512bw"} <= features:
        whole = ir.Constant(VT(I8, 64), sixteen * 4)
        return call(b, "llvm.x86.avx512.pshuf.b.512", VT(I8, 64), whole, places)
    if "avx2" in features:
        whole = ir.Constant(VT(I8, 32), sixteen * 2)
        halves = [shuffle(b, places, places, range(i, i + 32)) for i in (0, 32)]
        return simd.concatenate(
            b, [call(b, "llvm.x86.avx2.pshuf.b", VT(I8, 32), whole, half) for half in halves]
        )
    out = constant(I8, 64, 0)
    for place, value in enumerate(sixteen):
        here = b.icmp_unsigned("==", places, constant(I8, 64, place))
        out = b.or_(out, b.and_(b.sext(here, VT(I8, 64)), constant(I8, 64, value)))
    return out


def grid_bytes(b: Builder, name: str, grid: Callable[[], NDArray[np.int8]], places: Value) -> Value:
    """The grid's entries in these places, <8 x i64> of 8 bytes each or <16 x i32> of 4, as <64 x i8>.

    Args:
        grid: gives int8 [n, 8 or 4], which becomes part of the machine code by its name.
    """
    n, width = places.type.count, places.type.element.width
    table = b.module.globals.get(name)
    if table is None:
        entries = np.ascontiguousarray(grid()).view(f"i{width // 8}").ravel().tolist()
        kind = ir.ArrayType(ir.IntType(width), len(entries))
        table = ir.GlobalVariable(b.module, kind, name)
        table.initializer = ir.Constant(kind, entries)
        table.linkage, table.global_constant = "internal", True
    base = simd.splat(b, b.ptrtoint(table, I64), n)
    wide = places if width == 64 else b.zext(places, VT(I64, n))
    addresses = b.add(base, b.mul(wide, constant(I64, n, width // 8)))
    return b.bitcast(simd.gather(b, addresses, ir.IntType(width)), VT(I8, 64))


def looks_up_words() -> bool:
    """Whether the target permutes 64 words of two registers, and shifts each byte of 64 by a distance of its own."""
    return {"avx512f", "avx512bw", "avx512vbmi"} <= simd.target_features()


def listed_words(b: Builder, table: Sequence[int], places: Value) -> Value:
    """table[place] for <32 x i16> places, of 64 words or a power of two times as many, where `looks_up_words`."""
    parts = [ir.Constant(VT(I16, 32), list(table[i : i + 32])) for i in range(0, len(table), 32)]
    name = "llvm.x86.avx512.vpermi2var.hi.512"
    found = [call(b, name, VT(I16, 32), x, places, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    bit = 64
    while len(found) > 1:
        upper = b.icmp_unsigned("!=", b.and_(places, constant(I16, 32, bit)), constant(I16, 32, 0))
        found = [b.select(upper, y, x) for x, y in zip(found[::2], found[1::2], strict=True)]
        bit *= 2
    return found[0]


def shifted_bytes(b: Builder, words: Value, shifts: Sequence[int]) -> Value:
    """Byte i of each 8: the 8 bits from bit shifts[i] on of the 64 bits that it is in, where `looks_up_words`."""
    control = ir.Constant(VT(I8, 64), list(shifts) * 8)
    return call(b, "llvm.x86.avx512.pmultishift.qb.512", VT(I8, 64), control, b.bitcast(words, VT(I8, 64)))


def negated(b: Builder, numbers: Value, signs: Value) -> Value:
    """<64 x i8> numbers, negated where their bit of an i64 is set."""
    bits = b.bitcast(signs, VT(I1, 64))
    return b.select(bits, b.sub(constant(I8, 64, 0), numbers), numbers)


def arranged_bits(b: Builder, numbers: Value, bits: Sequence[dict[int, int]]) -> Value:
    """<64 x i8>, in each byte only some bits of the number there; for every 16 bytes {bit: the bit it comes from}.

    Where the target multiplies bytes by matrices of bits that is one instruction, else a rotation and a mask.
    """
    if {"gfni", "avx512f"} <= simd.target_features():
        rows = [[1 << sources[7 - row] if 7 - row in sources else 0 for row in range(8)] for sources in bits]
        matrices = ir.Constant(VT(I8, 64), [row for matrix in rows for row in matrix * 2])
        return call(b, "llvm.x86.vgf2p8affineqb.512", VT(I8, 64), numbers, matrices, I8(0))
    words = b.bitcast(numbers, VT(I64, 8))
    moves = [next(bit - source for bit, source in sources.items()) % 64 for sources in bits]
    left = ir.Constant(VT(I64, 8), [move for move in moves for _ in range(2)])
    rotated = b.bitcast(call(b, "llvm.fshl.v8i64", VT(I64, 8), words, words, left), VT(I8, 64))
    masks = [sum(1 << bit for bit in sources) for sources in bits]
    return b.and_(rotated, ir.Constant(VT(I8, 64), [mask for mask in masks for _ in range(16)]))
