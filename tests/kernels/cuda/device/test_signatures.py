"""Kernel signatures as they stand in the sources, and arguments held against them."""

import numpy as np
import pytest

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.signatures import (
    MAX_DYNAMIC_SHARED,
    MAX_STATIC_SHARED,
    MAX_THREADS,
    check_count,
    check_size,
    find,
    read_signatures,
    scalar,
)
from hotcold.kernels.cuda.device.sources import SOURCES

SOURCE = """
KERNEL first(const float* __restrict__ x, int4* q,   // a comment, with a comma
             unsigned char* b, int n, float eps) {
}
__device__ inline void no_kernel(int a) {}
KERNEL second(__half h, unsigned long long* c) {}
"""


def test_kernels_are_read_with_their_parameters() -> None:
    signatures = read_signatures(SOURCE)
    assert {name: s.codes for name, s in signatures.items()} == {"first": "PfPVPBif", "second": "ePQ"}
    assert [p.name for p in signatures["first"].parameters] == ["x", "q", "b", "n", "eps"]
    assert [p.alignment for p in signatures["first"].parameters] == [4, 16, 1, 4, 4]


MACROS = """
#define KERNEL extern "C" __global__
#define PLANES_f16(w) const __half* w
#define PLANES_q8(w) const __half* w##_scales, \\
                     const int4* w##_quants   // continued
#define INPUT const float* x
#define PRODUCT(T, OTHER) KERNEL product_##T(PLANES_##T(w), INPUT, OTHER) { run((PLANES)(w), n); }
PRODUCT(f16, int n) PRODUCT(q8, float eps)
KERNEL other(INPUT, PLANES_q8(up)) {}
"""


def test_kernels_that_macros_declare_are_read_too() -> None:
    signatures = read_signatures(MACROS)
    assert {name: s.codes for name, s in signatures.items()} == {
        "product_f16": "PePfi",
        "product_q8": "PePVPff",
        "other": "PfPePV",
    }
    assert [p.name for p in signatures["product_q8"].parameters] == ["w_scales", "w_quants", "x", "eps"]


def test_a_type_that_is_not_known_is_refused() -> None:
    with pytest.raises(DeviceError, match="size_t n"):
        read_signatures("KERNEL k(size_t n) {}")


def test_an_unknown_kernel_is_named() -> None:
    with pytest.raises(DeviceError, match="third.*known: first, second"):
        find(read_signatures(SOURCE), "third")


@pytest.mark.parametrize("n", [4, 6])
def test_the_number_of_arguments_is_checked(n: int) -> None:
    with pytest.raises(DeviceError, match=f"arguments of first: {n} .takes 5"):
        check_count(read_signatures(SOURCE)["first"], [0] * n)


@pytest.mark.parametrize(
    ("grid", "block", "shared", "word"),
    [
        (0, 32, 0, "is empty"),
        ((3, 0), 32, 0, "is empty"),
        (1, 0, 0, "is empty"),
        (1, 33, 0, "whole warps"),
        (1, 288, 0, "at most 256"),
        (1, (16, 16, 2), 0, "at most 256"),
        ((1, 65536), 32, 0, "in parts"),
        (2**31, 32, 0, "in parts"),
        (1, 32, (44 << 10) + 1, "0 to 45056 bytes"),
        (1, 32, -1, "0 to 45056 bytes"),
    ],
)
def test_a_size_that_no_card_runs_is_refused(grid: int, block: int, shared: int, word: str) -> None:
    with pytest.raises(DeviceError, match=word):
        check_size("first", grid, block, shared)


def test_the_largest_sizes_pass() -> None:
    check_size("first", (2**31 - 1, 65535, 65535), (8, 8, 4), 44 << 10)


def test_numbers_take_the_width_of_the_parameter() -> None:
    first = read_signatures(SOURCE)["first"]
    n, eps = first.parameters[3:]
    assert scalar(first, n, 5).dtype == np.int32
    assert scalar(first, eps, 1e-5) == np.float32(1e-5)
    assert scalar(first, n, np.int64(7)) == 7


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 1.5, np.float32(2), "3", None, np.zeros(1)])
def test_a_value_that_an_int_cannot_hold_is_refused(value: object) -> None:
    first = read_signatures(SOURCE)["first"]
    with pytest.raises(DeviceError, match="argument n of first"):
        scalar(first, first.parameters[3], value)


def test_a_float_that_overflows_is_refused() -> None:
    first = read_signatures(SOURCE)["first"]
    with pytest.raises(DeviceError, match="argument eps of first"):
        scalar(first, first.parameters[4], 1e300)


def test_the_limits_are_those_of_the_headers() -> None:
    assert f"constexpr int MAX_THREADS = {MAX_THREADS};" in (SOURCES / "emulator" / "emulator.h").read_text()
    assert f"__launch_bounds__({MAX_THREADS})" in (SOURCES / "common.h").read_text()
    assert MAX_DYNAMIC_SHARED + MAX_STATIC_SHARED == 48 << 10
