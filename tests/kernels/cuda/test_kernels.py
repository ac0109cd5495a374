"""Every kernel against its oracle, in four orders of threads and blocks, at odd sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from hotcold.errors import DeviceError
from hotcold.kernels import ref
from hotcold.kernels.cuda import repack
from hotcold.kernels.cuda.add import add
from hotcold.kernels.cuda.buffers import Buffer
from hotcold.kernels.cuda.compact import compact
from hotcold.kernels.cuda.device import Device
from hotcold.kernels.cuda.matvec import matvec
from hotcold.kernels.cuda.quantise import quantise
from hotcold.kernels.cuda.rms_norm import rms_norm, rms_norm_quantised
from hotcold.kernels.cuda.rope import rope, turns
from hotcold.kernels.cuda.sparse_ffn import n_groups, sparse_ffn, sum_groups
from hotcold.kernels.cuda.weights import KERNEL_TYPES, QUANTISED, weight_planes

Array = NDArray[Any]
Put = Callable[[Device, Array], Buffer]
Get = Callable[[Device, Buffer], Array]
Type = GGMLQuantizationType
TYPES = list(KERNEL_TYPES)


@dataclass(frozen=True)
class Matrix:
    """Random weights of a type: the file's rows and the numbers that they stand for."""

    type: Type
    rows: Array
    values: NDArray[np.float32]

    def planes(self, device: Device, put: Put) -> tuple[Buffer, ...]:
        n_rows, n = self.values.shape
        packed = np.empty(repack.packed_bytes(self.type, n_rows, n), np.uint8)
        repack.pack(self.rows, self.type, packed)
        return weight_planes(put(device, packed), self.type, n_rows, n)


def random_matrix(weight_type: Type, n_rows: int, n: int, seed: int = 0) -> Matrix:
    values = np.random.default_rng(seed).standard_normal((n_rows, n)).astype("f4")
    rows = quants.quantize(values, weight_type)
    numbers = quants.dequantize(rows, weight_type).astype("f4").reshape(n_rows, n)
    return Matrix(weight_type, rows.view(np.uint8).reshape(n_rows, -1), numbers)


