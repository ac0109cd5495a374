"""Products of a batch against their oracle, in four orders of threads and blocks, at odd sizes."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
from operands import Array, Get, Put, Type, block_of, each_type, inputs, normal, random_matrix, worst_error

from hotcold.kernels import ref
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.driver import KernelFault
from hotcold.kernels.cuda.device.sources import SOURCES, program
from hotcold.kernels.cuda.matmul import TILE_SIDE, matmul
from hotcold.kernels.cuda.matvec import HAS_BIAS, HAS_RESIDUAL, RELU
from hotcold.kernels.weight_table import QUANTISED, WEIGHT_TYPES

pytestmark = pytest.mark.pairwise
PLAIN = sorted(set(WEIGHT_TYPES) - QUANTISED)
EACH_PLAIN = each_type(*QUANTISED, quick=[Type.F32, Type.F16])
SIZES = [(1, 1, 1), (2, 3, 1), (17, 64, 3), (64, 65, 2), (70, 70, 5)]
"""Tokens, rows, and blocks in a row."""


Product = Callable[..., tuple[Array, Array]]


@pytest.fixture
def product(put: Put, get: Get) -> Product:
    """product(device, weight_type, n_tokens, n_rows, n): Y for random W and X, and what it should be."""

    def run(device: Device, weight_type: Type, n_tokens: int, n_rows: int, n: int) -> tuple[Array, Array]:
        w, x = random_matrix(weight_type, n_rows, n), normal(n_tokens, n)
        y = device.empty((n_tokens, n_rows), "f4")
        given = (*w.planes(device, put), *inputs(device, put, weight_type, x))
        work = matmul(weight_type, n_tokens, n_rows, n)
        work.launch(device, (*given, y, y, y, n_rows, n, 0, n_tokens), device.compute)
        return get(device, y), ref.mul_mat(w.values, x, quantised=weight_type in QUANTISED)

    return run


@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize(("n_tokens", "n_rows", "n_blocks"), SIZES)
def test_matmul(
    device: Device, product: Product, weight_type: Type, n_tokens: int, n_rows: int, n_blocks: int
) -> None:
    n = n_blocks * block_of(weight_type)
    assert worst_error(*product(device, weight_type, n_tokens, n_rows, n)) < 1e-5


@pytest.mark.parametrize("weight_type", each_type())
def test_long_rows(device: Device, product: Product, weight_type: Type) -> None:
    assert worst_error(*product(device, weight_type, 2, 3, 12288)) < 1e-5


@pytest.mark.parametrize("weight_type", EACH_PLAIN)
@pytest.mark.parametrize("n", [1, 7, 8, 31, 300])
def test_plain_rows_of_any_length(device: Device, product: Product, weight_type: Type, n: int) -> None:
    assert worst_error(*product(device, weight_type, 3, 5, n)) < 1e-5


@pytest.mark.parametrize("weight_type", [*EACH_PLAIN[1:], pytest.param(Type.Q8_0, id="Q8_0")])
def test_epilogue(device: Device, put: Put, get: Get, weight_type: Type) -> None:
    """residual + relu(W x + bias), with the residual in y."""
    n_tokens, n_rows, n, flags = 3, 70, 96, HAS_BIAS | HAS_RESIDUAL | RELU
    w, x = random_matrix(weight_type, n_rows, n), normal(n_tokens, n)
    bias, residual = normal(n_rows, seed=2) * 10, normal(n_tokens, n_rows, seed=3) * 10
    y, given_bias = put(device, residual), put(device, bias)
    given = (*w.planes(device, put), *inputs(device, put, weight_type, x), given_bias)
    work = matmul(weight_type, n_tokens, n_rows, n, flags)
    work.launch(device, (*given, y, y, n_rows, n, flags, n_tokens), device.compute)
    want = ref.mul_mat(w.values, x, quantised=weight_type in QUANTISED)
    assert worst_error(get(device, y), residual + ref.relu(want + bias)) < 1e-5


@pytest.mark.parametrize("weight_type", each_type())
def test_the_bits_do_not_depend_on_order_or_build(
    open_emulated: Callable[..., Device], product: Product, weight_type: Type
) -> None:
    answers = set()
    for order, build_kind in [(0, "checked"), (1, "checked"), (7, "checked"), (0, "fast"), (1234, "fast")]:
        device = open_emulated(order=order, build_kind=build_kind)
        answers.add(product(device, weight_type, 70, 70, 768)[0].tobytes())
    assert len(answers) == 1


@pytest.mark.parametrize("weight_type", each_type())
def test_the_bits_of_a_token_do_not_depend_on_its_batch(
    open_emulated: Callable[..., Device], product: Product, weight_type: Type
) -> None:
    device = open_emulated(build_kind="fast")
    small, large = (product(device, weight_type, n_tokens, 5, 256)[0] for n_tokens in (2, 70))
    assert small.tobytes() == large[:2].tobytes()


def test_the_tile_is_that_of_the_source() -> None:
    assert f"constexpr int TILE_SIDE = {TILE_SIDE};" in (SOURCES / "matmul_tile.h").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("weight_type", each_type(*PLAIN))
@pytest.mark.parametrize(("n_tokens", "n_rows"), [(3, 5), (33, 70), (70, 64)])
def test_the_bits_are_the_same_without_tensor_cores(
    open_emulated: Callable[..., Device], product: Product, weight_type: Type, n_tokens: int, n_rows: int
) -> None:
    """Of quantised types, on cards below sm_80."""
    paths = SOURCES / "matmul.cu", SOURCES / "quantise.cu"
    source = program(*paths, types=[(WEIGHT_TYPES[weight_type].ending,)])
    without = open_emulated(source="#define WITHOUT_TENSOR_CORES\n" + source)
    answers = (
        product(device, weight_type, n_tokens, n_rows, 1280)[0] for device in (open_emulated(), without)
    )
    assert len({y.tobytes() for y in answers}) == 1


@pytest.mark.parametrize(
    ("weight_type", "missing"),
    [
        *[(Type.Q8_0, 0), (Type.Q8_0, 32), (Type.F16, 0), (Type.F16, 16)],
        *(pytest.param(Type.Q4_K, n, marks=pytest.mark.slow) for n in (0, 4 * (TILE_SIDE + 4) + 32)),
        *(pytest.param(Type.BF16, n, marks=pytest.mark.slow) for n in (0, 16)),
    ],
    ids=str,
)
def test_the_kernel_uses_the_shared_memory_that_is_planned(
    open_emulated: Callable[..., Device], put: Put, weight_type: Type, missing: int
) -> None:
    """With some bytes less, the scales of the last inputs lie outside, or their sums, or whether a chain ends."""
    device, n = open_emulated(), 4 * block_of(weight_type)
    w, x, y = random_matrix(weight_type, 1, n), normal(64, n), device.empty(64, "f4")
    work = matmul(weight_type, 64, 1, n)
    arguments = (*w.planes(device, put), *inputs(device, put, weight_type, x), y, y, y, 1, n, 0, 64)
    replace(work, shared=work.shared - missing).launch(device, arguments, device.compute)
    with pytest.raises(KernelFault, match="bad memory access") if missing else nullcontext():
        device.synchronize()
