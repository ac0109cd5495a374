"""Packed weights as the arguments of kernels."""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.buffers import Buffer
from hotcold.kernels.cuda.repack import planes

KERNEL_TYPES = {
    GGMLQuantizationType.F32: "f32",
    GGMLQuantizationType.F16: "f16",
    GGMLQuantizationType.BF16: "bf16",
    GGMLQuantizationType.Q8_0: "q8_0",
    GGMLQuantizationType.Q4_0: "q4_0",
}
"""The types that matvec and sparse_ffn multiply, and how their kernels' names end."""

QUANTISED = frozenset({GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0})
"""The types whose input is rounded by `quantise` first."""

VALUES: dict[GGMLQuantizationType, np.dtype[Any]] = {
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(np.uint16),
}


def kernel_suffix(weight_type: GGMLQuantizationType) -> str:
    """How the kernels of a type are called; DeviceError if there are none."""
    if weight_type not in KERNEL_TYPES:
        known = ", ".join(t.name for t in KERNEL_TYPES)
        raise DeviceError("weight type", weight_type.name, f"kernels exist for {known}", "keep it on the CPU")
    return KERNEL_TYPES[weight_type]


def weight_planes(
    packed: Buffer, weight_type: GGMLQuantizationType, n_rows: int, n: int
) -> tuple[Buffer, ...]:
    """Typed views of a packed matrix, in the order in which kernels take them.

    Args:
        packed: the `packed_bytes` of the matrix, on the device.

    Returns:
        One buffer for a plain type; scales (float16) and quants (bytes) for a quantised one.
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
    return np.dtype(np.float16 if field in ("scales", "minima") else np.uint8)
