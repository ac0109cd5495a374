"""Short vectors as Numba values: LLVM vector IR behind `@intrinsic`.

A `Vec` is one LLVM vector (<16 x float>) that njit code keeps in a local variable and LLVM in
registers, split or joined for the CPU it compiles for. Memory is addressed by plain integers, so
mapped weights need no typed and writable array.

Functions named `emit_*` write IR and take an llvmlite builder; `operation` makes one callable from
njit code. Few places ask `target_features()` for a shorter route: the features that
Numba compiles for, so NUMBA_CPU_NAME and NUMBA_CPU_FEATURES are obeyed. Each has a portable route
beside it.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, models, register_model

from hotcold.kernels.cpu.kernel_files import noted_level

Builder = Any  # llvmlite has no types of its own
Value = Any

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
VT = ir.VectorType


class Vec(types.Type):  # type: ignore[misc]
    """Numba type of one LLVM vector with n elements of "f32" or "i64"."""

    def __init__(self, element: str, n: int) -> None:
        self.element, self.n = element, n
        super().__init__(name=f"Vec({element},{n})")


@register_model(Vec)
class _VecModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, data_model_manager: Any, fe_type: Vec) -> None:
        element = {"f32": F32, "i64": I64}[fe_type.element]
        super().__init__(data_model_manager, fe_type, VT(element, fe_type.n))


f32x16, i64x8 = Vec("f32", 16), Vec("i64", 8)
address = types.int64


def target_features() -> set[str]:
    """Names of the features of the CPU that Numba compiles for."""
    text = config.CPU_FEATURES
    if text is None:
        text = get_host_cpu_features()
    return {feature[1:] for feature in text.split(",") if feature.startswith("+")}


def target_is_x86() -> bool:
    """Whether x86 instructions such as `pause` exist."""
    return llvmlite.binding.get_default_triple().split("-")[0] in ("x86_64", "i686")


# ---- pieces of IR ---------------------------------------------------------------


def load(b: Builder, at: Value, kind: Any, offset: int = 0, align: int = 1) -> Value:
    """The `kind` at address `at` + `offset`."""
    if offset:
        at = b.add(at, I64(offset))
    return b.load(b.inttoptr(at, kind.as_pointer()), align=align)


def load_bytes(b: Builder, at: Value, offset: int, n: int, left: Value | None) -> Value:
    """<n x i8> at address `at` + `offset`.

    Args:
        left: how many bytes from `at` on may be read, at most 127; the others give 0. None: all.
    """
    if left is None:
        return load(b, at, VT(I8, n), offset)
    inside = splat(b, b.trunc(b.sub(left, I64(offset)), I8), n)
    mask = b.icmp_signed("<", ir.Constant(VT(I8, n), list(range(n))), inside)
    pointer = b.inttoptr(b.add(at, I64(offset)), VT(I8, n).as_pointer())
    name = f"llvm.masked.load.v{n}i8.p0"
    function = b.module.globals.get(name)
    if function is None:
        kinds = [pointer.type, I32, VT(I1, n), VT(I8, n)]
        function = ir.Function(b.module, ir.FunctionType(VT(I8, n), kinds), name)
    return b.call(function, [pointer, I32(1), mask, constant(I8, n, 0)])


def room(b: Builder, kind: Any) -> Value:
    """The address of memory for a `kind` on the stack, with what happened to lie there."""
    with b.goto_entry_block():
        pointer = b.alloca(kind)
        pointer.align = 64
        return b.ptrtoint(pointer, I64)


def store(b: Builder, value: Value, at: Value, offset: int = 0, align: int = 1) -> None:
    """Write `value` to address `at` + `offset`."""
    if offset:
        at = b.add(at, I64(offset))
    b.store(value, b.inttoptr(at, value.type.as_pointer()), align=align)


def shuffle(b: Builder, x: Value, y: Value, lanes: Sequence[int]) -> Value:
    """Lanes of x and y, counted through both."""
    return b.shuffle_vector(x, y, ir.Constant(VT(I32, len(lanes)), list(lanes)))


def concatenate(b: Builder, vectors: Sequence[Value]) -> Value:
    """A power of two of equal vectors as one."""
    while len(vectors) > 1:
        n = vectors[0].type.count
        vectors = [shuffle(b, x, y, range(2 * n)) for x, y in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def constant(element: Any, n: int, value: float) -> Value:
    """n times the same constant."""
    return ir.Constant(VT(element, n), [value] * n)


def splat(b: Builder, x: Value, n: int) -> Value:
    """n times the scalar x."""
    v = b.insert_element(ir.Constant(VT(x.type, n), ir.Undefined), x, I32(0))
    return shuffle(b, v, v, [0] * n)


def call(b: Builder, name: str, returns: Any, *arguments: Value) -> Value:
    """Call the LLVM intrinsic or C function `name`."""
    function = b.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(returns, [a.type for a in arguments])
        function = ir.Function(b.module, kind, name)
    return b.call(function, arguments)


def gather(b: Builder, addresses: Value, element: Any) -> Value:
    """The integer at each address: <n x element>."""
    n, kind = addresses.type.count, VT(element, addresses.type.count)
    pointers = b.inttoptr(addresses, VT(element.as_pointer(), n))
    name = f"llvm.masked.gather.v{n}i{element.width}.v{n}p0"
    kinds = [pointers.type, I32, VT(I1, n), kind]
    function = b.module.globals.get(name)
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(kind, kinds), name)
    return b.call(function, [pointers, I32(1), constant(I1, n, 1), constant(element, n, 0)])


def fma(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """x * y + z of floats or vectors, in one rounding where the CPU has it."""
    kind = f"v{x.type.count}f32" if isinstance(x.type, VT) else "f32"
    return call(b, f"llvm.fmuladd.{kind}", x.type, x, y, z)


def rint(b: Builder, x: Value) -> Value:
    """Nearest integer, ties to even."""
    return call(b, f"llvm.rint.v{x.type.count}f32", x.type, x)


def fabs(b: Builder, x: Value) -> Value:
    """|x|."""
    return call(b, f"llvm.fabs.v{x.type.count}f32", x.type, x)


def larger(b: Builder, x: Value, y: Value) -> Value:
    """Lane by lane x if x > y, else y."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def fold(b: Builder, v: Value, combine: Callable[[Builder, Value, Value], Value]) -> Value:
    """All lanes of v combined to one scalar, halves first."""
    n = v.type.count
    while n > 1:
        n //= 2
        v = combine(b, shuffle(b, v, v, range(n)), shuffle(b, v, v, range(n, 2 * n)))
    return b.extract_element(v, I32(0))


