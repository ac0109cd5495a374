"""What njit code calls: vectors of 16 float32 and 8 int64, scalars at addresses, bits, prefetches.

Each is one `operation` of the pieces in `simd.py`. Vectors live in registers; addresses are plain integers.
"""

import math
from collections.abc import Callable

from numba import types

from hotcold.kernels.cpu.simd import (
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    VT,
    Builder,
    Value,
    address,
    call,
    constant,
    emit_prefetch,
    exp2_up_to_0,
    exponential,
    f32x16,
    fabs,
    float_to_half,
    fma,
    fold,
    half_to_float,
    i64x8,
    larger,
    largest_magnitude,
    load,
    operation,
    rounded_bytes,
    splat,
    store,
    stream_locality,
    sum_lanes,
)

_GELU = 2 * math.sqrt(2 / math.pi)


@operation(f32x16)
def zero(b: Builder) -> Value:
    """Sixteen zeros."""
    return constant(F32, 16, 0.0)


@operation(f32x16, types.float32)
def splat16(b: Builder, x: Value) -> Value:
    """Sixteen times x."""
    return splat(b, x, 16)


@operation(f32x16, address)
def load16(b: Builder, at: Value) -> Value:
    """16 float32."""
    return load(b, at, VT(F32, 16))


@operation(types.void, address, f32x16)
def store16(b: Builder, at: Value, v: Value) -> None:
    """16 float32."""
    store(b, v, at)


@operation(types.void, address, f32x16)
def store16_half(b: Builder, at: Value, v: Value) -> None:
    """16 float32 as halfs, 32 bytes."""
    store(b, float_to_half(b, v), at)


@operation(types.void, address, types.float32)
def store_half(b: Builder, at: Value, v: Value) -> None:
    """One float32 as a half."""
    store(b, b.extract_element(float_to_half(b, splat(b, v, 16)), I32(0)), at)


def _scatter(b: Builder, at: Value, step: Value, v: Value) -> None:
    """Lane i to address at + i step."""
    for i in range(v.type.count):
        store(b, b.extract_element(v, I32(i)), at)
        at = b.add(at, step)


@operation(types.void, address, types.int64, f32x16)
def scatter16(b: Builder, at: Value, step: Value, v: Value) -> None:
    """16 float32, `step` bytes from one to the next."""
    _scatter(b, at, step, v)


@operation(types.void, address, types.int64, f32x16)
def scatter16_half(b: Builder, at: Value, step: Value, v: Value) -> None:
    """16 float32 as halfs, `step` bytes from one to the next."""
    _scatter(b, at, step, float_to_half(b, v))


@operation(types.void, address, types.int64, f32x16)
def scatter16_bytes(b: Builder, at: Value, step: Value, v: Value) -> None:
    """16 float32 rounded to int8 (see `simd.rounded_bytes`), `step` bytes from one to the next."""
    _scatter(b, at, step, rounded_bytes(b, v))


@operation(f32x16, address)
def load16_half(b: Builder, at: Value) -> Value:
    """16 halfs, 32 bytes."""
    return half_to_float(b, load(b, at, VT(I16, 16)))


@operation(f32x16, address)
def load16_bytes(b: Builder, at: Value) -> Value:
    """16 int8 as floats."""
    return b.sitofp(load(b, at, VT(I8, 16)), VT(F32, 16))


@operation(f32x16, address)
def splat16_half(b: Builder, at: Value) -> Value:
    """Sixteen times the half at an address."""
    return half_to_float(b, splat(b, load(b, at, I16), 16))


@operation(f32x16, f32x16, f32x16)
def sub16(b: Builder, x: Value, y: Value) -> Value:
    """x - y."""
    return b.fsub(x, y)


@operation(f32x16, f32x16, f32x16)
def div16(b: Builder, x: Value, y: Value) -> Value:
    """x / y."""
    return b.fdiv(x, y)


@operation(f32x16, f32x16)
def exp2_16(b: Builder, x: Value) -> Value:
    """2^x for x <= 0."""
    return exp2_up_to_0(b, x)


