"""Products of one input against their oracle, in four orders of threads and blocks, at odd sizes."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from operands import Array, Get, Put, Type, block_of, each_type, inputs, normal, random_matrix, worst_error

from hotcold.kernels import ref
from hotcold.kernels.cuda.add import HAS_OTHER
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.sources import SOURCES
from hotcold.kernels.cuda.matvec import HAS_BIAS, HAS_RESIDUAL, RELU, WHERE_POSITIVE, matvec, matvec_mask
from hotcold.kernels.cuda.matvec3 import CACHES, Rooms, matvec3
from hotcold.kernels.cuda.rope import rope_kv_store
from hotcold.kernels.formats import cos_sin_table, mask_words
from hotcold.kernels.weight_table import QUANTISED, WEIGHT_TYPES

pytestmark = pytest.mark.pairwise
F32 = NDArray[np.float32]
PLAIN = sorted(set(WEIGHT_TYPES) - QUANTISED)
SIZES = [(1, 1, 1), (1, 9, 2), (2, 17, 9), (1, 3, 48)]
"""Tokens, rows, and blocks in a row."""


def name_of(value: object) -> str:
    return value.name if isinstance(value, Type) else str(value)


def finish(product: NDArray[np.float64], bias: F32, residual: F32, flags: int) -> Array:
    """residual + act(product + bias), as the flags say."""
    y = product + bias if flags & HAS_BIAS else product
    y = ref.relu(y) if flags & RELU else y
    return residual + y if flags & HAS_RESIDUAL else y


@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize(("n_tokens", "n_rows", "n_blocks"), SIZES)
def test_matvec(
    device: Device, put: Put, get: Get, weight_type: Type, n_tokens: int, n_rows: int, n_blocks: int
) -> None:
    n = n_blocks * block_of(weight_type)
    w, x = random_matrix(weight_type, n_rows, n), normal(n_tokens, n)
    y = device.empty((n_tokens, n_rows), "f4")
    arguments = (*w.planes(device, put), *inputs(device, put, weight_type, x), y, y, y, n_rows, n, 0)
    matvec(weight_type, n_tokens, n_rows, n).launch(device, arguments, device.compute)
    want = ref.mul_mat(w.values, x, quantised=weight_type in QUANTISED)
    assert worst_error(get(device, y), want) < 1e-5


@pytest.mark.parametrize("weight_type", PLAIN, ids=name_of)
@pytest.mark.parametrize("n", [1, 7, 8, 31, 300])
def test_plain_rows_of_any_length(device: Device, put: Put, get: Get, weight_type: Type, n: int) -> None:
    w, x, y = random_matrix(weight_type, 5, n), normal(2, n), device.empty((2, 5), "f4")
    arguments = (*w.planes(device, put), put(device, x), y, y, y, 5, n, 0)
    matvec(weight_type, 2, 5, n).launch(device, arguments, device.compute)
    assert worst_error(get(device, y), ref.mul_mat(w.values, x)) < 1e-5


@pytest.mark.parametrize("flags", range(8))
@pytest.mark.parametrize("weight_type", [Type.F16, Type.Q4_0], ids=name_of)
def test_epilogue(device: Device, put: Put, get: Get, weight_type: Type, flags: int) -> None:
    """The residual is y itself; what no flag asks for is NaN."""
    w, x = random_matrix(weight_type, 11, 96), normal(2, 96)
    bias, residual, nan = normal(11, seed=2) * 10, normal(2, 11, seed=3) * 10, np.full((2, 11), np.nan, "f4")
    given_bias = put(device, bias if flags & HAS_BIAS else nan)
    y = put(device, residual if flags & HAS_RESIDUAL else nan)
    given = (*w.planes(device, put), *inputs(device, put, weight_type, x))
    work = matvec(weight_type, 2, 11, 96, flags)
    work.launch(device, (*given, given_bias, y, y, 11, 96, flags), device.compute)
    product = ref.mul_mat(w.values, x, quantised=weight_type in QUANTISED)
    assert worst_error(get(device, y), finish(product, bias, residual, flags)) < 1e-5


def test_relu_lets_nan_through(device: Device, put: Put, get: Get) -> None:
    w, x, y = put(device, np.full((1, 8), np.nan, "f4")), put(device, np.ones(8, "f4")), device.empty(1, "f4")
    matvec(Type.F32, 1, 1, 8, RELU).launch(device, (w, x, y, y, y, 1, 8, RELU), device.compute)
    assert np.isnan(get(device, y)).all()


def test_the_flags_are_those_of_the_headers() -> None:
    text = "".join((SOURCES / name).read_text() for name in ("addends.h", "epilogue.h", "matvec.cu"))
    flags = {name: int(bit) for name, bit in re.findall(r"\b([A-Z_]+) = (\d+)\b", text)}
    want = {"HAS_BIAS": HAS_BIAS, "HAS_RESIDUAL": HAS_RESIDUAL, "RELU": RELU, "HAS_OTHER": HAS_OTHER}
    want["WHERE_POSITIVE"] = WHERE_POSITIVE
    assert flags == want and len(set(want.values())) == 5


@pytest.mark.parametrize("weight_type", each_type(quick=[Type.F16, Type.Q4_0]))
def test_rows_by_a_profile_have_the_bits_of_all_rows(
    device: Device, put: Put, get: Get, weight_type: Type
) -> None:
    """NaN in the profile leaves a row out too."""
    n, n_rows = block_of(weight_type), 37
    profile = normal(n_rows, seed=3)
    profile[[0, 4]], profile[[1, 5]] = 0, np.nan
    x, y = inputs(device, put, weight_type, normal(1, n)), device.empty((1, n_rows), "f4")
    planes = random_matrix(weight_type, n_rows, n).planes(device, put)
    found = []
    for flags in (0, WHERE_POSITIVE):
        given = *planes, *x, put(device, profile), y, y, n_rows, n, flags
        matvec(weight_type, 1, n_rows, n, flags).launch(device, given, device.compute)
        found.append(get(device, y)[0])
    whole, some = found
    assert some.tobytes() == ref.positive_rows(whole, profile).astype("f4").tobytes()
    assert 8 < np.isfinite(some).sum() < 29


@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize("n_rows", [(1, 1, 1), (20, 9, 3), (16, 8, 8)])
@pytest.mark.parametrize("flags", [0, HAS_BIAS])
def test_three_matrices_at_once_are_three_products(
    device: Device, put: Put, get: Get, weight_type: Type, n_rows: tuple[int, int, int], flags: int
) -> None:
    n, tokens = 3 * block_of(weight_type), 2
    planes = [random_matrix(weight_type, rows, n, rows).planes(device, put) for rows in n_rows]
    biases = [put(device, normal(rows, seed=rows)) for rows in n_rows]
    x = inputs(device, put, weight_type, normal(tokens, n))
    apart, together = ([device.empty((tokens, rows), "f4") for rows in n_rows] for _ in range(2))
    for of_one, bias, y, rows in zip(planes, biases, apart, n_rows, strict=True):
        arguments = (*of_one, *x, bias, y, y, rows, n, flags)
        matvec(weight_type, tokens, rows, n, flags).launch(device, arguments, device.compute)
    all_planes = [plane for of_one in planes for plane in of_one]
    arguments = (*all_planes, *x, *biases, *together, *n_rows, n, flags, *Rooms.none(x[0]).arguments)
    matvec3((weight_type,) * 3, tokens, n_rows, n, flags).launch(device, arguments, device.compute)
    for a, b in zip(apart, together, strict=True):
        assert get(device, a).tobytes() == get(device, b).tobytes()


@pytest.mark.parametrize("weight_type", each_type(quick=[Type.F16, Type.Q4_0]))
@pytest.mark.parametrize("kv_type", list(CACHES))
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("flags", [0, HAS_BIAS])
@pytest.mark.parametrize("sizes", [(3, 1, 2, 2), (2, 2, 12, 8), (4, 2, 64, 64), (3, 3, 6, 0)])
def test_what_is_stored_as_it_is_made_has_the_bits_of_two_launches(
    device: Device,
    put: Put,
    get: Get,
    weight_type: Type,
    kv_type: str,
    interleaved: bool,
    flags: int,
    sizes: tuple[int, int, int, int],
) -> None:
    """Positions beyond the cache's rows go round; of two slots the first token has the second one."""
    (n_head, n_head_kv, head_dim, n_rot), n, tokens, rows = sizes, block_of(weight_type), 2, 5
    n_rows = n_head * head_dim, n_head_kv * head_dim, n_head_kv * head_dim
    table = cos_sin_table(16, ref.rope_frequencies(n_rot, 10000.0)) if n_rot else np.zeros((1, 2), "f4")
    planes = [random_matrix(weight_type, r, n, i).planes(device, put) for i, r in enumerate(n_rows)]
    biases = [put(device, normal(r, seed=i)) for i, r in enumerate(n_rows)]
    given = *(p for of_one in planes for p in of_one), *inputs(device, put, weight_type, normal(tokens, n))
    q, k, v, fused = (device.empty((tokens, r), "f4") for r in (*n_rows, n_rows[0]))
    empty = ref.cached(kv_type, np.full((2 * n_head_kv, rows, head_dim), np.nan, np.float32))
    caches = [put(device, empty) for _ in range(4)]
    tables = put(device, table), put(device, np.array([3, 12, 1, 0], "i4"))
    turning = n_rot // 2, int(interleaved), rows, 2
    arguments = (*given, *biases, q, k, v, *n_rows, n, flags, *Rooms.none(q).arguments)
    matvec3((weight_type,) * 3, tokens, n_rows, n, flags).launch(device, arguments, device.compute)
    work = rope_kv_store(kv_type, tokens, n_head, n_head_kv, head_dim, n_rot)
    counts = tokens, n_head, n_head_kv, head_dim
    work.launch(device, (q, k, v, *tables, q, *caches[:2], *counts, *turning), device.compute)
    in_bytes = [cache.view(0, cache.n_bytes, "u1") for cache in caches[2:]]
    rooms = Rooms(kv_type, n_rot, (*tables, *in_bytes, head_dim, *turning))
    unwritten = device.empty((tokens, n_rows[1]), "f4")
    arguments = (*given, *biases, fused, unwritten, unwritten, *n_rows, n, flags, *rooms.arguments)
    work = matvec3((weight_type,) * 3, tokens, n_rows, n, flags, kv_type, n_rot)
    work.launch(device, arguments, device.compute)
    assert get(device, fused).tobytes() == get(device, q).tobytes()
    for apart, together in zip(caches[:2], caches[2:], strict=True):
        assert get(device, apart).tobytes() == get(device, together).tobytes()
        heads = np.isnan(get(device, together)).reshape(2 * n_head_kv, rows, head_dim)
        assert heads[:, [0, 1, 4]].all() and heads[:n_head_kv, 3].all() and heads[n_head_kv:, 2].all()
        assert not heads[:n_head_kv, 2].any() and not heads[n_head_kv:, 3].any()


