"""Block types against hand-computed blocks and the gguf package."""

import struct

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from hotcold.errors import SettingError
from hotcold.gguf_io import blocks

T = GGMLQuantizationType
OURS = (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0)


@pytest.fixture
def values() -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal((5, 256)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "block_size", "type_size"),
    [
        (T.F32, 1, 4),
        (T.F16, 1, 2),
        (T.BF16, 1, 2),
        (T.I32, 1, 4),
        (T.Q4_0, 32, 18),
        (T.Q5_0, 32, 22),
        (T.Q8_0, 32, 34),
        (T.Q4_K, 256, 144),
        (T.Q6_K, 256, 210),
    ],
)
def test_sizes(kind: GGMLQuantizationType, block_size: int, type_size: int) -> None:
    assert (blocks.block_size(kind), blocks.type_size(kind)) == (block_size, type_size)
    assert blocks.row_bytes(kind, 3 * block_size) == 3 * type_size
    assert blocks.row_bytes(kind, 0) == 0


@pytest.mark.parametrize("n", [1, 31, 33, 48])
def test_a_row_is_whole_blocks(n: int) -> None:
    for call in (
        lambda: blocks.row_bytes(T.Q8_0, n),
        lambda: blocks.quantize(np.zeros((2, n), np.float32), T.Q8_0),
    ):
        with pytest.raises(SettingError, match=rf"row length for Q8_0: {n} \(a multiple of 32\); choose"):
            call()


def test_q8_0_by_hand() -> None:
    """A float16 scale, then 32 signed bytes."""
    row = struct.pack("<e32b", 0.5, *range(-16, 16))
    numbers = blocks.dequantize(np.frombuffer(row, np.uint8)[None], T.Q8_0)
    assert numbers.tolist() == [[0.5 * i for i in range(-16, 16)]]
    steps = np.arange(-16, 16, dtype=np.float32)
    steps[0] = -127  # so that the scale is 1
    assert blocks.quantize(steps[None], T.Q8_0).tobytes() == struct.pack(
        "<e32b", 1.0, *steps.astype(int).tolist()
    )


def test_q4_0_by_hand() -> None:
    """A float16 scale, then 16 bytes: number i in the low half of byte i, number i + 16 in the high half."""
    row = struct.pack("<e16B", 2.0, *[i | (15 - i) << 4 for i in range(16)])
    numbers = blocks.dequantize(np.frombuffer(row, np.uint8)[None], T.Q4_0)
    assert numbers.tolist() == [[2.0 * (i - 8) for i in range(16)] + [2.0 * (7 - i) for i in range(16)]]
    assert blocks.quantize(numbers, T.Q4_0).tobytes() == row


def test_f16_and_bf16_by_hand() -> None:
    """BF16 is the upper half of float32, rounded to even."""
    numbers = np.array([[1.0, -2.5, 1 + 2**-8, 1 + 3 * 2**-8]], np.float32)
    assert blocks.quantize(numbers, T.BF16).view("<u2").tolist() == [[0x3F80, 0xC020, 0x3F80, 0x3F82]]
    halves = blocks.quantize(numbers, T.F16)
    assert halves.tobytes() == struct.pack("<4e", *numbers[0].tolist())
    assert blocks.dequantize(halves, T.F16).tolist() == numbers.tolist()


@pytest.mark.parametrize("kind", OURS)
def test_the_gguf_package_agrees(kind: GGMLQuantizationType, values: NDArray[np.float32]) -> None:
    rows = blocks.quantize(values, kind)
    assert rows.dtype == np.uint8 and rows.shape == (5, blocks.row_bytes(kind, 256))
    assert rows.tobytes() == quants.quantize(values, kind).tobytes()
    numbers = blocks.dequantize(rows, kind)
    assert numbers.dtype == np.float32 and numbers.shape == (5, 256)
    assert np.array_equal(numbers, quants.dequantize(rows, kind))


@pytest.mark.parametrize(
    ("kind", "bound"), [(T.F32, 0.0), (T.F16, 2**-11), (T.BF16, 2**-8), (T.Q8_0, 1 / 254), (T.Q4_0, 1 / 8)]
)
def test_rounding_error(kind: GGMLQuantizationType, bound: float, values: NDArray[np.float32]) -> None:
    """At most half a step: of each number (floats), of the block's largest number (Q8_0: 127 steps).

    Q4_0 has 8 steps below zero and 7 above, so a positive largest number's opposite is off by a whole step.
    The scale itself is rounded to float16.
    """
    error = np.abs(blocks.dequantize(blocks.quantize(values, kind), kind) - values)
    scale = np.abs(values)
    if blocks.block_size(kind) > 1:
        scale = np.repeat(scale.reshape(5, -1, 32).max(axis=2), 32, axis=1)
        bound += 2**-11
    assert (error <= bound * scale).all()


@pytest.mark.parametrize("kind", OURS)
def test_rows_of_a_larger_array(kind: GGMLQuantizationType, values: NDArray[np.float32]) -> None:
    """Rows need not lie together, nor numbers, and may be read only."""
    rows = blocks.quantize(values, kind)
    rows.setflags(write=False)
    assert np.array_equal(blocks.dequantize(rows[::2], kind), blocks.dequantize(rows, kind)[::2])
    padded = np.pad(rows, ((0, 0), (1, 1)))[:, 1:-1]
    assert np.array_equal(blocks.dequantize(padded, kind), blocks.dequantize(rows, kind))
    assert np.array_equal(blocks.quantize(values[::2], kind), rows[::2])


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("shape", [(0, 64), (2, 0)])
def test_no_numbers(kind: GGMLQuantizationType, shape: tuple[int, int]) -> None:
    rows = blocks.quantize(np.empty(shape, np.float32), kind)
    assert rows.shape == (shape[0], blocks.row_bytes(kind, shape[1])) and rows.dtype == np.uint8
    numbers = blocks.dequantize(rows, kind)
    assert numbers.shape == shape and numbers.dtype == np.float32


@pytest.mark.parametrize(
    ("kind", "n_bytes"), [(T.F32, 6), (T.F16, 3), (T.BF16, 3), (T.Q8_0, 33), (T.Q4_0, 19)]
)
def test_bytes_that_are_no_whole_blocks(kind: GGMLQuantizationType, n_bytes: int) -> None:
    size = blocks.type_size(kind)
    with pytest.raises(
        SettingError, match=rf"bytes a row of {kind.name}: {n_bytes} \(a multiple of {size}\)"
    ):
        blocks.dequantize(np.zeros((2, n_bytes), np.uint8), kind)


def test_types_that_cannot_be_made_or_read() -> None:
    with pytest.raises(SettingError, match="type to quantize to: IQ2_S"):
        blocks.quantize(np.zeros((1, 256), np.float32), T.IQ2_S)
    with pytest.raises(SettingError, match="type to dequantize from: I32"):
        blocks.dequantize(np.zeros((1, 256), np.uint8), T.I32)