def largest_magnitude(b: Builder, x: Value, y: Value) -> Value:
    """The largest absolute value of all lanes of two float vectors, NaN if one is NaN, which `larger` would drop.

    Without their signs floats are in the order of their bits, and NaN is above all.
    """
    n = x.type.count

    def greater(b: Builder, x: Value, y: Value) -> Value:
        return b.select(b.icmp_signed(">", x, y), x, y)

    bits = (b.and_(b.bitcast(v, VT(I32, n)), constant(I32, n, 0x7FFFFFFF)) for v in (x, y))
    return b.bitcast(fold(b, greater(b, *bits), greater), F32)


def rounded_bytes(b: Builder, x: Value) -> Value:
    """<n x float> rounded to <n x i8>, ties to even; what lies beyond -127..127, or is no number, gives 0."""
    n = x.type.count
    rounded = rint(b, x)
    # converting anything else is undefined
    inside = b.fcmp_ordered("<", fabs(b, rounded), constant(F32, n, 128.0))
    rounded = b.select(inside, rounded, constant(F32, n, 0.0))
    return b.trunc(b.fptosi(rounded, VT(I32, n)), VT(I8, n))


def sum_lanes(b: Builder, v: Value) -> Value:
    """The sum of a float vector's lanes, always in the same order."""
    return fold(b, v, lambda b, x, y: b.fadd(x, y))