def normal(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def error(got: Array, want: Array) -> float:
    """Relative RMS error."""
    return float(np.sqrt(((got - want) ** 2).sum() / (want**2).sum()))


def empty_quantised(device: Device, n_tokens: int, n: int) -> tuple[Buffer, Buffer, Buffer]:
    blocks = n_tokens * n // 32
    return device.empty(n_tokens * n, "i1"), device.empty(blocks, "f4"), device.empty(blocks, "i4")


def inputs(device: Device, put: Put, weight_type: Type, x: NDArray[np.float32]) -> tuple[Buffer, ...]:
    """What a kernel of this type takes for x: x itself, or x quantised on the device."""
    given = put(device, x)
    if weight_type not in QUANTISED:
        return (given,)
    out = empty_quantised(device, *x.shape)
    quantise(*x.shape).launch(device, (given, *out, x.size // 32), device.compute)
    return out


# Rows and vectors


@pytest.mark.parametrize(("n_tokens", "n"), [(1, 32), (3, 288), (2, 4096)])
def test_quantise(device: Device, put: Put, get: Get, n_tokens: int, n: int) -> None:
    x = normal(n_tokens, n)
    x[0, :32] = 0
    q, d, total = inputs(device, put, Type.Q8_0, x)
    want_q, want_d = ref.quantise(x)
    assert (get(device, q).reshape(x.shape) == want_q).all()
    assert (get(device, d) == want_d.ravel()).all()
    assert (get(device, total) == want_q.reshape(-1, 32).sum(1, dtype="i4")).all()


@pytest.mark.parametrize(("n_tokens", "n"), [(1, 1), (3, 300), (2, 4096)])
def test_rms_norm(device: Device, put: Put, get: Get, n_tokens: int, n: int) -> None:
    x, weight, y = normal(n_tokens, n), normal(n, seed=2), device.empty((n_tokens, n), "f4")
    arguments = (put(device, x), put(device, weight), y, n, 1e-5)
    rms_norm(n_tokens, n).launch(device, arguments, device.compute)
    assert error(get(device, y), ref.rms_norm(x, weight, 1e-5)) < 1e-6


@pytest.mark.parametrize(("n_tokens", "n"), [(1, 32), (3, 288), (2, 4096)])
def test_rms_norm_quantised_is_both_steps_in_one(
    device: Device, put: Put, get: Get, n_tokens: int, n: int
) -> None:
    x, weight, y = normal(n_tokens, n), normal(n, seed=2), device.empty((n_tokens, n), "f4")
    given = put(device, x), put(device, weight)
    rms_norm(n_tokens, n).launch(device, (*given, y, n, 1e-5), device.compute)
    apart, fused = empty_quantised(device, n_tokens, n), empty_quantised(device, n_tokens, n)
    quantise(n_tokens, n).launch(device, (y, *apart, x.size // 32), device.compute)
    rms_norm_quantised(n_tokens, n).launch(device, (*given, *fused, n, 1e-5), device.compute)
    for a, b in zip(apart, fused, strict=True):
        assert get(device, a).tobytes() == get(device, b).tobytes()
    want = ref.rounded(ref.rms_norm(x, weight, 1e-5).astype("f4"))
    got = get(device, fused[0]).reshape(-1, 32) * get(device, fused[1])[:, None].astype("f8")
    assert error(got.reshape(want.shape), want) < 1e-3  # a few last bits round the other way


@pytest.mark.parametrize("n", [1, 255, 1000])
def test_add(device: Device, put: Put, get: Get, n: int) -> None:
    a, b, y = normal(n), normal(n, seed=2), device.empty(n, "f4")
    add(n).launch(device, (put(device, a), put(device, b), y, n), device.compute)
    assert (get(device, y) == ref.add(a, b).astype("f4")).all()


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("n_head", "head_dim", "n_rot"), [(1, 2, 2), (5, 48, 32), (4, 64, 64)])
def test_rope(
    device: Device, put: Put, get: Get, n_head: int, head_dim: int, n_rot: int, interleaved: bool
) -> None:
    x, positions = normal(3, n_head, head_dim), np.array([0, 7, 4095], "i4")
    frequencies = ref.rope_frequencies(n_rot, 10000.0)
    given, half = put(device, x), n_rot // 2
    table = put(device, turns(4096, frequencies)), put(device, positions)
    arguments = (given, *table, 3 * n_head * half, n_head, head_dim, half, int(interleaved))
    rope(3, n_head, n_rot).launch(device, arguments, device.compute)
    want = ref.rope(x, positions.astype("i8"), frequencies, interleaved)
    assert error(get(device, given), want) < 1e-6
    assert (get(device, given)[..., n_rot:] == x[..., n_rot:]).all()


# Compaction


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("n_ff", "n_rows"), [(1, 1), (33, 20), (700, 700), (700, 301)])
def test_compact(device: Device, put: Put, get: Get, n_ff: int, n_rows: int, share: float) -> None:
    rng = np.random.default_rng(3)
    active = rng.random((2, n_ff)) < share
    neurons = np.sort(rng.permutation(n_ff)[:n_rows]).astype("i4")
    bits = ref.mask_bits(active)
    ids, count = put(device, np.full((2, n_rows), -1, "i4")), device.empty(2, "i4")
    arguments = (put(device, bits), put(device, neurons), ids, count, n_rows, bits.shape[1])
    compact(2, n_rows, n_ff).launch(device, arguments, device.compute)
    for token, want in enumerate(ref.active_rows(active, neurons)):
        found = get(device, count)[token]
        assert get(device, ids)[token, :found].tolist() == want.tolist()
        assert (get(device, ids)[token, found:] == -1).all()  # nothing is written after the list


# Products


@pytest.mark.parametrize("weight_type", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize(("n_tokens", "n_rows", "n"), [(1, 1, 32), (2, 9, 288), (1, 3, 12288)])
def test_matvec(
    device: Device, put: Put, get: Get, weight_type: Type, n_tokens: int, n_rows: int, n: int
) -> None:
    w, x, y = (
        random_matrix(weight_type, n_rows, n),
        normal(n_tokens, n),
        device.empty((n_tokens, n_rows), "f4"),
    )
    arguments = (*w.planes(device, put), *inputs(device, put, weight_type, x), y, n_rows, n)
    matvec(weight_type, n_tokens, n_rows, n).launch(device, arguments, device.compute)
    want = ref.mul_mat(w.values, x, quantised=weight_type in QUANTISED)
    assert error(get(device, y), want) < 1e-6


@pytest.mark.parametrize("weight_type", [Type.F32, Type.F16, Type.BF16], ids=lambda t: t.name)
@pytest.mark.parametrize("n", [1, 7, 8, 31, 300])
def test_plain_rows_of_any_length(device: Device, put: Put, get: Get, weight_type: Type, n: int) -> None:
    w, x, y = random_matrix(weight_type, 5, n), normal(1, n), device.empty((1, 5), "f4")
    arguments = (*w.planes(device, put), put(device, x), y, 5, n)
    matvec(weight_type, 1, 5, n).launch(device, arguments, device.compute)
    assert error(get(device, y), ref.mul_mat(w.values, x)) < 1e-6


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


def test_a_type_without_kernels_is_refused() -> None:
    with pytest.raises(DeviceError, match="Q6_K.*F32, F16, BF16, Q8_0, Q4_0"):
        matvec(Type.Q6_K, 1, 1, 256)
