"""Weights in planes as the arguments of kernels."""

from collections.abc import Container
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.planes import planes
from hotcold.kernels.formats import KERNEL_TYPES

VALUES: dict[GGMLQuantizationType, np.dtype[Any]] = {
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(np.uint16),
}

FIELD_VALUES: dict[tuple[GGMLQuantizationType, str], np.dtype[Any]] = {
    (GGMLQuantizationType.Q5_0, "high_bits"): np.dtype(np.uint32),
    (GGMLQuantizationType.Q6_K, "group_scales"): np.dtype(np.int8),
}
"""What kernels read one by one; other fields are bytes, and are read as vectors."""


def kernel_suffix(
    weight_type: GGMLQuantizationType, types: Container[GGMLQuantizationType] = KERNEL_TYPES
) -> str:
    """How the kernels of a type are called.

    Args:
        types: those that the kernel in question exists for.

    Raises:
        DeviceError: the type is not among them.
    """
    if weight_type not in types:
        known = ", ".join(t.name for t in KERNEL_TYPES if t in types)
        raise DeviceError("weight type", weight_type.name, f"kernels exist for {known}", "keep it on the CPU")
    return KERNEL_TYPES[weight_type]


def weight_planes(held: Buffer, weight_type: GGMLQuantizationType, n_rows: int, n: int) -> tuple[Buffer, ...]:
    """Typed views of a matrix in planes, in the order in which kernels take them.

    Args:
        held: the bytes of the matrix in planes, on the device.

    Returns:
        One buffer for a plain type; for a quantised one scales (float16), quants (bytes) and what else
        formats.FIELDS lists, in its order.
    """
    views = []
    for plane in planes(weight_type, n_rows, n):
        n_bytes = n_rows * plane.row_bytes
        dtype = _dtype(weight_type, plane.field.name)
        views.append(held.view(plane.offset, n_bytes // dtype.itemsize, dtype))
    return tuple(views)


def _dtype(weight_type: GGMLQuantizationType, field: str) -> np.dtype[Any]:
    if field == "values":
        return VALUES[weight_type]
    if field in ("scales", "minima"):
        return np.dtype(np.float16)
    return FIELD_VALUES.get((weight_type, field), np.dtype(np.uint8))
