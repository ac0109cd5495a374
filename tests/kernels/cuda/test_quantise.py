"""Rounding of inputs against its oracle, in four orders of threads and blocks."""

import pytest
from operands import Get, Put, Type, inputs, normal

from hotcold.kernels import ref
from hotcold.kernels.cuda.device.device import Device


@pytest.mark.parametrize(("n_tokens", "n"), [(1, 32), (3, 288), (2, 4096)])
def test_quantise(device: Device, put: Put, get: Get, n_tokens: int, n: int) -> None:
    x = normal(n_tokens, n)
    x[0, :32] = 0
    q, d, total = inputs(device, put, Type.Q8_0, x)
    want_q, want_d = ref.quantise(x)
    assert (get(device, q).reshape(x.shape) == want_q).all()
    assert (get(device, d) == want_d.ravel()).all()
    assert (get(device, total) == want_q.reshape(-1, 32).sum(1, dtype="i4")).all()
