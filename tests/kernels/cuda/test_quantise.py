"""Rounding of inputs against its oracle, in four orders of threads and blocks."""

import numpy as np
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


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_what_is_no_number_stays_none(device: Device, put: Put, get: Get, value: float) -> None:
    """Its block's scale says so; the blocks beside it do not change."""
    x = normal(2, 96)
    want_q, want_d = ref.quantise(x)
    x[1, 32 + 5] = value
    q, d, _ = inputs(device, put, Type.Q8_0, x)
    got_d = get(device, d).reshape(want_d.shape)
    assert np.isfinite(got_d).tolist() == [[True, True, True], [True, False, True]]
    others = np.isfinite(got_d)
    assert (got_d[others] == want_d[others]).all()
    assert (get(device, q).reshape(2, 3, 32)[others] == want_q.reshape(2, 3, 32)[others]).all()
