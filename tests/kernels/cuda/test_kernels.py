"""Matrix products and rounding against their oracles, in four orders of threads and blocks."""

import pytest
from operands import Get, Put, Type, error, inputs, normal, random_matrix

from hotcold.errors import DeviceError
from hotcold.kernels import ref
from hotcold.kernels.cuda.device import Device
from hotcold.kernels.cuda.matvec import matvec
from hotcold.kernels.cuda.weights import KERNEL_TYPES, QUANTISED

TYPES = list(KERNEL_TYPES)


@pytest.mark.parametrize(("n_tokens", "n"), [(1, 32), (3, 288), (2, 4096)])
def test_quantise(device: Device, put: Put, get: Get, n_tokens: int, n: int) -> None:
    x = normal(n_tokens, n)
    x[0, :32] = 0
    q, d, total = inputs(device, put, Type.Q8_0, x)
    want_q, want_d = ref.quantise(x)
    assert (get(device, q).reshape(x.shape) == want_q).all()
    assert (get(device, d) == want_d.ravel()).all()
    assert (get(device, total) == want_q.reshape(-1, 32).sum(1, dtype="i4")).all()


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


def test_a_type_without_kernels_is_refused() -> None:
    with pytest.raises(DeviceError, match="Q6_K.*F32, F16, BF16, Q8_0, Q4_0"):
        matvec(Type.Q6_K, 1, 1, 256)
