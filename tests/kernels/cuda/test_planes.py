"""Rows in planes: sizes, alignment, and the way back."""

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st

from hotcold.errors import DeviceError
from hotcold.kernels.cuda import planes
from hotcold.kernels.weight_table import WEIGHT_TYPES, device_row_bytes

Type = GGMLQuantizationType
TYPES = list(WEIGHT_TYPES)


def random_rows(weight_type: Type, n_rows: int, blocks: int, seed: int = 0) -> planes.Bytes:
    size = blocks * GGML_QUANT_SIZES[weight_type][1]
    return np.random.default_rng(seed).integers(0, 256, (n_rows, size), np.uint8)


@given(st.sampled_from(TYPES), st.integers(1, 7), st.integers(1, 19), st.integers(0, 99))
def test_packing_is_exact_and_of_the_computed_size(
    weight_type: Type, n_rows: int, blocks: int, seed: int
) -> None:
    rows, n = random_rows(weight_type, n_rows, blocks, seed), blocks * GGML_QUANT_SIZES[weight_type][0]
    held = np.full(n_rows * device_row_bytes(weight_type, n), 0xFF, np.uint8)
    planes.to_planes(rows, weight_type, held)
    assert (planes.from_planes(held, weight_type, n_rows, n) == rows).all()
    placed = planes.planes(weight_type, n_rows, n)
    assert all(p.offset % 16 == p.row_bytes % 16 == 0 for p in placed)
    assert placed[-1].offset + n_rows * placed[-1].row_bytes == held.size
    padding = held.size - rows.size
    assert 0 <= padding < 16 * n_rows * len(placed)
    assert int(held.sum()) == int(rows.sum())  # the padding is zero


@given(st.sampled_from(TYPES), st.integers(0, 50), st.integers(0, 50), st.integers(1, 40))
def test_bytes_add_up_over_rows(weight_type: Type, a: int, b: int, blocks: int) -> None:
    n = blocks * GGML_QUANT_SIZES[weight_type][0]
    sizes = [rows * device_row_bytes(weight_type, n) for rows in (a, b, a + b)]
    assert sizes[0] + sizes[1] == sizes[2] == (a + b) * device_row_bytes(weight_type, n)


@pytest.mark.parametrize(
    ("weight_type", "n", "n_bytes"),
    [
        (Type.Q4_0, 4096, 2048 + 256),  # as in the file
        (Type.Q4_0, 288, 144 + 32),  # nine scales of two bytes, padded
        (Type.Q8_0, 4096, 4096 + 256),
        (Type.F16, 4096, 8192),
        (Type.F16, 1, 16),
        (Type.F32, 5, 32),
        (Type.Q6_K, 256, 128 + 64 + 16 + 16),
    ],
)
def test_row_sizes_by_hand(weight_type: Type, n: int, n_bytes: int) -> None:
    assert device_row_bytes(weight_type, n) == n_bytes


def test_the_planes_of_q4_0_hold_quants_and_scales() -> None:
    weights = np.random.default_rng(0).standard_normal((3, 64)).astype("f4")
    rows = quants.quantize(weights, Type.Q4_0)
    held = np.empty(3 * device_row_bytes(Type.Q4_0, 64), np.uint8)
    planes.to_planes(rows, Type.Q4_0, held)
    scales, nibbles = planes.planes(Type.Q4_0, 3, 64)
    d = held[scales.offset :].view("f2")[: 3 * scales.row_bytes // 2].reshape(3, -1)[:, :2].astype("f4")
    q = held[nibbles.offset :].reshape(3, 2, 16)
    values = np.concatenate([q & 15, q >> 4], -1).astype("f4") - 8
    assert ((values * d[..., None]).reshape(3, 64) == quants.dequantize(rows, Type.Q4_0)).all()


def test_what_cannot_be_held_is_refused() -> None:
    with pytest.raises(DeviceError, match="Q8_K.*known: F32.*keep it on the CPU"):
        device_row_bytes(Type.Q8_K, 256)
    with pytest.raises(DeviceError, match="33 .Q4_0 needs a multiple of 32"):
        device_row_bytes(Type.Q4_0, 33)
    with pytest.raises(DeviceError, match="0 .F16 needs"):
        device_row_bytes(Type.F16, 0)
    rows = random_rows(Type.Q4_0, 2, 1)
    with pytest.raises(DeviceError, match="64 bytes are wanted"):
        planes.to_planes(rows, Type.Q4_0, np.empty(63, np.uint8))
    with pytest.raises(DeviceError, match="blocks of 18 bytes"):
        planes.to_planes(rows[:, :17], Type.Q4_0, np.empty(64, np.uint8))
