"""The tensor table: every entry checked, then all their ranges against each other and the file.

A tensor has 1 to 4 dimensions. None at all is refused: such a tensor has no row, and no model file holds
one. A dimension of 0 is allowed and makes an empty tensor: PowerInfer writes empty buckets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hotcold.gguf_io.errors import CONVERT, CUT, DAMAGED, TensorDataError, TensorTableError, TruncatedError
from hotcold.gguf_io.fields import LARGEST_FILE, Cursor

SMALLEST_ENTRY = 8 + 1 + 4 + 8 + 4 + 8  # name length, one letter, dimension count, dimension, type, offset
MAX_TENSORS = 65_536
MAX_NAME_BYTES = 63
MAX_DIMENSIONS = 4
MAX_ELEMENTS = (1 << 63) - 1
POWERINFER_I32 = 18  # PowerInfer's id of I32; today's GGUF gave 18 to another type


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        ne: ggml order, numbers a row first; 1 to 4 dimensions. An empty tensor has a 0 among them.
        offset: bytes from the start of the file.
    """

    name: str
    type: GGMLQuantizationType
    ne: tuple[int, ...]
    offset: int
    n_bytes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """NumPy order, row length last."""
        return self.ne[::-1]

    @property
    def n_rows(self) -> int:
        """Product of all dimensions but the first."""
        return math.prod(self.ne[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        block, size = GGML_QUANT_SIZES[self.type]
        return self.ne[0] // block * size


def read_table(cursor: Cursor, n_tensors: int, powerinfer: bool) -> list[TensorInfo]:
    """All entries, with offsets still relative to the data section.

    Raises:
        TensorTableError: a name, dimension, type or size that cannot be.
    """
    infos: dict[str, TensorInfo] = {}
    for i in range(n_tensors):
        info = _entry(cursor, i, powerinfer)
        if info.name in infos:
            raise TensorTableError(f"{cursor.name}: name of tensor {i}", info.name, "occurs twice", CONVERT)
        infos[info.name] = info
    return list(infos.values())


def _entry(cursor: Cursor, i: int, powerinfer: bool) -> TensorInfo:
    name = cursor.text(f"name of tensor {i}", MAX_NAME_BYTES, TensorTableError)
    what = f"{cursor.name}: tensor {name}"
    n_dims = cursor.number("I", f"number of dimensions of tensor {name}")
    if not 1 <= n_dims <= MAX_DIMENSIONS:
        raise TensorTableError(f"{what}: dimensions", n_dims, f"1 to {MAX_DIMENSIONS}", DAMAGED)
    ne = tuple(cursor.number("Q", f"dimension {d} of tensor {name}") for d in range(n_dims))
    if math.prod(max(n, 1) for n in ne) > MAX_ELEMENTS:  # also for empty tensors: their rows are counted
        raise TensorTableError(f"{what}: shape", list(ne), f"at most {MAX_ELEMENTS} numbers in all", DAMAGED)
    kind = _type(cursor, what, name, powerinfer)
    block, size = GGML_QUANT_SIZES[kind]
    if ne[0] % block:
        raise TensorTableError(f"{what}: row length", ne[0], f"a multiple of {block} in {kind.name}", CONVERT)
    n_bytes = math.prod(ne) // block * size
    if n_bytes > MAX_ELEMENTS:
        raise TensorTableError(f"{what}: size in bytes", n_bytes, f"at most {MAX_ELEMENTS}", DAMAGED)
    return TensorInfo(name, kind, ne, cursor.number("Q", f"offset of tensor {name}"), n_bytes)


def _type(cursor: Cursor, what: str, name: str, powerinfer: bool) -> GGMLQuantizationType:
    number = cursor.number("I", f"type of tensor {name}")
    if powerinfer and number == POWERINFER_I32 and name.endswith((".gpu_idx", ".gpu_bucket")):
        return GGMLQuantizationType.I32
    try:
        return GGMLQuantizationType(number)
    except ValueError as error:
        known = ", ".join(str(int(t)) for t in GGMLQuantizationType)
        raise TensorTableError(f"{what}: type id", number, f"known: {known}", CONVERT) from error


def place(
    name: str, infos: Sequence[TensorInfo], data_start: int, alignment: int, size: int
) -> list[TensorInfo]:
    """The table with offsets from the start of the file, every range checked.

    Tensors may stand in any order, but fill the data section: each begins where the one before ends,
    rounded up to the alignment. So none overlap and a small file cannot claim much.

    Raises:
        TensorDataError: a misaligned offset, an overlap, or a hole.
        TruncatedError: a range past the end of the file.
    """
    placed: dict[str, TensorInfo] = {}
    expected = 0
    for info in sorted(infos, key=lambda info: (info.offset, info.n_bytes)):
        what = f"{name}: offset of tensor {info.name}"
        if info.offset % alignment:
            raise TensorDataError(what, info.offset, f"a multiple of the alignment {alignment}", DAMAGED)
        end = data_start + info.offset + info.n_bytes
        if info.offset != expected and end > size:
            raise TensorDataError(what, info.offset, _past_the_end(info.n_bytes, end, size), DAMAGED)
        if info.offset != expected:
            kind = "overlaps the tensor before it" if info.offset < expected else "leaves a hole before it"
            raise TensorDataError(what, info.offset, f"expected {expected}: it {kind}", DAMAGED)
        expected = -(-(info.offset + info.n_bytes) // alignment) * alignment
        placed[info.name] = replace(info, offset=data_start + info.offset)
    for info in placed.values():
        if (end := info.offset + info.n_bytes) > size:
            what, bound = f"{name}: offset of tensor {info.name}", _past_the_end(info.n_bytes, end, size)
            if end > LARGEST_FILE:
                raise TensorDataError(what, info.offset - data_start, bound, DAMAGED)
            raise TruncatedError(what, info.offset - data_start, bound, CUT)
    return [placed[info.name] for info in infos]


def _past_the_end(n_bytes: int, end: int, size: int) -> str:
    return f"its {n_bytes} bytes end at {end}, the file at {size}"
