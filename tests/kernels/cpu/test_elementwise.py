"""Norm, RoPE, sums and activations against their oracles, with sizes that leave tails."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.kernels import ref
from hotcold.kernels.cpu import elementwise, program

F32 = NDArray[np.float32]
Make = Callable[..., F32]
Near = Callable[[Any, Any], None]

SIZES = (1, 15, 16, 17, 31, 32, 33, 100, 4096, 4099)


@pytest.fixture
def result() -> Callable[..., F32]:
    """result(n): an array for n numbers, and 16 more that must stay 7."""
    return lambda n: np.full(n + 16, 7, np.float32)


def taken(y: F32, n: int) -> F32:
    """The n numbers of a result, none written behind them."""
    assert (y[n:] == 7).all()
    return y[:n]


@pytest.mark.parametrize("n", SIZES)
def test_rms_norm(n: int, make_inputs: Make, result: Make, assert_near: Near) -> None:
    x, weight, y = make_inputs(n), make_inputs(n), result(n)
    elementwise.rms_norm(x.ctypes.data, weight.ctypes.data, n, 1e-5, y.ctypes.data)
    assert_near(taken(y, n), ref.rms_norm(x, weight, 1e-5))


def test_rms_norm_minds_eps(result: Make, assert_near: Near) -> None:
    x, weight, y = np.full(40, 1e-3, np.float32), np.ones(40, np.float32), result(40)
    elementwise.rms_norm(x.ctypes.data, weight.ctypes.data, 40, 1e-2, y.ctypes.data)
    assert_near(taken(y, 40), ref.rms_norm(x, weight, 1e-2))
    x[:] = 0
    elementwise.rms_norm(x.ctypes.data, weight.ctypes.data, 40, 1e-6, y.ctypes.data)
    assert not taken(y, 40).any()


@pytest.mark.parametrize("n", SIZES)
def test_layer_norm(n: int, make_inputs: Make, result: Make, assert_near: Near) -> None:
    x, weight, bias, y = 3 + make_inputs(n), make_inputs(n), make_inputs(n), result(n)
    operands = (x.ctypes.data, weight.ctypes.data, bias.ctypes.data)
    for eps in (1e-5, 0.25):
        elementwise.layer_norm(*operands, n, eps, y.ctypes.data)
        assert_near(taken(y, n), ref.layer_norm(x, weight, bias, eps))


def test_layer_norm_of_a_small_deviation_on_a_large_mean(result: Make, assert_near: Near) -> None:
    """Sums of squares of x itself would cancel."""
    x, ones, y = np.full(100, 1000, np.float32), np.ones(100, np.float32), result(100)
    x[::2] = 1001
    elementwise.layer_norm(x.ctypes.data, ones.ctypes.data, ones.ctypes.data, 100, 0.0, y.ctypes.data)
    assert_near(taken(y, 100), np.where(np.arange(100) % 2, 0, 2))


def test_layer_norm_in_place(make_inputs: Make, result: Make) -> None:
    x, weight, bias, y = make_inputs(37), make_inputs(37), make_inputs(37), result(37)
    for to in (y, x):
        elementwise.layer_norm(x.ctypes.data, weight.ctypes.data, bias.ctypes.data, 37, 1e-5, to.ctypes.data)
    assert np.array_equal(x, taken(y, 37))


@pytest.mark.parametrize("n", SIZES)
def test_gelu(n: int, make_inputs: Make, result: Make, assert_near: Near) -> None:
    x, y = 4 * make_inputs(n), result(n)
    elementwise.gelu(x.ctypes.data, n, y.ctypes.data)
    assert_near(taken(y, n), ref.gelu(x.astype(np.float64)))


def test_gelu_far_from_zero(result: Make) -> None:
    x, y = np.array([-1e9, -100, -20, 0, 20, 1e4, 1e9], np.float32), result(7)
    elementwise.gelu(x.ctypes.data, 7, y.ctypes.data)
    assert np.allclose(taken(y, 7), np.maximum(x, 0), atol=1e-6)


@pytest.mark.parametrize("n", SIZES)
def test_add_relu_and_clear(n: int, make_inputs: Make, result: Make) -> None:
    x, z, y = make_inputs(n), make_inputs(n), result(n)
    elementwise.add(x.ctypes.data, z.ctypes.data, n, y.ctypes.data)
    assert np.array_equal(taken(y, n), x + z)
    elementwise.relu(x.ctypes.data, n, y.ctypes.data)
    assert np.array_equal(taken(y, n), np.maximum(x, 0))
    elementwise.clear(y.ctypes.data, n)
    assert not taken(y, n).any()


@pytest.mark.parametrize("n", [16, 5])
def test_relu_in_place_turns_nan_into_zero(n: int) -> None:
    x = np.full(n, np.nan, np.float32)
    x[1] = 3
    elementwise.relu(x.ctypes.data, n, x.ctypes.data)
    assert x[1] == 3 and np.count_nonzero(x) == 1


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(
    ("activation", "name"), [(program.RELU_ACTIVATION, "relu"), (program.SILU_ACTIVATION, "silu")]
)
def test_act_mul(
    n: int, activation: int, name: str, make_inputs: Make, result: Make, assert_near: Near
) -> None:
    x, z, y = 4 * make_inputs(n), make_inputs(n), result(n)
    elementwise.act_mul(x.ctypes.data, z.ctypes.data, n, activation, y.ctypes.data)
    assert_near(taken(y, n), ref.ACTIVATIONS[name](x.astype(np.float64)) * z)
    if name == "relu":
        elementwise.act_mul(x.ctypes.data, z.ctypes.data, n, program.RELU_BOTH_ACTIVATION, y.ctypes.data)
        assert np.array_equal(taken(y, n), np.maximum(x, 0) * np.maximum(z, 0))


def test_a_number_in_the_tail_is_what_it_would_be_in_a_vector(make_inputs: Make, result: Make) -> None:
    x, z = make_inputs(47), make_inputs(47)
    whole, y = result(47), result(16)
    elementwise.act_mul(x.ctypes.data, z.ctypes.data, 47, program.SILU_ACTIVATION, whole.ctypes.data)
    tail = x[31:].copy(), z[31:].copy()
    elementwise.act_mul(tail[0].ctypes.data, tail[1].ctypes.data, 16, program.SILU_ACTIVATION, y.ctypes.data)
    assert np.array_equal(taken(whole, 47)[31:], taken(y, 16))


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("n_head", "head_dim", "n_rot"), [(1, 2, 2), (3, 64, 64), (5, 80, 32), (2, 6, 4)])
def test_rope(
    interleaved: bool,
    n_head: int,
    head_dim: int,
    n_rot: int,
    make_inputs: Make,
    result: Make,
    assert_near: Near,
) -> None:
    x, y, position = make_inputs(1, n_head, head_dim), result(n_head * head_dim), 1234
    frequencies = ref.rope_frequencies(n_rot, 10000.0, 0.5)
    angles = position * frequencies
    table = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    elementwise.rope(
        x.ctypes.data, table.ctypes.data, n_head, head_dim, n_rot // 2, int(interleaved), y.ctypes.data
    )
    wanted = ref.rope(x, np.array([position]), frequencies, interleaved)[0]
    assert_near(taken(y, x.size).reshape(n_head, head_dim), wanted)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rope_in_place(interleaved: bool, make_inputs: Make, result: Make) -> None:
    x, y, table = make_inputs(2, 12), result(24), make_inputs(4, 2)
    elementwise.rope(x.ctypes.data, table.ctypes.data, 2, 12, 4, int(interleaved), y.ctypes.data)
    elementwise.rope(x.ctypes.data, table.ctypes.data, 2, 12, 4, int(interleaved), x.ctypes.data)
    assert np.array_equal(x.ravel(), taken(y, 24))


@pytest.mark.parametrize("n_parts", [1, 2, 16])
@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 64), (16, 33), (32, 100), (48, 48)])
def test_reduce_rows(n_parts: int, first: int, last: int, make_inputs: Make, assert_near: Near) -> None:
    parts, y = make_inputs(n_parts, 100), np.full(100, 7, np.float32)
    elementwise.reduce_rows(parts.ctypes.data, 4 * 100, n_parts, first, last, y.ctypes.data)
    total = parts[0].copy()
    for part in parts[1:]:
        total = total + part  # one rounding a step, in this order
    assert np.array_equal(y[first:last], total[first:last])
    assert (y[:first] == 7).all() and (y[last:] == 7).all()