@operation(f32x16, f32x16, f32x16)
def add16(b: Builder, x: Value, y: Value) -> Value:
    """x + y."""
    return b.fadd(x, y)


@operation(f32x16, f32x16, f32x16)
def mul16(b: Builder, x: Value, y: Value) -> Value:
    """x * y."""
    return b.fmul(x, y)


@operation(f32x16, f32x16, f32x16, f32x16)
def fma16(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """x * y + z."""
    return fma(b, x, y, z)


@operation(f32x16, f32x16, f32x16)
def max16(b: Builder, x: Value, y: Value) -> Value:
    """The larger of both."""
    return larger(b, x, y)


@operation(f32x16, f32x16, f32x16)
def min16(b: Builder, x: Value, y: Value) -> Value:
    """The smaller of both; x where it is NaN."""
    return b.select(b.fcmp_ordered(">", x, y), y, x)


@operation(f32x16, f32x16, f32x16)
def keep_large16(b: Builder, x: Value, least: Value) -> Value:
    """x where |x| is not below `least`, which a NaN never is; else 0."""
    return b.select(b.fcmp_ordered("<", fabs(b, x), least), constant(F32, 16, 0.0), x)


@operation(f32x16, f32x16)
def relu16(b: Builder, x: Value) -> Value:
    """max(x, 0); NaN gives 0."""
    return larger(b, x, constant(F32, 16, 0.0))


@operation(f32x16, f32x16)
def silu16(b: Builder, x: Value) -> Value:
    """x / (1 + e^-x)."""
    return b.fdiv(x, b.fadd(exponential(b, b.fneg(x)), constant(F32, 16, 1.0)))


@operation(f32x16, f32x16)
def gelu16(b: Builder, x: Value) -> Value:
    """x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3): x (1 + tanh u) / 2."""
    square = b.fmul(x, x)
    factor = fma(b, square, constant(F32, 16, _GELU * 0.044715), constant(F32, 16, _GELU))
    return b.fdiv(x, b.fadd(exponential(b, b.fneg(b.fmul(x, factor))), constant(F32, 16, 1.0)))


@operation(types.float32, f32x16)
def first16(b: Builder, v: Value) -> Value:
    """Lane 0."""
    return b.extract_element(v, I32(0))


@operation(types.float32, types.float64)
def to_f32(b: Builder, x: Value) -> Value:
    """A double as float32."""
    return b.fptrunc(x, F32)


@operation(types.float32, f32x16)
def sum16(b: Builder, v: Value) -> Value:
    """The sum of 16 lanes."""
    return sum_lanes(b, v)


@operation(types.float32, f32x16, f32x16)
def largest_magnitude16(b: Builder, x: Value, y: Value) -> Value:
    """The largest absolute value of 32 lanes, NaN if one is NaN."""
    return largest_magnitude(b, x, y)


@operation(i64x8)
def zero_words(b: Builder) -> Value:
    """Eight zeros."""
    return constant(I64, 8, 0)


@operation(i64x8, i64x8, address)
def add_words(b: Builder, acc: Value, at: Value) -> Value:
    """acc + the 64 bytes at `at`."""
    return b.add(acc, load(b, at, VT(I64, 8)))


@operation(types.int64, i64x8)
def sum_words(b: Builder, v: Value) -> Value:
    """The sum of 8 lanes."""
    return fold(b, v, lambda b, x, y: b.add(x, y))


@operation(types.float32, address)
def load_f32(b: Builder, at: Value) -> Value:
    """One float32."""
    return load(b, at, F32, align=4)


@operation(types.void, address, types.float32)
def store_f32(b: Builder, at: Value, v: Value) -> None:
    """One float32."""
    store(b, v, at, align=4)


@operation(types.int32, address)
def load_i32(b: Builder, at: Value) -> Value:
    """One int32."""
    return load(b, at, I32, align=4)


@operation(types.int64, address)
def load_i64(b: Builder, at: Value) -> Value:
    """One int64."""
    return load(b, at, I64, align=8)


@operation(types.void, address, types.int64)
def store_i32(b: Builder, at: Value, v: Value) -> None:
    """One int32, the low half of v."""
    store(b, b.trunc(v, I32), at, align=4)


@operation(types.void, address, types.int64)
def store_i64(b: Builder, at: Value, v: Value) -> None:
    """One int64."""
    store(b, v, at, align=8)


def _word(b: Builder, at: Value, test: Callable[[Value], Value]) -> Value:
    """Bit i of an int64: whether float i of the 64 at an address passes the test."""
    word = I64(0)
    for i in range(4):
        bits = b.bitcast(test(load(b, at, VT(F32, 16), 64 * i)), I16)
        word = b.or_(word, b.shl(b.zext(bits, I64), I64(16 * i)))
    return word


@operation(types.int64, address, types.float32)
def word_not_below(b: Builder, at: Value, limit: Value) -> Value:
    """Which of 64 floats are not below a limit, bit by bit; NaN is not."""
    return _word(b, at, lambda v: b.fcmp_unordered(">=", v, splat(b, limit, 16)))


@operation(types.int64, address)
def word_positive(b: Builder, at: Value) -> Value:
    """Which of 64 floats are above 0; NaN is not."""
    return _word(b, at, lambda v: b.fcmp_ordered(">", v, constant(F32, 16, 0.0)))


@operation(types.int64, address)
def word_not_zero(b: Builder, at: Value) -> Value:
    """Which of 64 floats are not 0."""
    return _word(b, at, lambda v: b.fcmp_unordered("!=", v, constant(F32, 16, 0.0)))


def _keep(b: Builder, at: Value, word: Value, make: Callable[[Value, int], Value]) -> None:
    """Of 64 floats at an address make(16 of them, their offset) where a bit of the word is set, else 0."""
    for i in range(4):
        bits = b.bitcast(b.trunc(b.lshr(word, I64(16 * i)), I16), VT(I1, 16))
        v = make(load(b, at, VT(F32, 16), 64 * i), 64 * i)
        store(b, b.select(bits, v, constant(F32, 16, 0.0)), at, 64 * i)


@operation(types.void, address, types.int64)
def keep_word(b: Builder, y: Value, word: Value) -> None:
    """Of 64 floats keep those whose bit is set; the others become 0."""
    _keep(b, y, word, lambda v, _: v)


@operation(types.void, address, address, types.int64)
def gate_word(b: Builder, y: Value, z: Value, word: Value) -> None:
    """The same, times 64 floats at z."""
    _keep(b, y, word, lambda v, offset: b.fmul(v, load(b, z, VT(F32, 16), offset)))


@operation(types.void, address, address, types.int64)
def gate_positive_word(b: Builder, y: Value, z: Value, word: Value) -> None:
    """The same, where a float at y below 0 counts as 0."""
    zero = constant(F32, 16, 0.0)
    _keep(b, y, word, lambda v, offset: b.fmul(larger(b, zero, v), load(b, z, VT(F32, 16), offset)))


@operation(types.int64, types.int64)
def lowest_bit(b: Builder, word: Value) -> Value:
    """Number of the lowest bit that is set; 64 for none."""
    return call(b, "llvm.cttz.i64", I64, word, I1(0))


@operation(types.int64, types.int64)
def count_bits(b: Builder, word: Value) -> Value:
    """How many bits are set."""
    return call(b, "llvm.ctpop.i64", I64, word)


@operation(types.void, address)
def prefetch(b: Builder, at: Value) -> None:
    """`emit_prefetch` into the second level."""
    emit_prefetch(b, at, 2)


@operation(types.void, address)
def prefetch_stream(b: Builder, at: Value) -> None:
    """`emit_prefetch` into the level that suits rows."""
    emit_prefetch(b, at, stream_locality())


@operation(types.void, address, types.int64, types.int64)
def madvise(b: Builder, at: Value, n_bytes: Value, advice: Value) -> None:
    """Tell the system how n bytes from the start of a page on will be read, which it may leave unheard."""
    call(b, "madvise", I32, at, n_bytes, b.trunc(advice, I32))
