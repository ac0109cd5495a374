"""A batch times rows that belong to neurons, against the definition, in four orders of threads."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from operands import Array, Get, Put, Type, block_of, each_type, normal, random_matrix, worst_error

from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.driver import KernelFault
from hotcold.kernels.cuda.matmul_transposed import matmul_transposed
from hotcold.kernels.formats import n_groups
from hotcold.kernels.weight_table import QUANTISED, WEIGHT_TYPES

pytestmark = pytest.mark.pairwise
Product = Callable[[Device, Type, int, int, int], tuple[Array, Array]]


@pytest.fixture
def product(put: Put, get: Get) -> Product:
    """product(device, weight_type, n_tokens, n_rows, n): Y for random H and D, and what it should be."""

    def run(device: Device, weight_type: Type, n_tokens: int, n_rows: int, n: int) -> tuple[Array, Array]:
        down, h = random_matrix(weight_type, n_rows, n), normal(n_tokens, n_rows)
        y = device.empty((n_tokens, n), "f4")
        all_rows = (put(device, np.zeros(1, "i4")),) * 2
        arguments = (*down.planes(device, put), put(device, h), *all_rows, y, n_rows, n, n_tokens)
        work = matmul_transposed(weight_type, n_tokens, n_rows, n)
        work.launch(device, (*arguments, n_groups(n_rows), 0), device.compute)
        return get(device, y), h.astype("f8") @ down.values.astype("f8")

    return run


@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize(
    ("n_tokens", "n_rows", "n_blocks"), [(1, 1, 1), (2, 33, 3), (70, 70, 5), (17, 700, 2)]
)
def test_matmul_transposed(
    device: Device, product: Product, weight_type: Type, n_tokens: int, n_rows: int, n_blocks: int
) -> None:
    n = n_blocks * block_of(weight_type)
    assert worst_error(*product(device, weight_type, n_tokens, n_rows, n)) < 1e-5


@pytest.mark.parametrize("weight_type", sorted(set(WEIGHT_TYPES) - QUANTISED), ids=lambda t: t.name)
@pytest.mark.parametrize("n", [1, 7, 41, 129])
def test_plain_rows_of_any_length(device: Device, product: Product, weight_type: Type, n: int) -> None:
    assert worst_error(*product(device, weight_type, 3, 40, n)) < 1e-5


@pytest.mark.parametrize("weight_type", each_type())
def test_the_bits_depend_on_nothing_but_the_token(
    open_emulated: Callable[..., Device], product: Product, weight_type: Type
) -> None:
    """Neither on order or build, nor on the other tokens of its batch."""
    runs = [(0, "checked", 70), (1, "checked", 70), (7, "checked", 2), (0, "fast", 2), (1234, "fast", 70)]
    answers = set()
    for order, build_kind, n_tokens in runs:
        device = open_emulated(order=order, build_kind=build_kind)
        answers.add(product(device, weight_type, n_tokens, 70, 3 * block_of(weight_type))[0][:2].tobytes())
    assert len(answers) == 1


@pytest.mark.parametrize("missing", [0, 32])
def test_the_kernel_uses_the_shared_memory_that_is_planned(
    open_emulated: Callable[..., Device], put: Put, missing: int
) -> None:
    device, n_tokens, n_rows, n = open_emulated(), 64, 32, 32
    planes, h = random_matrix(Type.F32, n_rows, n).planes(device, put), put(device, np.ones((64, 32), "f4"))
    work = matmul_transposed(Type.F32, n_tokens, n_rows, n)
    lists, y = (put(device, np.zeros(64, "i4")),) * 2, device.empty((n_tokens, n), "f4")
    arguments = (*planes, h, *lists, y, n_rows, n, n_tokens, 1, 0)
    replace(work, shared=work.shared - missing).launch(device, arguments, device.compute)
    with pytest.raises(KernelFault, match="bad memory access") if missing else nullcontext():
        device.synchronize()