@pytest.mark.parametrize(
    "types",
    [
        (Type.Q4_K, Type.Q4_K, Type.Q6_K),
        pytest.param((Type.Q8_0, Type.Q5_K, Type.IQ3_S), marks=pytest.mark.slow),
        pytest.param((Type.F16, Type.BF16, Type.F32), marks=pytest.mark.slow),
    ],
    ids=lambda types: "-".join(t.name for t in types),
)
def test_three_matrices_of_several_types(
    device: Device, put: Put, get: Get, types: tuple[Type, Type, Type]
) -> None:
    n, n_rows = 512, (20, 9, 3)
    matrices = [random_matrix(kind, rows, n, rows) for kind, rows in zip(types, n_rows, strict=True)]
    x, outs = normal(1, n), [device.empty((1, rows), "f4") for rows in n_rows]
    given = [plane for matrix in matrices for plane in matrix.planes(device, put)]
    arguments = (
        *given,
        *inputs(device, put, types[0], x),
        *outs,
        *outs,
        *n_rows,
        n,
        0,
        *Rooms.none(outs[0]).arguments,
    )
    matvec3(types, 1, n_rows, n).launch(device, arguments, device.compute)
    for y, matrix in zip(outs, matrices, strict=True):
        assert worst_error(get(device, y), ref.mul_mat(matrix.values, x, matrix.type in QUANTISED)) < 1e-5


