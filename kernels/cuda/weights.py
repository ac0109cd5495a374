"""Weights in planes as the arguments of kernels."""

import numpy as np
from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.sources import ending
from hotcold.kernels.cuda.planes import planes
from hotcold.kernels.cuda.work import BLOCK, cover
from hotcold.kernels.weight_table import weight_type_row

WARP = 32


def kernel_name(family: str, *weight_types: GGMLQuantizationType) -> str:
    """How a kernel for matrices of these types is called.

    Raises:
        DeviceError: the device has no kernels for one of them.
    """
    return f"{family}_{ending(tuple(weight_type_row(kind).ending for kind in weight_types))}"


def lanes_of_row(n: int, *weight_types: GGMLQuantizationType) -> int:
    """How many lanes of a warp have a row of n weights together; lanes.h has the same.

    All 32, or 16 or 8 if of none of the types a row has more pieces than that; of floats and halves always all.
    """
    return max(_lanes_of_row(n, kind) for kind in weight_types)


def _lanes_of_row(n: int, weight_type: GGMLQuantizationType) -> int:
    row = weight_type_row(weight_type)
    pieces = n // row.piece
    return WARP if not row.is_quantised or pieces > 16 else 16 if pieces > 8 else 8


def blocks_of_rows(n_rows: int, n: int, *weight_types: GGMLQuantizationType) -> int:
    """Blocks of threads for the products of so many rows, whose matrices are of these types."""
    return cover(n_rows, BLOCK // lanes_of_row(n, *weight_types))


def weight_planes(held: Buffer, weight_type: GGMLQuantizationType, n_rows: int, n: int) -> tuple[Buffer, ...]:
    """Typed views of a matrix in planes, in the order in which kernels take them.

    Args:
        held: the bytes of the matrix in planes, on the device.

    Returns:
        A buffer a plane: the fields of weight_table.py in their order.
    """
    views = []
    for plane in planes(weight_type, n_rows, n):
        dtype = np.dtype(plane.field.dtype)
        views.append(held.view(plane.offset, n_rows * plane.row_bytes // dtype.itemsize, dtype))
    return tuple(views)
