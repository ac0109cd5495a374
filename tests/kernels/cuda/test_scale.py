"""A vector times a number, against its oracle, in four orders of threads and blocks."""

import pytest
from operands import Get, Put, normal

from hotcold.kernels import ref
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.scale import scale

pytestmark = pytest.mark.pairwise


@pytest.mark.parametrize("factor", [0.4, -12.0])
@pytest.mark.parametrize("n", [1, 255, 1000])
def test_scale(device: Device, put: Put, get: Get, n: int, factor: float) -> None:
    x, y = normal(n), device.empty(n, "f4")
    scale(n).launch(device, (put(device, x), y, n, factor), device.compute)
    assert get(device, y).tobytes() == ref.scale(x, factor).tobytes()
