"""Which rows of a head are wanted, against its oracle, in four orders of threads and blocks."""

import numpy as np
import pytest
from operands import Get, Put, normal

from hotcold.kernels import ref
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.keep_some import keep_some

pytestmark = pytest.mark.pairwise


@pytest.mark.parametrize("n", [1, 255, 1024, 1025, 2600])
@pytest.mark.parametrize("positive", ["none", "first", "last", "half"])
def test_keep_some(device: Device, put: Put, get: Get, n: int, positive: str) -> None:
    profile = -np.abs(normal(n))
    profile[n // 2 :: 7] = np.nan  # which is not positive
    profile[n // 3] = 0
    if positive == "half":
        profile[::2] *= -1
    elif positive != "none":
        profile[0 if positive == "first" else -1] = 0.5
    held = put(device, profile)
    keep_some(n).launch(device, (held, n), device.compute)
    assert get(device, held).tobytes() == ref.keep_some(profile).tobytes()
