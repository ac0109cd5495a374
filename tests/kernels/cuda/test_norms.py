"""Norms against their oracles, in four orders of threads and blocks."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from operands import Get, Put, empty_quantised, error, normal

from hotcold.kernels import ref
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.layer_norm import layer_norm, layer_norm_quantised
from hotcold.kernels.cuda.quantise import quantise
from hotcold.kernels.cuda.rms_norm import rms_norm, rms_norm_quantised
from hotcold.kernels.cuda.work import Work


def check_both_steps(
    device: Device,
    get: Get,
    given: Sequence[Buffer],
    shape: tuple[int, ...],
    norms: tuple[Callable[..., Work], Callable[..., Work]],
) -> tuple[Buffer, ...]:
    """A norm and a rounding have the bytes of both in one, with x rounded beside and not; gives the rounded norm."""
    (norm, quantised), (n_tokens, n) = norms, shape
    y = device.empty(shape, "f4")
    norm(n_tokens, n).launch(device, (*given, y, n, 1e-5), device.compute)
    apart, apart_x, fused, fused_x, alone = (empty_quantised(device, n_tokens, n) for _ in range(5))
    for given_to, to in ((y, apart), (given[0], apart_x)):
        quantise(n_tokens, n).launch(device, (given_to, *to, n_tokens * n // 32), device.compute)
    work = quantised(n_tokens, n, rounds_x=True)
    work.launch(device, (*given, *fused, *fused_x, n, 1e-5, 1), device.compute)
    quantised(n_tokens, n).launch(device, (*given, *alone * 2, n, 1e-5, 0), device.compute)
    for a, b in zip((*apart, *apart_x, *apart), (*fused, *fused_x, *alone), strict=True):
        assert get(device, a).tobytes() == get(device, b).tobytes()
    return fused


@pytest.mark.parametrize(("n_tokens", "n"), [(1, 1), (3, 300), (2, 4096)])
def test_rms_norm(device: Device, put: Put, get: Get, n_tokens: int, n: int) -> None:
    x, weight, y = normal(n_tokens, n), normal(n, seed=2), device.empty((n_tokens, n), "f4")
    arguments = (put(device, x), put(device, weight), y, n, 1e-5)
    rms_norm(n_tokens, n).launch(device, arguments, device.compute)
    assert error(get(device, y), ref.rms_norm(x, weight, 1e-5)) < 1e-6


@pytest.mark.parametrize(("n_tokens", "n"), [(1, 32), (3, 288), (2, 4096)])
def test_rms_norm_quantised_is_both_steps_in_one(
    device: Device, put: Put, get: Get, n_tokens: int, n: int
) -> None:
    x, weight = normal(n_tokens, n), normal(n, seed=2)
    fused = check_both_steps(
        device, get, [put(device, x), put(device, weight)], x.shape, (rms_norm, rms_norm_quantised)
    )
    want = ref.rounded(ref.rms_norm(x, weight, 1e-5).astype("f4"))
    got = get(device, fused[0]).reshape(-1, 32) * get(device, fused[1])[:, None].astype("f8")
    assert error(got.reshape(want.shape), want) < 1e-3  # a few last bits round the other way


@pytest.mark.parametrize(("n_tokens", "n"), [(1, 2), (3, 300), (2, 4096), (1, 12288)])
@pytest.mark.parametrize("mean", [0, 1000])
def test_layer_norm(device: Device, put: Put, get: Get, n_tokens: int, n: int, mean: float) -> None:
    """A mean a thousand times the deviation costs no digit beyond those that x itself has lost."""
    x, weight, bias = normal(n_tokens, n) + np.float32(mean), normal(n, seed=2), normal(n, seed=3)
    given, y = [put(device, a) for a in (x, weight, bias)], device.empty((n_tokens, n), "f4")
    layer_norm(n_tokens, n).launch(device, (*given, y, n, 1e-5), device.compute)
    assert error(get(device, y), ref.layer_norm(x, weight, bias, 1e-5)) < 1e-6


@pytest.mark.parametrize("eps", [1e-5, 3.0])
def test_layer_norm_of_equal_numbers_is_the_bias(device: Device, put: Put, get: Get, eps: float) -> None:
    x, bias, y = np.full((1, 77), 0.1, "f4"), normal(77, seed=3), device.empty((1, 77), "f4")
    arguments = (put(device, x), put(device, normal(77)), put(device, bias), y, 77, eps)
    layer_norm(1, 77).launch(device, arguments, device.compute)
    assert np.abs(get(device, y) - bias).max() < 1e-5


@pytest.mark.parametrize(("n_tokens", "n"), [(1, 32), (3, 288), (2, 4096)])
def test_layer_norm_quantised_is_both_steps_in_one(
    device: Device, put: Put, get: Get, n_tokens: int, n: int
) -> None:
    x = normal(n_tokens, n)
    given = [put(device, a) for a in (x, normal(n, seed=2), normal(n, seed=3))]
    check_both_steps(device, get, given, x.shape, (layer_norm, layer_norm_quantised))
