"""Vectors: conversions, the exponential, integer dot products, atomics, and the features obeyed."""

import ctypes
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit, types
from numpy.typing import NDArray

from hotcold.kernels import order_of_sums
from hotcold.kernels.cpu import atomics, byte_dots, operations, simd
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.simd import F32, I8, I32, VT, Builder, Value, address, f32x16, operation

ALL_HALFS = np.arange(65536, dtype=np.uint16)


@compiled
def halfs_to_floats(x: int, n: int, y: int) -> None:
    """n halfs at x as float32 at y."""
    for i in range(0, n, 16):
        operations.store16(y + 4 * i, operations.load16_half(x + 2 * i))


@compiled
def floats_to_halfs(x: int, n: int, y: int) -> None:
    """n float32 at x as halfs at y."""
    for i in range(0, n, 16):
        operations.store16_half(y + 2 * i, operations.load16(x + 4 * i))


@operation(f32x16, f32x16)
def exp16(b: Builder, x: Value) -> Value:
    """e^x."""
    return simd.exponential(b, x)


@compiled
def exponentials(x: int, n: int, y: int) -> None:
    """y = e^x."""
    for i in range(0, 4 * n, 64):
        operations.store16(y + i, exp16(operations.load16(x + i)))


@compiled
def powers(x: int, n: int, y: int) -> None:
    """y = 2^x."""
    for i in range(0, 4 * n, 64):
        operations.store16(y + i, operations.exp2_16(operations.load16(x + i)))


@compiled
def silus(x: int, n: int, y: int) -> None:
    """y = silu(x)."""
    for i in range(0, 4 * n, 64):
        operations.store16(y + i, operations.silu16(operations.load16(x + i)))


@operation(types.void, address, address, address)
def dot_unsigned(b: Builder, u: Value, s: Value, y: Value) -> None:
    """16 sums of 4 products of 64 bytes, added to what lies at y."""
    vectors = [simd.load(b, at, VT(I8, 64)) for at in (u, s)]
    simd.store(b, byte_dots.dot_bytes(b, simd.load(b, y, VT(I32, 16)), *vectors), y)


@operation(types.void, address, address, address)
def dot_signed(b: Builder, w: Value, s: Value, y: Value) -> None:
    """16 sums of 4 products of 64 signed bytes, added to what lies at y."""
    vectors = [simd.load(b, at, VT(I8, 64)) for at in (w, s)]
    simd.store(b, byte_dots.dot_signed_bytes(b, simd.load(b, y, VT(I32, 16)), *vectors), y)


# not cached: the assembly of a cached function cannot be looked at
@njit  # type: ignore[untyped-decorator]
def unsigned_dots(u: int, s: int, y: int) -> None:
    """`dot_unsigned` for Python."""
    dot_unsigned(u, s, y)


@njit  # type: ignore[untyped-decorator]
def signed_dots(w: int, s: int, y: int) -> None:
    """`dot_signed` for Python."""
    dot_signed(w, s, y)


@operation(types.void, address, address)
def fused(b: Builder, x: Value, y: Value) -> None:
    """y = x * x + y for 16 float32."""
    v = simd.load(b, x, VT(F32, 16))
    simd.store(b, simd.fma(b, v, v, simd.load(b, y, VT(F32, 16))), y)


@njit  # type: ignore[untyped-decorator]
def fused_products(x: int, y: int) -> None:
    """`fused` for Python."""
    fused(x, y)


@compiled
def words_sum(x: int, n: int) -> int:
    """The sum of n int64, a multiple of 8."""
    total = operations.zero_words()
    for i in range(0, 8 * n, 64):
        total = operations.add_words(total, x + i)
    return operations.sum_words(total)


@compiled
def swap_then_add(cell: int, old: int, new: int) -> tuple[bool, int, int]:
    """Swap if the cell holds `old`, add 5: whether, the value before the addition, and after it."""
    swapped = atomics.atomic_swap_if(cell, old, new)
    before = atomics.atomic_add(cell, 5)
    return swapped, before, atomics.atomic_load(cell)


@compiled
def lanes(x: int) -> tuple[float, float, float]:
    """Sum, largest magnitude and first of 16 float32."""
    v = operations.load16(x)
    return operations.sum16(v), operations.largest_magnitude16(v, v), operations.first16(v)


