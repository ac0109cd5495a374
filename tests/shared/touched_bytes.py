"""What is given to kernels where the bytes that they touch are noted: equal rows, and products that are not zero."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from operands import Matrix, block_of, random_matrix

from hotcold.kernels import ref
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.planes import to_planes
from hotcold.kernels.cuda.weights import weight_planes
from hotcold.kernels.cuda.work import Work
from hotcold.kernels.weight_table import QUANTISED, device_row_bytes

Type = GGMLQuantizationType
Touched = Callable[[Work, tuple[Any, ...]], tuple[int, int]]
"""Launches some work: the bytes that it read and wrote."""


def filled(device: Device, array: NDArray[Any]) -> Buffer:
    """An array on the device, which no copy has touched."""
    buffer = device.empty(array.shape, array.dtype)
    buffer.array[...] = array
    return buffer


def ones(device: Device, *shape: int) -> Buffer:
    """Of float32."""
    return filled(device, np.ones(shape, "f4"))


def floats(device: Device, n: int) -> Buffer:
    """Room for n float32."""
    return device.empty(n, "f4")


def unpadded(weight_type: Type) -> int:
    """A row length that needs no padding in any plane."""
    return 2048 if block_of(weight_type) == 256 else 512


def row_of(weight_type: Type, n: int) -> Matrix:
    """The one row that all weights here are made of."""
    return random_matrix(weight_type, 1, n, seed=5)


def inputs(device: Device, weight_type: Type, n: int, n_tokens: int = 1) -> tuple[Buffer, ...]:
    """+1 and -1, whose product with the row is positive; rounded to themselves where the type wants that."""
    signs = np.where(row_of(weight_type, n).values < 0, -1, 1).repeat(n_tokens, 0)
    if weight_type not in QUANTISED:
        return (filled(device, signs.astype("f4")),)
    sums = signs.reshape(-1, 32).sum(1)
    return (
        filled(device, signs.astype("i1")),
        ones(device, n_tokens * n // 32),
        filled(device, sums.astype("i4")),
    )


def weights(device: Device, weight_type: Type, n_rows: int, n: int, zeros: Any = ()) -> tuple[Buffer, ...]:
    """Equal rows, but for those of zeros."""
    rows = row_of(weight_type, n).rows.repeat(n_rows, 0)
    rows[list(zeros)] = 0
    held = np.empty(n_rows * device_row_bytes(weight_type, n), np.uint8)
    to_planes(rows, weight_type, held)
    return weight_planes(filled(device, held), weight_type, n_rows, n)


def cache(device: Device, kv_type: str, n_head_kv: int, n_ctx: int, head_dim: int) -> Buffer:
    """Keys or values of one layer, all 1."""
    return filled(device, ref.cached(kv_type, np.ones((n_head_kv, n_ctx, head_dim), np.float32)))
