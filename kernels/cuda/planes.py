"""Weight rows as the device holds them: each field of a block in a plane of its own.

A file stores a row as blocks of 18, 34, 210 ... bytes that begin at odd addresses. The device wants
16-byte loads, so the quants of all rows lie in one plane, the scales in another, and so on. Nothing
is converted: the planes hold the blocks' own bytes.

Each row of a plane is padded to 16 bytes with zeros, hence n_rows rows take exactly `n_rows` times
`device_row_bytes`: a neuron costs the same wherever it lies.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.errors import DeviceError
from hotcold.kernels.weight_table import (
    Field,
    device_row_bytes,
    n_blocks,
    plane_row_bytes,
    weight_type_row,
)

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Plane:
    """Where one field of all rows lies: its first byte, and the bytes from row to row."""

    field: Field
    offset: int
    row_bytes: int


def planes(weight_type: GGMLQuantizationType, n_rows: int, n: int) -> tuple[Plane, ...]:
    """Where each field of n_rows rows of n weights lies; every plane begins at a multiple of 16."""
    placed, offset = [], 0
    for field, row_bytes in zip(
        weight_type_row(weight_type).fields, plane_row_bytes(weight_type, n), strict=True
    ):
        placed.append(Plane(field, offset, row_bytes))
        offset += n_rows * row_bytes
    return tuple(placed)


def to_planes(rows: Bytes, weight_type: GGMLQuantizationType, out: Bytes) -> None:
    """Repack rows as a file holds them.

    Args:
        rows: uint8 [n_rows, bytes of a row in the file].
        out: uint8 [n_rows * device_row_bytes]; all of it is written, padding too.

    Raises:
        DeviceError: out has another size, or the rows are not whole blocks.
    """
    n = _n_blocks_of(rows, weight_type) * GGML_QUANT_SIZES[weight_type][0]
    wanted = len(rows) * device_row_bytes(weight_type, n)
    if out.shape != (wanted,):
        raise DeviceError("rows in planes", out.shape, f"{wanted} bytes are wanted")
    for plane, part in _parts(out, weight_type, len(rows), n):
        to_plane(rows, weight_type, plane, part.reshape(-1))


def to_plane(rows: Bytes, weight_type: GGMLQuantizationType, plane: Plane, out: Bytes) -> None:
    """Repack one field of some rows.

    Args:
        rows: uint8 [n, bytes of a row in the file].
        out: uint8 [n * plane.row_bytes]; all of it is written, padding too.
    """
    part = out.reshape(len(rows), plane.row_bytes)
    used = _n_blocks_of(rows, weight_type) * plane.field.n_bytes
    part[:, :used].view(_element(plane.field))[...] = _field(rows, weight_type, plane.field)
    part[:, used:] = 0


def from_planes(held: Bytes, weight_type: GGMLQuantizationType, n_rows: int, n: int) -> Bytes:
    """The exact inverse of `to_planes`: uint8 [n_rows, bytes of a row in the file]."""
    n_in_row = n_blocks(weight_type, n)
    rows = np.empty((n_rows, n_in_row * GGML_QUANT_SIZES[weight_type][1]), np.uint8)
    for plane, part in _parts(held, weight_type, n_rows, n):
        used = n_in_row * plane.field.n_bytes
        _field(rows, weight_type, plane.field)[...] = part[:, :used].view(_element(plane.field))
    return rows


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
    return rows.view(np.dtype(block))[field.name]  # type: ignore[call-overload]  # its stubs know no such dict


def _parts(
    held: Bytes, weight_type: GGMLQuantizationType, n_rows: int, n: int
) -> Iterator[tuple[Plane, Bytes]]:
    for plane in planes(weight_type, n_rows, n):
        end = plane.offset + n_rows * plane.row_bytes
        yield plane, held[plane.offset : end].reshape(n_rows, plane.row_bytes)
