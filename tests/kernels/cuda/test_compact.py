"""Compaction of masks against its oracle, in four orders of threads and blocks."""

import numpy as np
import pytest
from operands import Get, Put, listing

from hotcold.kernels import ref
from hotcold.kernels.cuda.compact import compact
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.formats import mask_words

pytestmark = pytest.mark.pairwise


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("n_ff", "n_rows"), [(1, 1), (33, 20), (700, 700), (700, 301), (11008, 11008), (20000, 8193)]
)
def test_compact(device: Device, put: Put, get: Get, n_ff: int, n_rows: int, share: float) -> None:
    rng = np.random.default_rng(3)
    active = rng.random((3, n_ff)) < share
    neurons = np.sort(rng.permutation(n_ff)[:n_rows]).astype("i4")
    ids, count = put(device, np.full((3, n_rows), -1, "i4")), device.empty(3, "i4")
    total = put(device, np.full(1, 5, "u4"))
    arguments = (*listing(device, put, active, neurons), ids, count, total, n_rows, mask_words(n_ff))
    compact(3, n_rows, n_ff).launch(device, arguments, device.compute)
    assert get(device, total)[0] == 5 + get(device, count).sum()
    for token, want in enumerate(ref.active_rows(active, neurons)):
        found = get(device, count)[token]
        assert get(device, ids)[token, :found].tolist() == want.tolist()
        assert (get(device, ids)[token, found:] == -1).all()  # nothing is written after the list