@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize(("n_tokens", "n_rows"), [(1, 1), (3, 32), (1, 33), (2, 131)])
def test_mask(device: Device, put: Put, get: Get, weight_type: Type, n_tokens: int, n_rows: int) -> None:
    n, words = 256, mask_words(n_rows)
    w, x, mask = (
        random_matrix(weight_type, n_rows, n),
        normal(n_tokens, n),
        device.empty((n_tokens, words), "u4"),
    )
    y = ref.mul_mat(w.values, x, quantised=weight_type in QUANTISED)
    threshold = middle_of_the_widest_gap(y)
    given = (*w.planes(device, put), *inputs(device, put, weight_type, x))
    work = matvec_mask(weight_type, n_tokens, n_rows, n)
    work.launch(device, (*given, mask, n_rows, n, threshold), device.compute)
    want = ref.mask_bits(np.pad(~(y < threshold), ((0, 0), (0, 32 * words - n_rows))))
    assert get(device, mask).tolist() == want.tolist()


def middle_of_the_widest_gap(y: Array) -> float:
    """A threshold that no number is near, among the middle half of them."""
    ascending = np.sort(np.append(y.ravel(), y.max() + 1))
    inner = ascending[len(ascending) // 4 : 3 * len(ascending) // 4 + 1]
    at = int(np.diff(inner).argmax())
    return float(inner[at] + inner[at + 1]) / 2


def test_nan_and_the_threshold_itself_count_as_active(device: Device, put: Put, get: Get) -> None:
    values = np.array([[1], [np.nan], [0.5], [0.25]], "f4").repeat(4, 1) / 4
    w, x, mask = put(device, values), put(device, np.ones(4, "f4")), device.empty(2, "u4")
    matvec_mask(Type.F32, 1, 4, 4).launch(device, (w, x, mask, 4, 4, 0.5), device.compute)
    assert get(device, mask).tolist() == [0b0111, 0]


@pytest.mark.parametrize("weight_type", each_type())
def test_the_bits_do_not_depend_on_order_or_build(
    open_emulated: Callable[..., Device], put: Put, get: Get, weight_type: Type
) -> None:
    answers, n = set(), 1536
    for order, build_kind in [(0, "checked"), (1, "checked"), (7, "checked"), (0, "fast"), (1234, "fast")]:
        device = open_emulated(order=order, build_kind=build_kind)
        y, planes = device.empty(20, "f4"), random_matrix(weight_type, 20, n).planes(device, put)
        arguments = (*planes, *inputs(device, put, weight_type, normal(1, n)), y, y, y, 20, n, 0)
        matvec(weight_type, 1, 20, n).launch(device, arguments, device.compute)
        answers.add(get(device, y).tobytes())
    assert len(answers) == 1
