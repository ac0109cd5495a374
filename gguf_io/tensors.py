"""The tensor table: every entry checked, then all their ranges against each other and the file."""

from collections.abc import Sequence
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hotcold.gguf_io.errors import TensorDataError, TensorTableError
from hotcold.gguf_io.fields import Cursor

SMALLEST_ENTRY = 24 + 1  # name length, one letter, no dimensions, type, offset
MAX_NAME_BYTES = 63
MAX_DIMENSIONS = 4
MAX_ELEMENTS = (1 << 63) - 1
POWERINFER_I32 = 18  # PowerInfer's id of I32; today's GGUF gave 18 to another type


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        ne: ggml order, numbers a row first; no dimension is 0.
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
        rows = 1
        for n in self.ne[1:]:
            rows *= n
        return rows

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.n_bytes // self.n_rows


def read_table(cursor: Cursor, n_tensors: int, powerinfer: bool) -> list[TensorInfo]:
    """All entries, with offsets still relative to the data section.

    Raises:
        TensorTableError: a name, dimension, type or size that cannot be.
    """
    infos: dict[str, TensorInfo] = {}
    for i in range(n_tensors):
        info = _entry(cursor, i, powerinfer)
        if info.name in infos:
            raise TensorTableError(f"{cursor.name}: name of tensor {i}", info.name, "occurs twice")
        infos[info.name] = info
    return list(infos.values())


def _entry(cursor: Cursor, i: int, powerinfer: bool) -> TensorInfo:
    name = cursor.text(f"name of tensor {i}", MAX_NAME_BYTES)
    what = f"{cursor.name}: tensor {name}"
    n_dims = cursor.number("I", f"number of dimensions of tensor {name}")
    if not 1 <= n_dims <= MAX_DIMENSIONS:
        raise TensorTableError(f"{what}: dimensions", n_dims, f"1 to {MAX_DIMENSIONS}")
    ne = tuple(cursor.number("Q", f"dimension {d} of tensor {name}") for d in range(n_dims))
    elements = 1
    for n in ne:
        elements *= n
    if not 1 <= elements <= MAX_ELEMENTS:
        raise TensorTableError(f"{what}: shape", list(ne), f"1 to {MAX_ELEMENTS} numbers in all")
    kind = _type(cursor, what, name, powerinfer)
    block, size = GGML_QUANT_SIZES[kind]
    if ne[0] % block:
        raise TensorTableError(f"{what}: row length", ne[0], f"{kind.name} has blocks of {block}")
    n_bytes = elements // block * size
    if n_bytes > MAX_ELEMENTS:
        raise TensorTableError(f"{what}: bytes", n_bytes, f"at most {MAX_ELEMENTS}")
    return TensorInfo(name, kind, ne, cursor.number("Q", f"offset of tensor {name}"), n_bytes)


def _type(cursor: Cursor, what: str, name: str, powerinfer: bool) -> GGMLQuantizationType:
    number = cursor.number("I", f"type of tensor {name}")
    if powerinfer and number == POWERINFER_I32 and name.endswith((".gpu_idx", ".gpu_bucket")):
        return GGMLQuantizationType.I32
    try:
        return GGMLQuantizationType(number)
    except ValueError as error:
        known = ", ".join(str(int(t)) for t in GGMLQuantizationType)
        raise TensorTableError(f"{what}: type id", number, f"known: {known}") from error


def place(
    name: str, infos: Sequence[TensorInfo], data_start: int, alignment: int, size: int
) -> list[TensorInfo]:
    """The table with offsets from the start of the file, every range checked.

    Tensors may stand in any order, but fill the data section: each begins where the one before ends,
    rounded up to the alignment. So none overlap and a small file cannot claim much.

    Raises:
        TensorDataError: a misaligned offset, an overlap, a hole, or a range past the end.
    """
    placed, expected = [], 0
    for info in sorted(infos, key=lambda info: info.offset):
        what = f"{name}: offset of tensor {info.name}"
        if info.offset % alignment:
            raise TensorDataError(what, info.offset, f"a multiple of the alignment {alignment}")
        end = data_start + info.offset + info.n_bytes
        if end > size:
            raise TensorDataError(
                what,
                info.offset,
                f"its {info.n_bytes} bytes end at {end}, the file at {size}",
                "the file is cut short: download it again",
            )
        if info.offset != expected:
            kind = "overlaps the tensor before it" if info.offset < expected else "leaves a hole before it"
            raise TensorDataError(what, info.offset, f"expected {expected}: it {kind}")
        expected = -(-(info.offset + info.n_bytes) // alignment) * alignment
        placed.append(TensorInfo(info.name, info.type, info.ne, data_start + info.offset, info.n_bytes))
    order = {info.name: i for i, info in enumerate(infos)}
    return sorted(placed, key=lambda info: order[info.name])
