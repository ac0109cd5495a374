"""Random matrices of every weight type, on which tests of all kernels run."""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

Type = GGMLQuantizationType

HALFS = {
    Type.Q2_K: slice(80, 84),
    Type.Q3_K: slice(108, 110),
    Type.Q4_K: slice(0, 4),
    Type.Q5_K: slice(0, 4),
    Type.Q6_K: slice(208, 210),
    Type.IQ4_NL: slice(0, 2),
    Type.IQ4_XS: slice(0, 2),
    Type.IQ3_S: slice(0, 2),
    Type.IQ3_XXS: slice(0, 2),
    Type.IQ2_S: slice(0, 2),
    Type.IQ2_XS: slice(0, 2),
    Type.IQ2_XXS: slice(0, 2),
    Type.IQ1_S: slice(0, 2),
    Type.IQ1_M: slice(48, 56),
}
"""Where a block's halfs lie, of the types that the gguf package reads but does not make. IQ1_M has a half's four
nibbles in the upper ones of four words."""


def random_weights(
    kind: GGMLQuantizationType, n_rows: int, n: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A matrix of random numbers.

    Args:
        kind: the type.
        n_rows: number of rows.
        n: numbers a row, whole blocks.
        rng: where they come from.

    Returns:
        The rows as a file has them, uint8 [n_rows, row_bytes], and the numbers that they hold, float32
        [n_rows, n]: standard normal ones before rounding, or random blocks with halfs of at most 0.01,
        since any other bytes could be NaN.
    """
    if kind in HALFS:
        raw = _random_blocks(kind, n_rows, n, rng)
    else:
        raw = quants.quantize(rng.standard_normal((n_rows, n), np.float32), kind)
    rows = np.ascontiguousarray(raw).view(np.uint8).reshape(n_rows, -1)
    numbers = np.array(quants.dequantize(rows, kind), np.float32).reshape(n_rows, n)
    return rows, numbers


def _random_blocks(
    kind: GGMLQuantizationType, n_rows: int, n: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    block, size = GGML_QUANT_SIZES[kind]
    halfs = HALFS[kind]
    blocks = rng.integers(0, 256, (n_rows, n // block, size), np.uint8)
    shape = (n_rows, n // block, (halfs.stop - halfs.start) // 2)
    values = rng.uniform(-0.01, 0.01, shape).astype(np.float16)
    if kind == Type.IQ1_M:
        words = blocks[..., halfs].view(np.uint16)
        nibbles = values[..., :1].view(np.uint16) >> np.array([0, 4, 8, 12], np.uint16) & 15
        values = (words & 0x0FFF | nibbles << 12).astype(np.uint16).view(np.float16)
    blocks[..., halfs] = values.view(np.uint8)
    return blocks
