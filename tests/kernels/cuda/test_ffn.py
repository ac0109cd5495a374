"""The FFN kernels against their oracles, in four orders of threads and blocks, at odd sizes."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from operands import Get, Put, Type, error, inputs, normal, random_matrix

from hotcold.kernels import ref
from hotcold.kernels.cuda.buffers import Buffer
from hotcold.kernels.cuda.device import Device
from hotcold.kernels.cuda.sparse_ffn import n_groups, sparse_ffn, sum_groups
from hotcold.kernels.cuda.weights import KERNEL_TYPES, QUANTISED

TYPES = list(KERNEL_TYPES)


class Ffn:
    """A sparse FFN on a device."""

    def __init__(
        self, device: Device, put: Put, weight_type: Type, n_rows: int, n: int, n_tokens: int
    ) -> None:
        self.device, self.put, self.type = device, put, weight_type
        self.n_rows, self.n, self.x = n_rows, n, normal(n_tokens, n)
        self.weights = [random_matrix(weight_type, n_rows, n, seed) for seed in (4, 5, 6)]

    def run(self, active: NDArray[np.bool_], y: Buffer) -> None:
        device, tokens, ids = self.device, len(self.x), np.full(active.shape, -1, "i4")
        for token, found in enumerate(ref.active_rows(active, np.arange(self.n_rows, dtype="i4"))):
            ids[token, : len(found)] = found
        planes = [plane for w in self.weights for plane in w.planes(device, self.put)]
        x = inputs(device, self.put, self.type, self.x)
        partial = device.empty((tokens, n_groups(self.n_rows), self.n), "f4")
        lists = self.put(device, ids), self.put(device, active.sum(1, dtype="i4"))
        arguments = (*planes, *x, *lists, partial, self.n_rows, self.n)
        sparse_ffn(self.type, tokens, self.n_rows, self.n).launch(device, arguments, device.compute)
        arguments = (partial, y, n_groups(self.n_rows), self.n)
        sum_groups(tokens, self.n_rows, self.n).launch(device, arguments, device.compute)

    def want(self, active: NDArray[np.bool_]) -> NDArray[np.float64]:
        gate, up, down = (w.values for w in self.weights)
        return ref.sparse_ffn(self.x, gate, up, down, active, quantised=self.type in QUANTISED)


@pytest.mark.parametrize("weight_type", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize(
    ("n_rows", "n", "share"), [(1, 32, 1.0), (150, 288, 0.3), (300, 64, 1.0), (3, 12288, 1.0)]
)
def test_sparse_ffn(
    device: Device, put: Put, get: Get, weight_type: Type, n_rows: int, n: int, share: float
) -> None:
    ffn, y = Ffn(device, put, weight_type, n_rows, n, n_tokens=2), device.empty((2, n), "f4")
    active = np.random.default_rng(7).random((2, n_rows)) < share
    ffn.run(active, y)
    want = ffn.want(active)
    got = get(device, y)
    assert np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("n", [1, 7, 40])
def test_sparse_ffn_of_any_width(device: Device, put: Put, get: Get, n: int) -> None:
    ffn, y = Ffn(device, put, Type.F16, 30, n, n_tokens=1), device.empty((1, n), "f4")
    active = np.ones((1, 30), bool)
    ffn.run(active, y)
    assert error(get(device, y), ffn.want(active)) < 1e-5


def test_sparse_ffn_of_no_active_row_is_zero(device: Device, put: Put, get: Get) -> None:
    ffn, y = Ffn(device, put, Type.Q4_0, 150, 64, n_tokens=1), device.empty((1, 64), "f4")
    ffn.run(np.zeros((1, 150), bool), y)
    assert (get(device, y) == 0).all()


def test_a_group_may_have_more_rows_than_a_tile(device: Device, put: Put, get: Get) -> None:
    n_rows, n = 600, 32  # of one group, by a grid of our own
    ffn, y, partial = Ffn(device, put, Type.F32, n_rows, n, 1), device.empty(n, "f4"), device.empty(n, "f4")
    planes = [plane for w in ffn.weights for plane in w.planes(device, put)]
    lists = put(device, np.arange(n_rows, dtype="i4")), put(device, np.array([n_rows], "i4"))
    arguments = (*planes, put(device, ffn.x), *lists, partial, n_rows, n)
    device.launch("sparse_ffn_f32", 1, 256, arguments, device.compute)
    device.launch("sum_groups", (1, 1), 256, (partial, y, 1, n), device.compute)
    assert error(get(device, y)[None], ffn.want(np.ones((1, n_rows), bool))) < 1e-5


@pytest.mark.parametrize("weight_type", TYPES, ids=lambda t: t.name)
def test_rows_that_are_not_active_are_never_read(
    open_emulated: Callable[..., Device], put: Put, get: Get, weight_type: Type
) -> None:
    answers = []
    for spoil in (False, True):
        device = open_emulated()
        ffn, y = Ffn(device, put, weight_type, 150, 64, n_tokens=1), device.empty((1, 64), "f4")
        active = np.random.default_rng(7).random((1, 150)) < 0.3
        for matrix in ffn.weights:
            matrix.rows[~active[0]] = 0xFF if spoil else matrix.rows[~active[0]]
        ffn.run(active, y)
        answers.append(get(device, y).tobytes())
    assert answers[0] == answers[1]


def test_a_nan_in_an_active_row_shows(open_emulated: Callable[..., Device], put: Put, get: Get) -> None:
    device = open_emulated()
    ffn, y = Ffn(device, put, Type.F32, 20, 64, n_tokens=1), device.empty((1, 64), "f4")
    ffn.weights[0].rows[3] = 0xFF
    ffn.run(np.ones((1, 20), bool), y)
    assert np.isnan(get(device, y)).all()


@pytest.mark.parametrize("weight_type", TYPES, ids=lambda t: t.name)
def test_the_bits_do_not_depend_on_order_or_build(
    open_emulated: Callable[..., Device], put: Put, get: Get, weight_type: Type
) -> None:
    answers = set()
    for order, build_kind in [(0, "checked"), (1, "checked"), (7, "checked"), (0, "fast"), (1234, "fast")]:
        device = open_emulated(order=order, build_kind=build_kind)
        ffn, y = Ffn(device, put, weight_type, 150, 288, n_tokens=1), device.empty((1, 288), "f4")
        ffn.run(np.ones((1, 150), bool), y)
        answers.add(get(device, y).tobytes())
    assert len(answers) == 1