def merged(b: Builder, x: Value, y: Value, bit: int) -> Value:
    """Lanes that differ in a bit of their number added: those of x where the bit is 0, those of y where it is 1."""
    first = [lane if not lane & bit else 16 + (lane ^ bit) for lane in range(16)]
    second = [lane ^ bit if not lane & bit else 16 + lane for lane in range(16)]
    return b.fadd(shuffle(b, x, y, first), shuffle(b, x, y, second))


def folded16(b: Builder, vectors: Sequence[Value]) -> Value:
    """The sums of the lanes of 16 vectors of 16 floats, halves first, one a lane."""
    sums = dict(enumerate(vectors))
    for bit in (8, 4, 2, 1):
        sums = {i: merged(b, x, sums[i | bit], bit) for i, x in sums.items() if not i & bit}
    return sums[0]


def half_to_float(b: Builder, bits: Value) -> Value:
    """Halfs given as <n x i16> to <n x float>.

    Without f16c a plain fpext would call a run-time routine that Numba's process lacks, so the
    exponent is moved by integers: exact for all 65536 values.
    """
    n = bits.type.count
    if "f16c" in target_features():
        return b.fpext(b.bitcast(bits, VT(F16, n)), VT(F32, n))
    wide = b.zext(bits, VT(I32, n))
    magnitude = b.shl(b.and_(wide, constant(I32, n, 0x7FFF)), constant(I32, n, 13))
    scaled = b.fmul(b.bitcast(magnitude, VT(F32, n)), constant(F32, n, 2.0**112))
    special = b.icmp_unsigned(">=", magnitude, constant(I32, n, 0x7C00 << 13))
    infinite = b.or_(magnitude, constant(I32, n, 0x7F800000))
    value = b.select(special, infinite, b.bitcast(scaled, VT(I32, n)))
    sign = b.shl(b.and_(wide, constant(I32, n, 0x8000)), constant(I32, n, 16))
    return b.bitcast(b.or_(value, sign), VT(F32, n))


def float_to_half(b: Builder, x: Value) -> Value:
    """<n x float> to halfs as <n x i16>, rounded to nearest even."""
    n = x.type.count
    if "f16c" in target_features():
        return b.bitcast(b.fptrunc(x, VT(F16, n)), VT(I16, n))

    def c(value: int) -> Value:
        return constant(I32, n, value)

    bits = b.bitcast(x, VT(I32, n))
    magnitude = b.and_(bits, c(0x7FFFFFFF))
    odd = b.and_(b.lshr(magnitude, c(13)), c(1))
    normal = b.sub(b.lshr(b.add(b.add(magnitude, c(0xFFF)), odd), c(13)), c(112 << 10))
    # adding 0.5 leaves a subnormal half in the low bits of the sum, rounded by the addition itself
    pushed = b.fadd(b.bitcast(magnitude, VT(F32, n)), constant(F32, n, 0.5))
    subnormal = b.sub(b.bitcast(pushed, VT(I32, n)), c(0x3F000000))
    half = b.select(b.icmp_unsigned("<", magnitude, c(0x38800000)), subnormal, normal)
    half = b.select(b.icmp_unsigned(">=", magnitude, c(0x477FF000)), c(0x7C00), half)
    half = b.select(b.icmp_unsigned(">", magnitude, c(0x7F800000)), c(0x7E00), half)
    return b.trunc(b.or_(half, b.and_(b.lshr(bits, c(16)), c(0x8000))), VT(I16, n))


