"""Packed weights as the arguments of kernels."""

from collections.abc import Container
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.repack import planes

KERNEL_TYPES = {
    GGMLQuantizationType.F32: "f32",
    GGMLQuantizationType.F16: "f16",
    GGMLQuantizationType.BF16: "bf16",
    GGMLQuantizationType.Q8_0: "q8_0",
    GGMLQuantizationType.Q4_0: "q4_0",
    GGMLQuantizationType.Q5_0: "q5_0",
    GGMLQuantizationType.Q6_K: "q6_K",
}
"""The types that matvec, its mask and matmul multiply, and how their kernels' names end."""

FFN_TYPES = frozenset(KERNEL_TYPES) - {GGMLQuantizationType.Q5_0, GGMLQuantizationType.Q6_K}
"""The types that all other kernels have, those of a sparse FFN among them."""

QUANTISED = frozenset(KERNEL_TYPES) - {
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F16,
    GGMLQuantizationType.BF16,
}
"""The types whose input is rounded by `quantise` first."""

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


def weight_planes(
    packed: Buffer, weight_type: GGMLQuantizationType, n_rows: int, n: int
) -> tuple[Buffer, ...]:
    """Typed views of a packed matrix, in the order in which kernels take them.

    Args:
        packed: the `packed_bytes` of the matrix, on the device.

    Returns:
        One buffer for a plain type; for a quantised one scales (float16), quants (bytes) and what else
        repack.FIELDS lists, in its order.
    """
    views = []
    for plane in planes(weight_type, n_rows, n):
        n_bytes = n_rows * plane.row_bytes
        dtype = _dtype(weight_type, plane.field.name)
        views.append(packed.view(plane.offset, n_bytes // dtype.itemsize, dtype))
    return tuple(views)


def _dtype(weight_type: GGMLQuantizationType, field: str) -> np.dtype[Any]:
    if field == "values":
        return VALUES[weight_type]
    if field in ("scales", "minima"):
        return np.dtype(np.float16)
    return FIELD_VALUES.get((weight_type, field), np.dtype(np.uint8))
