"""Products of few tokens: the bits of a tile of 64 by 64 and of a row alone, and when a batch is cut so."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from operands import Array, Get, Put, Type, block_of, each_type, inputs, normal, random_matrix, worst_error

from hotcold.kernels import ref
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.driver import KernelFault
from hotcold.kernels.cuda.device.sources import SOURCES, program
from hotcold.kernels.cuda.matmul import matmul
from hotcold.kernels.cuda.matmul_few import FEW_SHARED, FEW_SIDE, batch_product, matmul_few
from hotcold.kernels.cuda.matvec import HAS_BIAS, HAS_RESIDUAL, RELU, matvec
from hotcold.kernels.cuda.work import Work
from hotcold.kernels.weight_table import QUANTISED, WEIGHT_TYPES

TOKENS = (1, 2, 7, 8, 9, 16, 17, 33, 64, 65)
Open = Callable[..., Device]
OpenChanged = Callable[[str, str, str], Device]


def lengths(weight_type: Type) -> tuple[int, ...]:
    """Rows of one piece, of fewer pieces than chains, and of chains that are not equally long."""
    if weight_type not in QUANTISED:
        return (1, 100, 257, 1056)
    return (256, 768, 2304) if block_of(weight_type) == 256 else (32, 576, 1056)


@pytest.fixture
def product(put: Put, get: Get) -> Callable[..., Array]:
    """product(device, work, weight_type, n_tokens, n_rows, n): Y of always the same W and X."""

    def run(device: Device, work: Work, weight_type: Type, n_tokens: int, n_rows: int, n: int) -> Array:
        w, x = random_matrix(weight_type, n_rows, n), normal(max(TOKENS), n)[:n_tokens]
        y = device.empty((n_tokens, n_rows), "f4")
        given = *w.planes(device, put), *inputs(device, put, weight_type, x), y, y, y, n_rows, n, 0
        work.launch(device, given if work.kernel.startswith("matvec") else (*given, n_tokens), device.compute)
        return get(device, y)

    return run


@pytest.mark.parametrize("weight_type", each_type())
def test_the_bits_are_those_of_a_row_alone(
    open_emulated: Open, product: Callable[..., Array], weight_type: Type
) -> None:
    device, n_rows = open_emulated(), 19
    for n in lengths(weight_type):
        want = product(device, matvec(weight_type, 65, n_rows, n), weight_type, 65, n_rows, n)
        for n_tokens in (1, 9, 65):
            work = matmul_few(weight_type, n_tokens, n_rows, n)
            got = product(device, work, weight_type, n_tokens, n_rows, n)
            assert got.tobytes() == want[:n_tokens].tobytes(), (n, n_tokens)


@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize(("n_tokens", "n_rows", "n_blocks"), [(3, 5, 1), (17, 33, 9)])
def test_products(
    device: Device,
    product: Callable[..., Array],
    weight_type: Type,
    n_tokens: int,
    n_rows: int,
    n_blocks: int,
) -> None:
    """Against the oracle, in all orders of threads and blocks and all builds."""
    n = n_blocks * block_of(weight_type)
    w, x = random_matrix(weight_type, n_rows, n), normal(max(TOKENS), n)[:n_tokens]
    got = product(device, matmul_few(weight_type, n_tokens, n_rows, n), weight_type, n_tokens, n_rows, n)
    assert worst_error(got, ref.mul_mat(w.values, x, quantised=weight_type in QUANTISED)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize("n_rows", [1, 15, 64, 65])
def test_the_bits_are_those_of_a_tile_of_64(
    open_emulated: Open, product: Callable[..., Array], weight_type: Type, n_rows: int
) -> None:
    device = open_emulated(build_kind="fast")
    for n in lengths(weight_type):
        for n_tokens in TOKENS:
            works = (each(weight_type, n_tokens, n_rows, n) for each in (matmul, matmul_few))
            answers = [product(device, work, weight_type, n_tokens, n_rows, n) for work in works]
            assert answers[0].tobytes() == answers[1].tobytes(), (n, n_tokens)


@pytest.mark.parametrize("weight_type", each_type())
def test_the_bits_do_not_depend_on_order_or_build(
    open_emulated: Open, product: Callable[..., Array], weight_type: Type
) -> None:
    answers, n = set(), 1280 if block_of(weight_type) == 256 else 1056
    work = matmul_few(weight_type, 17, 18, n)
    for order, build_kind in [(0, "checked"), (1, "checked"), (7, "checked"), (1234, "fast")]:
        device = open_emulated(order=order, build_kind=build_kind)
        answers.add(product(device, work, weight_type, 17, 18, n).tobytes())
    assert len(answers) == 1


@pytest.mark.slow
@pytest.mark.parametrize("weight_type", each_type(Type.F16, Type.BF16))
def test_the_bits_are_the_same_without_tensor_cores(
    open_emulated: Open, product: Callable[..., Array], weight_type: Type
) -> None:
    paths = SOURCES / "matmul_few.cu", SOURCES / "quantise.cu"
    source = program(*paths, types=[(WEIGHT_TYPES[weight_type].ending,)])
    without = open_emulated(source="#define WITHOUT_TENSOR_CORES\n" + source)
    n = 1280 if block_of(weight_type) == 256 else 1056
    work = matmul_few(weight_type, 19, 18, n)
    devices = open_emulated(), without
    assert len({product(device, work, weight_type, 19, 18, n).tobytes() for device in devices}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("weight_type", [Type.F16, Type.BF16], ids=lambda t: t.name)
def test_halves_without_tensor_cores_have_the_bits_of_a_row_alone(
    open_emulated: Open, product: Callable[..., Array], weight_type: Type
) -> None:
    paths = SOURCES / "matmul_few.cu", SOURCES / "matvec.cu"
    source = program(*paths, types=[(WEIGHT_TYPES[weight_type].ending,)])
    device = open_emulated(source="#define WITHOUT_TENSOR_CORES\n" + source)
    for n in lengths(weight_type):
        works = (each(weight_type, 19, 18, n) for each in (matvec, matmul_few))
        assert len({product(device, work, weight_type, 19, 18, n).tobytes() for work in works}) == 1


BUGS = {
    "chains added from the last on": ("total += few_steps()[w].", "total += few_steps()[7 - w]."),
    "a warp's chains in the wrong order": (
        "chains[c][threadIdx.x]",
        "chains[N - 1 - c][threadIdx.x]",
    ),
    "the last warp's chains lost": ("w < 8; w++)\n        for (int c", "w < 7; w++)\n        for (int c"),
    "chains of one pass alone": ("pass < WARP; pass += Shape", "pass < Shape::PASS; pass += Shape"),
    "the last piece taken twice": ("if (piece + c < n_pieces) add_piece", "add_piece"),
    "each warp's first pieces alone": (
        "piece < n_pieces; piece += WARP",
        "piece < min(n_pieces, WARP); piece += WARP",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_bugs_change_the_bits(open_changed: OpenChanged, product: Callable[..., Array], bug: str) -> None:
    paths = SOURCES / "matmul_few.cu", SOURCES / "matvec.cu", SOURCES / "quantise.cu"
    source, n, n_rows = program(*paths, types=[("q4_0",)]), 33 * 32, 16
    device = open_changed(source, *BUGS[bug])
    works = (each(Type.Q4_0, 9, n_rows, n) for each in (matvec, matmul_few))
    assert len({product(device, work, Type.Q4_0, 9, n_rows, n).tobytes() for work in works}) == 2


def test_epilogue(device: Device, put: Put, get: Get) -> None:
    """residual + relu(W x + bias), with the residual in y."""
    n_tokens, n_rows, n, flags = 9, 21, 96, HAS_BIAS | HAS_RESIDUAL | RELU
    w, x = random_matrix(Type.Q8_0, n_rows, n), normal(n_tokens, n)
    bias, residual = normal(n_rows, seed=2) * 10, normal(n_tokens, n_rows, seed=3) * 10
    y, given_bias = put(device, residual), put(device, bias)
    given = (*w.planes(device, put), *inputs(device, put, Type.Q8_0, x), given_bias)
    work = matmul_few(Type.Q8_0, n_tokens, n_rows, n, flags)
    work.launch(device, (*given, y, y, n_rows, n, flags, n_tokens), device.compute)
    want = ref.mul_mat(w.values, x, quantised=True)
    assert worst_error(get(device, y), residual + ref.relu(want + bias)) < 1e-5


@pytest.mark.parametrize(
    ("weight_type", "missing"),
    [(Type.Q8_0, 256 + 16), pytest.param(Type.Q2_K, 16, marks=pytest.mark.slow)],
    ids=str,
)
def test_the_kernel_uses_the_shared_memory_that_is_planned(
    open_emulated: Open, product: Callable[..., Array], weight_type: Type, missing: int
) -> None:
    """With 16 bytes less, the last warp's sums of inputs lie outside; without those, the last numbers of its chains."""
    device, n, n_rows = open_emulated(), 256 * 9, 16
    work = matmul_few(weight_type, 16, n_rows, n)
    assert work.shared == FEW_SHARED
    product(device, work, weight_type, 16, n_rows, n)
    with pytest.raises(KernelFault, match="bad memory access"):
        product(device, replace(work, shared=work.shared - missing), weight_type, 16, n_rows, n)


def test_a_batch_is_cut_where_tiles_would_not_fill_the_device() -> None:
    def kernel(kind: Type, n_tokens: int, n_rows: int) -> str:
        return batch_product(kind, n_tokens, n_rows, 4096, 0, n_sm=82).kernel

    assert kernel(Type.Q4_0, 64, 4096) == kernel(Type.Q4_0, 64, 1024) == "matmul_few_q4_0"
    assert kernel(Type.Q4_0, 65, 4096) == kernel(Type.Q4_0, 17, 11008) == "matmul_q4_0"
    assert kernel(Type.Q4_0, FEW_SIDE, 11008) == "matmul_few_q4_0"
    assert kernel(Type.F16, 64, 1024) == kernel(Type.F16, FEW_SIDE, 4096) == "matmul_few_f16"
    assert kernel(Type.F16, 64, 41 * 64) == "matmul_f16"
    assert (
        kernel(Type.Q4_0, 64, 81 * 64) == "matmul_few_q4_0"
        and kernel(Type.Q4_0, 64, 82 * 64) == "matmul_q4_0"
    )


def test_the_tile_is_that_of_the_source() -> None:
    assert f"constexpr int FEW_SIDE = {FEW_SIDE};" in (SOURCES / "matmul_few.h").read_text()
