"""Block types: how many bytes hold how many numbers. The gguf package does the work."""

from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

from hotcold.errors import SettingError


def block_size(kind: GGMLQuantizationType) -> int:
    """Numbers a block."""
    return GGML_QUANT_SIZES[kind][0]


def type_size(kind: GGMLQuantizationType) -> int:
    """Bytes a block."""
    return GGML_QUANT_SIZES[kind][1]


def row_bytes(kind: GGMLQuantizationType, n: int) -> int:
    """Bytes of a row of n numbers.

    Raises:
        SettingError: n is not a multiple of the block size.
    """
    if n % block_size(kind):
        raise SettingError(
            f"row length for {kind.name}",
            n,
            f"a multiple of {block_size(kind)}",
            "choose a type with smaller blocks",
        )
    return n // block_size(kind) * type_size(kind)


def quantize(values: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Round float32 [n_rows, n] to the type: uint8 [n_rows, bytes a row].

    Raises:
        SettingError: n is not a multiple of the block size.
    """
    n_bytes = row_bytes(kind, values.shape[-1])
    blocks = np.ascontiguousarray(quants.quantize(values, kind))
    return blocks.view(np.uint8).reshape(*values.shape[:-1], n_bytes)


def dequantize(rows: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.float32]:
    """The numbers that rows of bytes hold: float32 [n_rows, n]."""
    plain: dict[GGMLQuantizationType, Any] = {
        GGMLQuantizationType.F32: np.float32,
        GGMLQuantizationType.F16: np.float16,
    }
    view = np.ascontiguousarray(rows)
    if kind in plain:
        return np.asarray(view.view(plain[kind]), np.float32)
    return np.asarray(quants.dequantize(view, kind), np.float32)
