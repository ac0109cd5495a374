"""Sums of vectors against their oracles, in four orders of threads and blocks."""

import pytest
from operands import Get, Put, error, normal

from hotcold.kernels import ref
from hotcold.kernels.cuda.add import HAS_BIAS, HAS_OTHER, HAS_RESIDUAL, add, merge
from hotcold.kernels.cuda.device.device import Device

pytestmark = pytest.mark.pairwise


@pytest.mark.parametrize("n", [1, 255, 1000])
def test_add(device: Device, put: Put, get: Get, n: int) -> None:
    a, b, y = normal(n), normal(n, seed=2), device.empty(n, "f4")
    add(n).launch(device, (put(device, a), put(device, b), y, n), device.compute)
    assert (get(device, y) == ref.add(a, b).astype("f4")).all()


@pytest.mark.parametrize("flags", range(8))
@pytest.mark.parametrize(("n_tokens", "n"), [(1, 1), (3, 255), (2, 1000)])
def test_merge(device: Device, put: Put, get: Get, n_tokens: int, n: int, flags: int) -> None:
    named = [HAS_BIAS * (flags & 1), HAS_OTHER * (flags >> 1 & 1), HAS_RESIDUAL * (flags >> 2)]
    hot, y = normal(n_tokens, n), device.empty((n_tokens, n), "f4")
    addends = [normal(n, seed=2), normal(n_tokens, n, seed=3), normal(n_tokens, n, seed=4)]
    used = [addend for addend, flag in zip(addends, named, strict=True) if flag]
    given = [put(device, addend) for addend in (hot, *addends)]
    merge(n_tokens, n, sum(named)).launch(device, (*given, y, n, sum(named)), device.compute)
    in_order = hot
    for addend in used:
        in_order = in_order + addend
    assert get(device, y).tobytes() == in_order.tobytes()
    assert error(get(device, y), ref.add(hot, *used)) < 1e-6
