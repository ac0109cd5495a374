"""Block types: how many bytes hold how many numbers.

The gguf package reads them; `quantise` rounds to them. A type that packs several numbers shares one scale, or
more, among the numbers of a block; a row is a whole number of blocks. F32, F16 and BF16 are blocks of one
number.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

from hotcold.errors import SettingError

T = GGMLQuantizationType

SCALE_BYTES = {
    T.Q4_0: slice(0, 2),
    T.Q5_0: slice(0, 2),
    T.Q8_0: slice(0, 2),
    T.Q4_1: slice(0, 4),
    T.Q5_1: slice(0, 4),
    T.Q4_K: slice(0, 4),
    T.Q5_K: slice(0, 4),
    T.Q2_K: slice(80, 84),
    T.Q3_K: slice(108, 110),
    T.Q6_K: slice(208, 210),
    T.IQ4_NL: slice(0, 2),
    T.MXFP4: slice(0, 0),  # its scale is a power of two
    T.IQ4_XS: slice(0, 2),
    T.IQ3_S: slice(0, 2),
    T.IQ3_XXS: slice(0, 2),
    T.IQ2_S: slice(0, 2),
    T.IQ2_XS: slice(0, 2),
    T.IQ2_XXS: slice(0, 2),
    T.IQ1_S: slice(0, 2),
    T.IQ1_M: slice(0, 0),  # its half float is in the high bits of other scales
    T.TQ1_0: slice(52, 54),
    T.TQ2_0: slice(64, 66),
}  # where a block has half floats


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


def quantize(
    values: NDArray[np.float32], kind: GGMLQuantizationType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Round float32 [n_rows, n] to the type: uint8 [n_rows, bytes a row].

    Args:
        importance: float32 [n], how much an error in each column weighs, where the type weighs errors.

    Raises:
        SettingError: n is not a multiple of the block size, or nothing rounds to this type.
    """
    shape = (*values.shape[:-1], row_bytes(kind, values.shape[-1]))
    if not values.size:
        return np.empty(shape, np.uint8)
    if block_size(kind) > 1:
        from hotcold.gguf_io.quantise.rows import KERNELS, quantise_rows  # brings Numba

        if kind not in KERNELS:
            raise _unsupported("quantize to", kind)
        return quantise_rows(values.reshape(-1, values.shape[-1]), kind, importance).reshape(shape)
    try:
        rounded = np.ascontiguousarray(quants.quantize(values, kind))
    except NotImplementedError as error:
        raise _unsupported("quantize to", kind) from error
    return rounded.view(np.uint8).reshape(shape)


def dequantize(rows: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.float32]:
    """The numbers that rows of bytes [n_rows, bytes a row] hold: float32 [n_rows, n].

    Raises:
        SettingError: the rows are not whole blocks, or nothing reads this type.
    """
    if rows.shape[-1] % type_size(kind):
        bound = f"a multiple of {type_size(kind)}"
        raise SettingError(f"bytes a row of {kind.name}", rows.shape[-1], bound, "pass whole rows")
    if not rows.size:
        return np.empty((*rows.shape[:-1], rows.shape[-1] // type_size(kind) * block_size(kind)), np.float32)
    try:
        return np.asarray(quants.dequantize(np.ascontiguousarray(rows), kind), np.float32)
    except NotImplementedError as error:
        raise _unsupported("dequantize from", kind) from error


def _unsupported(verb: str, kind: GGMLQuantizationType) -> SettingError:
    return SettingError(f"type to {verb}", kind.name, "nothing here can", "choose F16 or Q8_0")