def exponential(b: Builder, x: Value) -> Value:
    """e^x for <n x float>, within 2 ulp: x = n ln 2 + r, a degree-5 polynomial in r, times 2^n.

    The constants are those of Cephes' expf. Below -87.3 the result is 0.
    """
    n = x.type.count

    def c(value: float) -> Value:
        return constant(F32, n, value)

    tiny = b.fcmp_ordered("<", x, c(-87.3))
    x = b.select(b.fcmp_ordered(">", x, c(88.3)), c(88.3), x)
    x = b.select(tiny, c(-87.3), x)
    power = rint(b, b.fmul(x, c(1.44269504088896341)))
    r = fma(b, power, c(-0.693359375), x)
    r = fma(b, power, c(2.12194440e-4), r)
    p = c(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fma(b, p, r, c(coefficient))
    p = b.fadd(fma(b, p, b.fmul(r, r), r), c(1.0))
    bits = b.shl(b.add(b.fptosi(power, VT(I32, n)), constant(I32, n, 127)), constant(I32, n, 23))
    return b.select(tiny, c(0.0), b.fmul(p, b.bitcast(bits, VT(F32, n))))


# 2^f = 1 + c1 f + ... + c5 f^5 on [-1/2, 1/2], fitted to the least largest relative error, 1.6e-7 in float32.
# The first one is exact, so that 2^0 is: a weight of 1 changes no bit.
EXP2_SMALLEST = -125.0
EXP2 = (
    1.0,
    0.6931470036506653,
    0.24022242426872253,
    0.05550733581185341,
    0.009671512991189957,
    0.0013264724984765053,
)


def exp2_up_to_0(b: Builder, x: Value) -> Value:
    """2^x for <n x float> x <= 0: x = n + f, a polynomial in f, times 2^n. Below -125 it is 2^-125."""
    n = x.type.count
    smallest = constant(F32, n, EXP2_SMALLEST)
    x = b.select(b.fcmp_ordered("<", x, smallest), smallest, x)  # NaN stays
    power = rint(b, x)
    f = b.fsub(x, power)
    p = constant(F32, n, EXP2[-1])
    for coefficient in EXP2[-2::-1]:
        p = fma(b, p, f, constant(F32, n, coefficient))
    bits = b.shl(b.fptosi(power, VT(I32, n)), constant(I32, n, 23))
    return b.bitcast(b.add(b.bitcast(p, VT(I32, n)), bits), VT(F32, n))


_asked_into: list[int] = []


@contextmanager
def asking_into(locality: int) -> Iterator[None]:
    """What is written inside asks for rows into this level."""
    _asked_into.append(locality)
    try:
        yield
    finally:
        _asked_into.pop()


def stream_locality() -> int:
    """The cache level that rows are asked into: 3 for the first, 2 for the second, as `prefetch_level.py` measured."""
    return _asked_into[-1] if _asked_into else noted_level() or 3


def emit_prefetch(b: Builder, at: Value, locality: int) -> None:
    """Ask for the cache line at `at`; any address is allowed.

    Args:
        locality: 3 for the first level, 2 for the second.
    """
    pointer = b.inttoptr(at, I8.as_pointer())
    call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(locality), I32(1))


def emit_prefetches(b: Builder, at: Value, n_bytes: int, locality: int | None = None) -> None:
    """Ask for all lines of n bytes; into the level that suits rows, unless one is named."""
    for line in range(0, n_bytes, 64):
        emit_prefetch(b, b.add(at, I64(line)), stream_locality() if locality is None else locality)


# ---- from IR to njit ------------------------------------------------------------


def operation(returns: Any, *arguments: Any) -> Callable[[Callable[..., Value]], Any]:
    """Make emit(builder, *values) callable from njit code with these Numba types.

    The result belongs at module level: a closure over an intrinsic misses Numba's disk cache.
    """

    def wrap(emit: Callable[..., Value]) -> Any:
        def generate(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
            result = emit(builder, *values)
            return context.get_dummy_value() if returns == types.void else result

        def typed(typing_context: Any, *_: Any) -> Any:
            return returns(*arguments), generate

        typed.__name__ = typed.__qualname__ = emit.__name__
        typed.__module__ = emit.__module__
        typed.__doc__ = emit.__doc__
        # Numba matches calls by the signature it reads here, and cannot take a star
        names = ["typing_context", *(f"argument_{i}" for i in range(len(arguments)))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
        typed.__signature__ = signature  # type: ignore[attr-defined]
        return intrinsic(typed)

    return wrap
