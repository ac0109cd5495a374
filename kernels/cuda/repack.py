"""Weight rows as the device holds them: each field of a block in a plane of its own.

A file stores a row as blocks of 18, 34, 210 ... bytes that begin at odd addresses. The device wants
16-byte loads, so the quants of all rows lie in one plane, the scales in another, and so on. Nothing
is converted: the planes hold the blocks' own bytes.

Each row of a plane is padded to 16 bytes with zeros, hence `packed_bytes` is exactly `n_rows` times
`packed_row_bytes`: a neuron costs the same wherever it lies.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.errors import DeviceError

ALIGNMENT = 16

Type = GGMLQuantizationType
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Field:
    """A part of every block: its first byte within the block, and how many bytes it has."""

    name: str
    start: int
    n_bytes: int


@dataclass(frozen=True)
class Plane:
    """Where one field of all rows lies: its first byte, and the bytes from row to row."""

    field: Field
    offset: int
    row_bytes: int


def _fields(**sizes: int) -> tuple[Field, ...]:
    """Fields in the order in which they follow each other in the block."""
    fields, start = [], 0
    for name, n_bytes in sizes.items():
        fields.append(Field(name, start, n_bytes))
        start += n_bytes
    return tuple(fields)


FIELDS: dict[GGMLQuantizationType, tuple[Field, ...]] = {
    Type.F32: _fields(values=4),
    Type.F16: _fields(values=2),
    Type.BF16: _fields(values=2),
    Type.Q4_0: _fields(scales=2, quants=16),
    Type.Q4_1: _fields(scales=2, minima=2, quants=16),
    Type.Q5_0: _fields(scales=2, high_bits=4, quants=16),
    Type.Q5_1: _fields(scales=2, minima=2, high_bits=4, quants=16),
    Type.Q8_0: _fields(scales=2, quants=32),
    Type.Q2_K: _fields(group_scales=16, quants=64, scales=2, minima=2),
    Type.Q3_K: _fields(high_bits=32, quants=64, group_scales=12, scales=2),
    Type.Q4_K: _fields(scales=2, minima=2, group_scales=12, quants=128),
    Type.Q5_K: _fields(scales=2, minima=2, group_scales=12, high_bits=32, quants=128),
    Type.Q6_K: _fields(quants=128, high_bits=64, group_scales=16, scales=2),
}
"""The fields of each block type, in the order of ggml's structures."""


def fields(weight_type: GGMLQuantizationType) -> tuple[Field, ...]:
    """The fields of a type's block; DeviceError if the device does not hold that type."""
    if weight_type not in FIELDS:
        known = ", ".join(t.name for t in FIELDS)
        raise DeviceError(
            "weight type on the device", weight_type.name, f"known: {known}", "keep it on the CPU"
        )
    return FIELDS[weight_type]


def n_blocks(weight_type: GGMLQuantizationType, n: int) -> int:
    """Blocks in a row of n weights; DeviceError if they are not whole."""
    block_size = GGML_QUANT_SIZES[weight_type][0]
    if n < 1 or n % block_size:
        raise DeviceError("row of weights", n, f"{weight_type.name} needs a multiple of {block_size}")
    return n // block_size


def plane_row_bytes(weight_type: GGMLQuantizationType, n: int) -> tuple[int, ...]:
    """Bytes of a row of n weights in each plane, padding included."""
    blocks = n_blocks(weight_type, n)
    return tuple(_padded(blocks * field.n_bytes) for field in fields(weight_type))


def packed_row_bytes(weight_type: GGMLQuantizationType, n: int) -> int:
    """Bytes that a row of n weights takes on the device, all planes together."""
    return sum(plane_row_bytes(weight_type, n))


def packed_bytes(weight_type: GGMLQuantizationType, n_rows: int, n: int) -> int:
    """Bytes that n_rows rows of n weights take on the device; a multiple of 16."""
    return n_rows * packed_row_bytes(weight_type, n)


