"""The hidden values of a dense FFN against their oracle, in four orders of threads and blocks."""

import numpy as np
import pytest
from operands import Get, Put, Type, block_of, each_type, inputs, normal, random_matrix, worst_error

from hotcold.kernels import ref
from hotcold.kernels.cuda.dense_gated_ffn import gated_ffn_hidden
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.formats import ACTIVATIONS
from hotcold.kernels.weight_table import QUANTISED

pytestmark = pytest.mark.pairwise


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize(("n_tokens", "n_rows", "n_blocks"), [(1, 30, 1), (2, 33, 9)])
def test_gated_ffn_hidden(
    device: Device,
    put: Put,
    get: Get,
    weight_type: Type,
    n_tokens: int,
    n_rows: int,
    n_blocks: int,
    activation: str,
) -> None:
    n = n_blocks * block_of(weight_type)
    gate, up = (random_matrix(weight_type, n_rows, n, seed) for seed in (4, 5))
    x, h = normal(n_tokens, n), device.empty((n_tokens, n_rows), "f4")
    given = (*gate.planes(device, put), *up.planes(device, put), *inputs(device, put, weight_type, x))
    work = gated_ffn_hidden((weight_type,) * 2, n_tokens, n_rows, n)
    work.launch(device, (*given, h, n_rows, n, ACTIVATIONS[activation]), device.compute)
    g, u = (ref.mul_mat(w.values, x, weight_type in QUANTISED) for w in (gate, up))
    assert worst_error(get(device, h), ref.gated(g, u, activation)) < 1e-5


def test_gate_and_up_of_two_types(device: Device, put: Put, get: Get) -> None:
    types, n_rows, n = (Type.Q4_K, Type.Q6_K), 33, 512
    gate, up = (random_matrix(kind, n_rows, n, seed) for seed, kind in enumerate(types))
    x, h = normal(1, n), device.empty((1, n_rows), "f4")
    given = (*gate.planes(device, put), *up.planes(device, put), *inputs(device, put, types[0], x))
    work = gated_ffn_hidden(types, 1, n_rows, n)
    work.launch(device, (*given, h, n_rows, n, ACTIVATIONS["silu"]), device.compute)
    g, u = (ref.mul_mat(w.values, x, quantised=True) for w in (gate, up))
    assert worst_error(get(device, h), ref.gated(g, u, "silu")) < 1e-5


def test_the_up_row_of_a_closed_gate_is_not_read(device: Device, put: Put, get: Get) -> None:
    gate, up = np.array([[1], [-1], [0]], "f4").repeat(8, 1), np.full((3, 8), np.nan, "f4")
    up[0] = 2
    given, h = [put(device, array) for array in (gate, up, np.ones(8, "f4"))], device.empty(3, "f4")
    for activation in ("relu", "relu_both"):
        arguments = (*given, h, 3, 8, ACTIVATIONS[activation])
        gated_ffn_hidden((Type.F32,) * 2, 1, 3, 8).launch(device, arguments, device.compute)
        assert get(device, h).tolist() == [128, 0, 0]
