"""The table of weight types: how a block lies in a file, and how the device reads it.

One row a type. From it come the plan's sizes and refusals, the planes that rows are repacked to, the types that
kernels are made for, and the table in docs/models.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hotcold.errors import DeviceError

Type = GGMLQuantizationType


@dataclass(frozen=True)
class Field:
    """A part of every block.

    Attributes:
        start: its first byte within the block.
        n_bytes: how many it has.
        dtype: NumPy's characters of the numbers that kernels read there, "u1" where they read vectors.
    """

    name: str
    start: int
    n_bytes: int
    dtype: str


@dataclass(frozen=True)
class WeightType:
    """A type that kernels of the device exist for.

    Attributes:
        ending: of the kernels' names.
        fields: of a block, in the order of ggml's structures; each becomes a plane.
        is_quantised: whether its input is rounded first.
        has_minima: whether something is taken away from the products of a block.
        reads_sums: whether a row's product reads the sums of the rounded input.
        piece: weights that one lane of a warp multiplies at a time, of types that are quantised.
    """

    ending: str
    fields: tuple[Field, ...]
    is_quantised: bool = True
    has_minima: bool = False
    reads_sums: bool = False
    piece: int = 32


def _fields(**formats: str) -> tuple[Field, ...]:
    """Fields in the order in which they follow each other in the block, by NumPy's formats."""
    fields, start = [], 0
    for name, text in formats.items():
        dtype = np.dtype(text)
        fields.append(Field(name, start, dtype.itemsize, dtype.base.str.lstrip("<|")))
        start += dtype.itemsize
    return tuple(fields)


WEIGHT_TYPES: dict[GGMLQuantizationType, WeightType] = {
    Type.F32: WeightType("f32", _fields(values="f4"), is_quantised=False),
    Type.F16: WeightType("f16", _fields(values="f2"), is_quantised=False),
    Type.BF16: WeightType("bf16", _fields(values="u2"), is_quantised=False),
    Type.Q8_0: WeightType("q8_0", _fields(scales="f2", quants="32u1")),
    Type.Q4_0: WeightType("q4_0", _fields(scales="f2", quants="16u1"), reads_sums=True),
    Type.Q4_1: WeightType(
        "q4_1", _fields(scales="f2", minima="f2", quants="16u1"), has_minima=True, reads_sums=True
    ),
    Type.Q5_0: WeightType("q5_0", _fields(scales="f2", high_bits="u4", quants="16u1"), reads_sums=True),
    Type.Q5_1: WeightType(
        "q5_1",
        _fields(scales="f2", minima="f2", high_bits="u4", quants="16u1"),
        has_minima=True,
        reads_sums=True,
    ),
    Type.Q2_K: WeightType(
        "q2_K",
        _fields(group_scales="16u1", quants="64u1", scales="f2", minima="f2"),
        has_minima=True,
        piece=64,
    ),
    Type.Q3_K: WeightType(
        "q3_K", _fields(high_bits="32u1", quants="64u1", group_scales="12u1", scales="f2"), piece=64
    ),
    Type.Q4_K: WeightType(
        "q4_K",
        _fields(scales="f2", minima="f2", group_scales="3u4", quants="128u1"),
        has_minima=True,
        reads_sums=True,
        piece=64,
    ),
    Type.Q5_K: WeightType(
        "q5_K",
        _fields(scales="f2", minima="f2", group_scales="3u4", high_bits="32u1", quants="128u1"),
        has_minima=True,
        reads_sums=True,
    ),
    Type.Q6_K: WeightType(
        "q6_K", _fields(quants="128u1", high_bits="64u1", group_scales="16i1", scales="f2"), piece=64
    ),
    Type.IQ4_NL: WeightType("iq4_nl", _fields(scales="f2", quants="16u1")),
    Type.IQ4_XS: WeightType(
        "iq4_xs", _fields(scales="f2", high_scales="u2", group_scales="4u1", quants="128u1")
    ),
    Type.MXFP4: WeightType("mxfp4", _fields(scales="u1", quants="16u1")),
    Type.IQ3_S: WeightType(
        "iq3_s", _fields(scales="f2", quants="16u4", high_bits="8u1", signs="16u2", group_scales="4u1")
    ),
    Type.IQ3_XXS: WeightType("iq3_xxs", _fields(scales="f2", quants="16u4", signs="8u4")),
    Type.IQ2_S: WeightType(
        "iq2_s", _fields(scales="f2", quants="16u2", signs="16u2", high_bits="8u1", group_scales="8u1")
    ),
    Type.IQ2_XS: WeightType("iq2_xs", _fields(scales="f2", quants="16u4", group_scales="8u1")),
    Type.IQ2_XXS: WeightType("iq2_xxs", _fields(scales="f2", quants="64u1")),
    Type.IQ1_S: WeightType("iq1_s", _fields(scales="f2", quants="16u2", high_bits="8u2")),
    Type.IQ1_M: WeightType("iq1_m", _fields(quants="16u2", high_bits="16u1", group_scales="4u2")),
    Type.TQ1_0: WeightType("tq1_0", _fields(quants="48u1", high_bits="u4", scales="f2")),
    Type.TQ2_0: WeightType("tq2_0", _fields(quants="64u1", scales="f2"), piece=64),
}
"""The types that the device multiplies, in every one of its kernels."""

QUANTISED = frozenset(kind for kind, row in WEIGHT_TYPES.items() if row.is_quantised)
"""The types whose input is rounded first."""


def share_an_input(weight_types: Iterable[GGMLQuantizationType]) -> bool:
    """Whether matrices of these types can read one vector in one form: rounded, or as it is."""
    return len({kind in QUANTISED for kind in weight_types}) == 1


PLANE_ALIGNMENT = 16
"""Bytes that one load of the device takes, and the beginning of every row of a plane there."""


def weight_type_row(weight_type: GGMLQuantizationType) -> WeightType:
    """The table's row of a type; DeviceError if the device does not hold that type."""
    if weight_type not in WEIGHT_TYPES:
        known = ", ".join(t.name for t in WEIGHT_TYPES)
        raise DeviceError(
            "weight type on the device", weight_type.name, f"known: {known}", "keep it on the CPU"
        )
    return WEIGHT_TYPES[weight_type]


def n_blocks(weight_type: GGMLQuantizationType, n: int) -> int:
    """Blocks in a row of n weights; DeviceError if they are not whole."""
    block_size = GGML_QUANT_SIZES[weight_type][0]
    if n < 1 or n % block_size:
        raise DeviceError("row of weights", n, f"{weight_type.name} needs a multiple of {block_size}")
    return n // block_size


def block_bytes(weight_type: GGMLQuantizationType) -> int:
    """Bytes of a block in a file."""
    return int(GGML_QUANT_SIZES[weight_type][1])


def plane_row_bytes(weight_type: GGMLQuantizationType, n: int) -> tuple[int, ...]:
    """Bytes of a row of n weights in each plane on the device (a plane a field), padding included."""
    blocks = n_blocks(weight_type, n)
    sizes = (blocks * field.n_bytes for field in weight_type_row(weight_type).fields)
    return tuple(-(-n_bytes // PLANE_ALIGNMENT) * PLANE_ALIGNMENT for n_bytes in sizes)


def device_row_bytes(weight_type: GGMLQuantizationType, n: int) -> int:
    """Bytes that a row of n weights takes on the device, all planes together; a multiple of 16."""
    return sum(plane_row_bytes(weight_type, n))
