"""Dot products of bytes, four neighbours a lane: the one place where an instruction is picked by hand.

The features of the target decide: AVX-512 VNNI or BW, AVX-VNNI, AVX2, else plain integer arithmetic.
"""

from hotcold.kernels.cpu.simd import (
    I8,
    I16,
    I32,
    VT,
    Builder,
    Value,
    call,
    concatenate,
    constant,
    shuffle,
    target_features,
)


def takes_unsigned_bytes() -> bool:
    """Whether `dot_bytes` takes all of 0..255: vpdpbusd does, pmaddubsw would saturate."""
    return {"avx512f", "avx512vnni"} <= target_features()


def dot_bytes(b: Builder, acc: Value, u: Value, s: Value) -> Value:
    """acc <16 x i32> += sums of 4 neighbouring products of u and s (int8), <64 x i8> each.

    u is unsigned: up to 128, since pmaddubsw saturates above; up to 255 where AVX-512 VNNI exists.
    """
    features = target_features()
    if takes_unsigned_bytes():
        return call(b, "llvm.x86.avx512.vpdpbusd.512", VT(I32, 16), acc, u, s)
    if {"avx512f", "avx512bw"} <= features:
        pairs = call(b, "llvm.x86.avx512.pmaddubs.w.512", VT(I16, 32), u, s)
        fours = call(b, "llvm.x86.avx512.pmaddw.d.512", VT(I32, 16), pairs, constant(I16, 32, 1))
        return b.add(acc, fours)
    if "avx2" in features:
        return _dot_bytes_halves(b, acc, u, s, "avxvnni" in features)
    return _dot_bytes_portable(b, acc, b.zext(u, VT(I16, 64)), b.sext(s, VT(I16, 64)))


def dot_signed_bytes(b: Builder, acc: Value, w: Value, s: Value) -> Value:
    """acc <16 x i32> += sums of 4 neighbouring products of w and s, both int8, s above -128.

    The byte instructions want one unsigned side: |w| takes it and s takes w's sign.
    """
    if "avx2" not in target_features():
        return _dot_bytes_portable(b, acc, b.sext(w, VT(I16, 64)), b.sext(s, VT(I16, 64)))
    zero = constant(I8, 64, 0)
    negative = b.icmp_signed("<", w, zero)
    magnitude = b.select(negative, b.sub(zero, w), w)
    signed = b.select(negative, b.sub(zero, s), s)
    return dot_bytes(b, acc, magnitude, signed)


def dot_words(b: Builder, x: Value, y: Value) -> Value:
    """Sums of 2 neighbouring products of <32 x i16>, as <16 x i32>."""
    features = target_features()
    if {"avx512f", "avx512bw"} <= features:
        return call(b, "llvm.x86.avx512.pmaddw.d.512", VT(I32, 16), x, y)
    if "avx2" in features:
        halves = [[shuffle(b, v, v, range(i, i + 16)) for v in (x, y)] for i in (0, 16)]
        return concatenate(b, [call(b, "llvm.x86.avx2.pmadd.wd", VT(I32, 8), *half) for half in halves])
    return b.add(*(b.mul(*both) for both in zip(halves_of_pairs(b, x), halves_of_pairs(b, y), strict=True)))


def halves_of_pairs(b: Builder, pairs: Value) -> list[Value]:
    """The first and the second of each pair of <32 x i16>, as <16 x i32>."""
    wide, sixteen = b.bitcast(pairs, VT(I32, 16)), constant(I32, 16, 16)
    return [b.ashr(b.shl(wide, sixteen), sixteen), b.ashr(wide, sixteen)]


def _dot_bytes_halves(b: Builder, acc: Value, u: Value, s: Value, vnni: bool) -> Value:
    parts = []
    for half in (0, 1):
        bytes_, lanes = range(32 * half, 32 * half + 32), range(8 * half, 8 * half + 8)
        uu, ss, aa = shuffle(b, u, u, bytes_), shuffle(b, s, s, bytes_), shuffle(b, acc, acc, lanes)
        if vnni:
            parts.append(call(b, "llvm.x86.avx512.vpdpbusd.256", VT(I32, 8), aa, uu, ss))
        else:
            pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", VT(I16, 16), uu, ss)
            fours = call(b, "llvm.x86.avx2.pmadd.wd", VT(I32, 8), pairs, constant(I16, 16, 1))
            parts.append(b.add(aa, fours))
    return concatenate(b, parts)


def _dot_bytes_portable(b: Builder, acc: Value, u: Value, s: Value) -> Value:
    products = b.mul(b.sext(u, VT(I32, 64)), b.sext(s, VT(I32, 64)))
    pairs = b.add(
        shuffle(b, products, products, range(0, 64, 2)), shuffle(b, products, products, range(1, 64, 2))
    )
    return b.add(
        acc, b.add(shuffle(b, pairs, pairs, range(0, 32, 2)), shuffle(b, pairs, pairs, range(1, 32, 2)))
    )
