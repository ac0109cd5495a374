"""Sums of vectors against their oracles, in four orders of threads and blocks."""

import pytest
from operands import Get, Put, normal

from hotcold.kernels import ref
from hotcold.kernels.cuda.add import add
from hotcold.kernels.cuda.device import Device


@pytest.mark.parametrize("n", [1, 255, 1000])
def test_add(device: Device, put: Put, get: Get, n: int) -> None:
    a, b, y = normal(n), normal(n, seed=2), device.empty(n, "f4")
    add(n).launch(device, (put(device, a), put(device, b), y, n), device.compute)
    assert (get(device, y) == ref.add(a, b).astype("f4")).all()
