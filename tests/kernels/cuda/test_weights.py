"""The numbers that each type's rows give, against the gguf package; and the table of types."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from operands import Get, Put, block_of, random_matrix

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.sources import program
from hotcold.kernels.cuda.weights import kernel_name
from hotcold.kernels.weight_table import WEIGHT_TYPES

Type = GGMLQuantizationType
SOURCE = Path(__file__).with_name("decoded.cu")


@pytest.fixture
def decoding_device(open_emulated: Callable[..., Device]) -> Device:
    types = [(row.ending,) for row in WEIGHT_TYPES.values()]
    return open_emulated(source=program(SOURCE, types=types))


@pytest.mark.parametrize("weight_type", list(WEIGHT_TYPES), ids=lambda t: t.name)
@pytest.mark.parametrize("blocks", [3, 17, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 8))])
def test_rows_hold_the_numbers_of_the_gguf_package(
    decoding_device: Device, put: Put, get: Get, weight_type: Type, blocks: int
) -> None:
    """To the last bit but where something is subtracted, or the scale is a product of three factors."""
    device, n_rows, n = decoding_device, 3, blocks * block_of(weight_type)
    matrix = random_matrix(weight_type, n_rows, n, seed=blocks)
    outs = device.empty((n_rows, n), "f4"), device.empty((n_rows, n), "f4")
    arguments = (*matrix.planes(device, put), *outs, n)
    device.launch(kernel_name("decoded", weight_type), n_rows, 32, arguments, device.compute)
    largest = np.abs(matrix.values).max()
    for got in (get(device, out) for out in outs):
        assert np.abs(got - matrix.values).max() <= 2.0**-22 * largest


def test_every_field_is_a_plane_of_aligned_numbers() -> None:
    for kind, row in WEIGHT_TYPES.items():
        covered = [b for f in row.fields for b in range(f.start, f.start + f.n_bytes)]
        assert covered == list(range(GGML_QUANT_SIZES[kind][1])), kind.name
        assert all(f.n_bytes % np.dtype(f.dtype).itemsize == 0 for f in row.fields), kind.name


def test_a_type_without_kernels_is_refused() -> None:
    with pytest.raises(DeviceError, match="Q8_K.*known: F32, F16, BF16, Q8_0.*keep it on the CPU"):
        kernel_name("matvec", Type.Q8_K)
