"""The sparse FFN kernels against their oracles, in four orders of threads and blocks, at odd sizes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from operands import (
    Array,
    Get,
    Put,
    Type,
    block_of,
    each_type,
    error,
    inputs,
    listing,
    normal,
    random_matrix,
)

from hotcold.kernels import ref
from hotcold.kernels.cuda.add import HAS_BIAS, HAS_OTHER, HAS_RESIDUAL
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.sparse_ffn import sparse_ffn
from hotcold.kernels.cuda.sparse_gated_ffn import sparse_gated_ffn
from hotcold.kernels.cuda.sum_groups import sum_groups
from hotcold.kernels.formats import ACTIVATIONS, EXACT_POSITIONS, mask_words, n_groups
from hotcold.kernels.weight_table import QUANTISED

pytestmark = pytest.mark.pairwise
GATED = ["relu", "silu", "relu_both"]
UNGATED = ["relu", "gelu"]
SIZES = [(1, 1, 1.0), (150, 9, 0.3), (300, 2, 1.0), (3, 48, 1.0)]
"""Rows, blocks in a row, and the share of rows that is active."""


class Ffn:
    """A sparse FFN on a device: gated, with gate, up and down, or not, with up and down."""

    def __init__(
        self,
        device: Device,
        put: Put,
        weight_types: Type | tuple[Type, ...],
        n_rows: int,
        n: int,
        n_tokens: int = 1,
        activation: str = "relu",
        has_gate: bool = True,
        has_bias: bool = True,
        small: tuple[NDArray[np.float32], int] | None = None,
    ) -> None:
        self.small = small
        self.device, self.put, self.activation = device, put, activation
        n_matrices = 3 if has_gate else 2
        self.types = weight_types if isinstance(weight_types, tuple) else (weight_types,) * n_matrices
        self.n_rows, self.n, self.x = n_rows, n, normal(n_tokens, n)
        self.has_gate, self.has_bias = has_gate, has_bias
        seeds = (4, 5, 6)[not has_gate :]
        self.weights = [random_matrix(t, n_rows, n, seed) for t, seed in zip(self.types, seeds, strict=True)]
        self.neurons = np.arange(3, 3 + 2 * n_rows, 2, dtype="i4")  # every other neuron, from the third on
        self.n_ff = 3 + 2 * n_rows
        self.bias = 8 * normal(self.n_ff, seed=7)
        self.total = put(device, np.full(1, 5, "u4"))

    def run(self, active: NDArray[np.bool_], y: Buffer) -> None:
        device, tokens = self.device, len(self.x)
        partial = device.empty((tokens, n_groups(self.n_rows), self.n), "f4")
        arguments = (*self._given(active), partial, mask_words(self.n_ff), self.n, *self._numbers())
        self._work(tokens).launch(device, arguments, device.compute)
        arguments = (partial, y, y, y, y, n_groups(self.n_rows), self.n, 0)
        sum_groups(tokens, self.n_rows, self.n).launch(device, arguments, device.compute)

    def _work(self, n_tokens: int) -> Any:
        family: Any = sparse_gated_ffn if self.has_gate else sparse_ffn
        return family(self.types, n_tokens, self.n_rows, self.n, self.n_ff)

    def _given(self, active: NDArray[np.bool_]) -> tuple[Buffer, ...]:
        device, put = self.device, self.put
        listed = np.ones((len(active), self.n_ff), bool)  # those that are not here as well
        listed[:, self.neurons] = active
        planes = [plane for w in self.weights for plane in w.planes(device, put)]
        bias = () if self.has_gate else (put(device, self.bias), put(device, self.neurons))
        lists = listing(device, put, listed, self.neurons)
        return (*planes, *inputs(device, put, self.types[0], self.x), *bias, *lists, self.total)

    def _numbers(self) -> tuple[Any, ...]:
        activation = ACTIVATIONS[self.activation]
        return (activation, *self._least()) if self.has_gate else (int(self.has_bias), activation)

    def _least(self) -> tuple[Any, ...]:
        """Thresholds and positions; without any, numbers that would leave everything out."""
        device, put, n_tokens = self.device, self.put, len(self.x)
        if self.small is None:
            return put(device, np.full(self.n_rows, np.inf, "f4")), put(device, np.full(n_tokens, 9, "i4")), 0
        least, n_past = self.small
        return put(device, least), put(device, np.arange(n_past, n_past + n_tokens, dtype="i4")), 1

    def want(self, active: NDArray[np.bool_]) -> NDArray[np.float64]:
        values, quantised = [w.values for w in self.weights], self.types[0] in QUANTISED
        if self.has_gate:
            gate, up, down = values
            return ref.sparse_gated_ffn(
                self.x, gate, up, down, active, quantised, self.activation, self.small
            )
        bias = self.bias[self.neurons] if self.has_bias else None
        up, down = values
        return ref.sparse_ffn(self.x, up, bias, down, active, quantised, self.activation)


def assert_near(got: Array, want: Array) -> None:
    assert np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize("activation", GATED)
@pytest.mark.parametrize(("n_rows", "n_blocks", "share"), SIZES)
def test_sparse_gated_ffn(
    device: Device,
    put: Put,
    get: Get,
    weight_type: Type,
    activation: str,
    n_rows: int,
    n_blocks: int,
    share: float,
) -> None:
    n = n_blocks * block_of(weight_type)
    ffn, y = Ffn(device, put, weight_type, n_rows, n, 2, activation), device.empty((2, n), "f4")
    active = np.random.default_rng(7).random((2, n_rows)) < share
    ffn.run(active, y)
    assert_near(get(device, y), ffn.want(active))
    assert get(device, ffn.total)[0] == 5 + active.sum()


@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize(("n_rows", "n_blocks", "share"), SIZES)
def test_sparse_gated_ffn_above_thresholds(
    device: Device,
    put: Put,
    get: Get,
    weight_type: Type,
    activation: str,
    n_rows: int,
    n_blocks: int,
    share: float,
) -> None:
    """The first token stands at the last position of which all neurons run; down rows of small ones are NaN."""
    n = n_blocks * block_of(weight_type)
    small = (np.zeros(n_rows, np.float32), EXACT_POSITIONS - 1)
    ffn = Ffn(device, put, weight_type, n_rows, n, 2, activation, small=small)
    act = ref.ACTIVATIONS[activation](ref.mul_mat(ffn.weights[0].values, ffn.x, weight_type in QUANTISED))
    is_small = np.random.default_rng(5).random(n_rows) < 0.5
    small[0][:] = np.abs(act[1]) * np.where(is_small, 2, 0.5)
    active, y = np.random.default_rng(7).random((2, n_rows)) < share, device.empty((2, n), "f4")
    ffn.run(active, y)
    want = ffn.want(active)
    assert_near(get(device, y), want)
    ffn.small = None
    if (is_small & active[1]).any():
        assert not np.allclose(ffn.want(active)[1], want[1], rtol=1e-4)


@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize("activation", UNGATED)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("n_rows", "n_blocks", "share"), SIZES)
def test_sparse_ffn(
    device: Device,
    put: Put,
    get: Get,
    weight_type: Type,
    activation: str,
    has_bias: bool,
    n_rows: int,
    n_blocks: int,
    share: float,
) -> None:
    n = n_blocks * block_of(weight_type)
    ffn = Ffn(device, put, weight_type, n_rows, n, 2, activation, has_gate=False, has_bias=has_bias)
    active, y = np.random.default_rng(7).random((2, n_rows)) < share, device.empty((2, n), "f4")
    ffn.run(active, y)
    assert_near(get(device, y), ffn.want(active))


MIXES = [
    (Type.Q4_K, Type.Q4_K, Type.Q6_K),
    pytest.param((Type.Q5_K, Type.Q4_K, Type.F16), marks=pytest.mark.slow),
    pytest.param((Type.F16, Type.F32, Type.IQ2_S), marks=pytest.mark.slow),
    pytest.param((Type.IQ4_XS, Type.Q5_0, Type.Q4_1), marks=pytest.mark.slow),
]
"""Of gate, up and down."""


@pytest.mark.parametrize("types", MIXES, ids=lambda types: "-".join(t.name for t in types))
@pytest.mark.parametrize("has_gate", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_matrices_of_several_types(
    device: Device, put: Put, get: Get, types: tuple[Type, Type, Type], has_gate: bool
) -> None:
    ffn = Ffn(device, put, types if has_gate else types[1:], 150, 768, 2, has_gate=has_gate)
    active, y = np.random.default_rng(7).random((2, 150)) < 0.5, device.empty((2, 768), "f4")
    ffn.run(active, y)
    assert_near(get(device, y), ffn.want(active))


@pytest.mark.parametrize("has_gate", [True, False])
@pytest.mark.parametrize("n", [1, 7, 12, 40])
def test_rows_of_any_width(device: Device, put: Put, get: Get, n: int, has_gate: bool) -> None:
    ffn, y = Ffn(device, put, Type.F16, 30, n, has_gate=has_gate), device.empty((1, n), "f4")
    active = np.ones((1, 30), bool)
    ffn.run(active, y)
    assert error(get(device, y), ffn.want(active)) < 1e-5


@pytest.mark.parametrize("has_gate", [True, False])
def test_the_sum_of_no_active_row_is_zero(device: Device, put: Put, get: Get, has_gate: bool) -> None:
    ffn = Ffn(device, put, Type.Q4_0, 150, 64, has_gate=has_gate)
    y = device.empty((1, 64), "f4")
    ffn.run(np.zeros((1, 150), bool), y)
    assert (get(device, y) == 0).all()


@pytest.mark.parametrize("has_gate", [True, False])
@pytest.mark.parametrize("weight_type", each_type())
def test_rows_that_are_not_active_are_never_read(
    open_emulated: Callable[..., Device], put: Put, get: Get, weight_type: Type, has_gate: bool
) -> None:
    answers, n = [], 2 * block_of(weight_type)
    for spoil in (False, True):
        device = open_emulated()
        ffn = Ffn(device, put, weight_type, 150, n, has_gate=has_gate)
        active, y = np.random.default_rng(7).random((1, 150)) < 0.3, device.empty((1, n), "f4")
        for matrix in ffn.weights:
            matrix.rows[~active[0]] = 0xFF if spoil else matrix.rows[~active[0]]
        ffn.run(active, y)
        answers.append(get(device, y).tobytes())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("activation", GATED)
@pytest.mark.parametrize("matrix", [0, 1, 2])
def test_a_nan_shows_where_its_row_is_read(
    open_emulated: Callable[..., Device], put: Put, get: Get, matrix: int, activation: str
) -> None:
    """In a gate always, in up where the gate is open, in down where the hidden value is not zero."""
    device = open_emulated()
    ffn, y = Ffn(device, put, Type.F32, 20, 64, activation=activation), device.empty((1, 64), "f4")
    gate, up = (w.values @ ffn.x[0] for w in ffn.weights[:2])
    never = np.zeros(20, bool)
    closed = never if activation == "silu" else gate <= 0
    unread = (never, closed, closed | (up <= 0) if activation == "relu_both" else closed)[matrix]
    for row in (int(unread.argmin()), int(unread.argmax())):
        kept = ffn.weights[matrix].rows[row].copy()
        ffn.weights[matrix].rows[row] = 0xFF
        ffn.run(np.ones((1, 20), bool), y)
        assert np.isnan(get(device, y)).all() != unread[row]
        ffn.weights[matrix].rows[row] = kept


@pytest.mark.parametrize("has_gate", [True, False])
@pytest.mark.parametrize("weight_type", each_type(quick=[Type.Q4_0]))
def test_the_bits_do_not_depend_on_order_or_build(
    open_emulated: Callable[..., Device], put: Put, get: Get, weight_type: Type, has_gate: bool
) -> None:
    answers, n = set(), 9 * block_of(weight_type)
    for order, build_kind in [(0, "checked"), (1, "checked"), (7, "checked"), (0, "fast"), (1234, "fast")]:
        device = open_emulated(order=order, build_kind=build_kind)
        activation = "silu" if has_gate else "gelu"
        ffn = Ffn(device, put, weight_type, 150, n, activation=activation, has_gate=has_gate)
        y = device.empty((1, n), "f4")
        ffn.run(np.ones((1, 150), bool), y)
        answers.add(get(device, y).tobytes())
    assert len(answers) == 1


# The second reduce


@pytest.mark.parametrize("flags", range(8))
@pytest.mark.parametrize(("n_rows", "n"), [(1, 1), (64 * 11, 70), (64 * 127 + 1, 33), (256 * 150, 5)])
def test_sum_groups(device: Device, put: Put, get: Get, n_rows: int, n: int, flags: int) -> None:
    """The bits of adding bias, other and residual to the bare sum, in this order."""
    named = [HAS_BIAS * (flags & 1), HAS_OTHER * (flags >> 1 & 1), HAS_RESIDUAL * (flags >> 2)]
    groups, partial = n_groups(n_rows), normal(2, n_groups(n_rows), n)
    addends = [normal(n, seed=2), normal(2, n, seed=3), normal(2, n, seed=4)]
    given = [put(device, a) for a in (partial, *addends)]
    bare, y = device.empty((2, n), "f4"), device.empty((2, n), "f4")
    sum_groups(2, n_rows, n).launch(device, (*given, bare, groups, n, 0), device.compute)
    sum_groups(2, n_rows, n, sum(named)).launch(device, (*given, y, groups, n, sum(named)), device.compute)
    want = get(device, bare)
    assert_near(want, partial.astype("f8").sum(1))
    for addend, flag in zip(addends, named, strict=True):
        want = want + addend if flag else want
    assert get(device, y).tobytes() == want.tobytes()