def planes(weight_type: GGMLQuantizationType, n_rows: int, n: int) -> tuple[Plane, ...]:
    """Where each field of n_rows rows of n weights lies; every plane begins at a multiple of 16."""
    placed, offset = [], 0
    for field, row_bytes in zip(fields(weight_type), plane_row_bytes(weight_type, n), strict=True):
        placed.append(Plane(field, offset, row_bytes))
        offset += n_rows * row_bytes
    return tuple(placed)


def pack(rows: Bytes, weight_type: GGMLQuantizationType, out: Bytes) -> None:
    """Repack rows as a file holds them.

    Args:
        rows: uint8 [n_rows, bytes of a row in the file].
        out: uint8 [packed_bytes]; all of it is written, padding too.

    Raises:
        DeviceError: out has another size, or the rows are not whole blocks.
    """
    n = _n_blocks_of(rows, weight_type) * GGML_QUANT_SIZES[weight_type][0]
    wanted = packed_bytes(weight_type, len(rows), n)
    if out.shape != (wanted,):
        raise DeviceError("packed rows", out.shape, f"{wanted} bytes are wanted")
    for plane, part in _parts(out, weight_type, len(rows), n):
        pack_plane(rows, weight_type, plane, part.reshape(-1))


def pack_plane(rows: Bytes, weight_type: GGMLQuantizationType, plane: Plane, out: Bytes) -> None:
    """Repack one field of some rows.

    Args:
        rows: uint8 [n, bytes of a row in the file].
        out: uint8 [n * plane.row_bytes]; all of it is written, padding too.
    """
    part = out.reshape(len(rows), plane.row_bytes)
    used = _n_blocks_of(rows, weight_type) * plane.field.n_bytes
    part[:, :used].view(_element(plane.field))[...] = _field(rows, weight_type, plane.field)
    part[:, used:] = 0


def unpack(packed: Bytes, weight_type: GGMLQuantizationType, n_rows: int, n: int) -> Bytes:
    """The exact inverse of `pack`: uint8 [n_rows, bytes of a row in the file]."""
    n_in_row = n_blocks(weight_type, n)
    rows = np.empty((n_rows, n_in_row * GGML_QUANT_SIZES[weight_type][1]), np.uint8)
    for plane, part in _parts(packed, weight_type, n_rows, n):
        used = n_in_row * plane.field.n_bytes
        _field(rows, weight_type, plane.field)[...] = part[:, :used].view(_element(plane.field))
    return rows


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _n_blocks_of(rows: Bytes, weight_type: GGMLQuantizationType) -> int:
    type_size = GGML_QUANT_SIZES[weight_type][1]
    if rows.ndim != 2 or rows.shape[1] % type_size:
        raise DeviceError("rows", rows.shape, f"{weight_type.name} has blocks of {type_size} bytes")
    return int(rows.shape[1]) // type_size


def _element(field: Field) -> str:
    """A field of a block as one opaque number: NumPy copies those five times as fast as arrays of bytes."""
    return f"V{field.n_bytes}"


def _field(rows: Bytes, weight_type: GGMLQuantizationType, field: Field) -> Any:
    """A view of one field of every block, [n_rows, n_blocks]."""
    block = {
        "names": [field.name],
        "formats": [_element(field)],
        "offsets": [field.start],
        "itemsize": GGML_QUANT_SIZES[weight_type][1],
    }
    return rows.view(np.dtype(block))[field.name]  # type: ignore[call-overload]


def _parts(
    packed: Bytes, weight_type: GGMLQuantizationType, n_rows: int, n: int
) -> Iterator[tuple[Plane, Bytes]]:
    for plane in planes(weight_type, n_rows, n):
        end = plane.offset + n_rows * plane.row_bytes
        yield plane, packed[plane.offset : end].reshape(n_rows, plane.row_bytes)