def mapped(function: Callable[..., Any], x: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """function(x, n, y) over an array, filled up to whole vectors."""
    wide = np.zeros(-(-x.size // 16) * 16, x.dtype)
    wide[: x.size] = x
    y = np.full(wide.size, 77, dtype)
    function(wide.ctypes.data, wide.size, y.ctypes.data)
    return y[: x.size]


def test_the_features_are_those_that_numba_was_told() -> None:
    asked = os.environ.get("NUMBA_CPU_FEATURES")
    if asked is None:
        from llvmlite import binding

        host = binding.get_host_cpu_features()
        assert simd.target_features() <= {name for name, there in host.items() if there}
        assert "sse2" in simd.target_features() or not simd.target_is_x86()
    else:
        assert simd.target_features() == {name[1:] for name in asked.split(",") if name.startswith("+")}


@pytest.mark.skipif(not simd.target_is_x86(), reason="looks at x86 assembly")
def test_instructions_are_those_of_the_features() -> None:
    x, y = np.zeros(64, np.int8), np.zeros(16, np.int32)
    unsigned_dots(x.ctypes.data, x.ctypes.data, y.ctypes.data)
    fused_products(x.ctypes.data, y.ctypes.data)
    (dots,), (products,) = (
        list(function.inspect_asm().values()) for function in (unsigned_dots, fused_products)
    )
    features = simd.target_features()
    wide = "avx512f" in features
    vnni = "avxvnni" in features or {"avx512f", "avx512vnni"} <= features
    assert ("zmm" in products) == wide
    assert ("ymm" in products) == ("avx" in features and not wide)
    assert ("vfmadd" in products) == (wide or "fma" in features)
    assert ("vpdpbusd" in dots) == vnni
    assert ("vpmaddubsw" in dots) == ("avx2" in features and not vnni)


def test_every_half_becomes_its_float() -> None:
    got = mapped(halfs_to_floats, ALL_HALFS, np.float32)
    wanted = ALL_HALFS.view(np.float16).astype(np.float32)
    nan = np.isnan(wanted)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(got.view(np.uint32)[~nan], wanted.view(np.uint32)[~nan])


def test_every_half_survives_the_way_to_float_and_back() -> None:
    floats = ALL_HALFS.view(np.float16).astype(np.float32)
    got = mapped(floats_to_halfs, floats, np.uint16)
    nan = np.isnan(floats)
    assert np.isnan(got.view(np.float16)[nan]).all()
    assert np.array_equal(got[~nan], ALL_HALFS[~nan])


def around_every_half() -> NDArray[np.float32]:
    """Each finite half, the midpoint to the next one, and the floats right beside both."""
    halfs = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    middles = (halfs[:-1] + halfs[1:]) / 2
    points = np.concatenate([halfs, middles, [65519.996, 65520.0, 65536.0, 1e30]]).astype(np.float32)
    near = [np.nextafter(points, np.float32(to), dtype=np.float32) for to in (-np.inf, np.inf)]
    return np.concatenate([points, *near, -points])


@np.errstate(over="ignore")
def test_floats_round_to_the_nearest_even_half() -> None:
    bits = np.random.default_rng(1).integers(0, 1 << 32, 200_000, np.uint32)
    x = np.concatenate([around_every_half(), bits.view(np.float32)])
    got, wanted = mapped(floats_to_halfs, x, np.uint16), x.astype(np.float16)
    nan = np.isnan(x)
    assert np.isnan(got.view(np.float16)[nan]).all() and nan.any()
    assert np.array_equal(got[~nan], wanted.view(np.uint16)[~nan])


def test_infinity_and_nan_become_halfs() -> None:
    x = np.array([np.inf, -np.inf, np.nan, -np.nan, -0.0, 0.0], np.float32)
    got = mapped(floats_to_halfs, x, np.uint16)
    assert got[[0, 1, 4, 5]].tolist() == [0x7C00, 0xFC00, 0x8000, 0]
    assert np.isnan(got.view(np.float16)[2:4]).all()


def test_the_exponential_is_within_3_ulp() -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([np.linspace(-87.3, 88.3, 400_001), rng.uniform(-1, 1, 100_000), [0.0, -0.0]])
    x = x.astype(np.float32)
    x = x[(x >= np.float32(-87.3)) & (x <= np.float32(88.3))]
    wanted = np.exp(x.astype(np.float64))
    got = mapped(exponentials, x, np.float32).astype(np.float64)
    ulp = np.spacing(wanted.astype(np.float32)).astype(np.float64)
    assert (np.abs(got - wanted) <= 3 * ulp).all()


def test_the_exponential_outside_its_range() -> None:
    x = np.array([-np.inf, -1e30, -88.0, 0.0, 89.0, np.inf], np.float32)
    got = mapped(exponentials, x, np.float32)
    assert got[:4].tolist() == [0, 0, 0, 1]
    assert np.isfinite(got[4:]).all() and (got[4:] > 2e38).all()


def test_powers_of_two_up_to_0() -> None:
    """The oracle's bits where products are fused; 2^0 exact; the least number below; NaN stays."""
    x = np.concatenate([-np.geomspace(1e-9, 124, 10_001), np.linspace(-8, 0, 10_001)]).astype(np.float32)
    got = mapped(powers, x, np.float32)
    assert np.abs(got / 2.0 ** x.astype(np.float64) - 1).max() < 2e-7
    if "fma" in simd.target_features():
        assert np.array_equal(got, order_of_sums.exp2(x))
    ends = mapped(powers, np.array([0.0, -0.0, -125, -126, -np.inf, np.nan], np.float32), np.float32)
    assert np.array_equal(ends, np.array([1, 1, *[2.0**-125] * 3, np.nan], np.float32), equal_nan=True)


def test_silu_near_and_far_from_zero() -> None:
    x = np.concatenate([np.linspace(-60, 60, 10_001), [-1e4, 1e4]]).astype(np.float32)
    wide = x.astype(np.float64)
    wanted = wide / (1 + np.exp(-wide.clip(-700, 700)))
    got = mapped(silus, x, np.float32)
    assert np.allclose(got, wanted, rtol=2e-6, atol=1e-30)


def dots(function: Callable[..., None], w: NDArray[Any], s: NDArray[Any]) -> NDArray[np.int32]:
    """`function` on 64 bytes, sums added to 1000."""
    y = np.full(16, 1000, np.int32)
    function(w.ctypes.data, s.ctypes.data, y.ctypes.data)
    return y


def products(w: NDArray[Any], s: NDArray[Any]) -> NDArray[np.int32]:
    """What `dots` should give."""
    return 1000 + (w.astype(np.int32) * s.astype(np.int32)).reshape(16, 4).sum(1, dtype=np.int32)


def test_dots_of_unsigned_bytes() -> None:
    rng = np.random.default_rng(3)
    for top in (16, 32, 129):
        u, s = rng.integers(0, top, 64, np.uint8), rng.integers(-127, 128, 64, np.int8)
        assert np.array_equal(dots(unsigned_dots, u, s), products(u, s))
    for extreme in (-127, 127):
        u, s = np.full(64, 128, np.uint8), np.full(64, extreme, np.int8)
        assert np.array_equal(dots(unsigned_dots, u, s), products(u, s))


def test_dots_of_signed_bytes() -> None:
    rng = np.random.default_rng(4)
    w, s = rng.integers(-128, 128, 64, np.int8), rng.integers(-127, 128, 64, np.int8)
    assert np.array_equal(dots(signed_dots, w, s), products(w, s))
    for a in (-128, 127):
        for b in (-127, 127):
            w, s = np.full(64, a, np.int8), np.full(64, b, np.int8)
            assert np.array_equal(dots(signed_dots, w, s), products(w, s))


def test_lanes_are_combined() -> None:
    x = np.array([3, -1, 4, -1, 5, -9, 2, -6, 5, -3, 5, -10, 9, -7, 9, -3], np.float32)
    assert lanes(x.ctypes.data) == (x.sum(), 10, 3)
    words = np.arange(24) * -7
    assert words_sum(words.ctypes.data, words.size) == words.sum()


def test_atomic_cells() -> None:
    cell = ctypes.c_int64(41)
    at = ctypes.addressof(cell)
    assert swap_then_add(at, 40, 7) == (False, 41, 46)
    assert swap_then_add(at, 46, 1 << 40) == (True, 1 << 40, (1 << 40) + 5)
