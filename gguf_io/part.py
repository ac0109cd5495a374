"""One file of the GGUF format: mapped, checked to the last field, nothing copied.

GGUF v2 and v3, and PowerInfer's files, which are the same with the magic `PWRI`. Touching what was cut
off a mapped file ends the process (SIGBUS): the size is checked again whenever a view is handed out, and
a file in use must be replaced by renaming, never written in place.
"""

import mmap
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from hotcold.gguf_io import tensors
from hotcold.gguf_io.errors import (
    CONVERT,
    CUT,
    DAMAGED,
    CountError,
    GGUFError,
    MetadataError,
    NotGGUFError,
    TruncatedError,
    VersionError,
    excerpt,
)
from hotcold.gguf_io.fields import MAX_KEY_BYTES, Cursor
from hotcold.gguf_io.other_formats import DOWNLOAD, TO_CONVERT, other_format
from hotcold.gguf_io.tensors import TensorInfo

MAGICS = {b"GGUF": "GGUF", b"PWRI": "PWRI"}
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_PAIRS = 65_536
PIECE = 64 << 20  # bytes that are copied between two words about it
SMALLEST_PAIR = 8 + 1 + 4 + 1  # key length, one letter, value type, one byte

CHECK = "name a GGUF file that can be read"
ValueTypes = Mapping[str, tuple[GGUFValueType, GGUFValueType | None]]


class Part:
    """A file that is open: a whole model, or one of the parts that it is split into.

    Attributes:
        metadata: scalars as Python values, strings as str (bytes where they are no UTF-8), arrays of
            numbers as read-only NumPy views, arrays of strings as `StringArray`.
        value_types: the type of each metadata value, and of the elements of an array.
        tensors: the table in file order.
        warnings: what is odd but harmless.
    """

    def __init__(self, path: Path, view: memoryview) -> None:
        self.path, self._view = path, view
        self.size, self._is_file = len(view), True  # a file's size may change
        self.warnings: tuple[str, ...] = ()
        cursor = Cursor(path.name, view)
        self.magic = MAGICS[bytes(view[:4])]
        self.version = _version(cursor)
        n_tensors = cursor.count("number of tensors", tensors.SMALLEST_ENTRY, tensors.MAX_TENSORS)
        n_pairs = cursor.count("number of metadata pairs", SMALLEST_PAIR, MAX_PAIRS)
        self.metadata: Mapping[str, Any]
        self.value_types: ValueTypes
        self.metadata, self.value_types = _metadata(cursor, n_pairs)
        self.alignment = _alignment(path.name, self.metadata)
        infos = tensors.read_table(cursor, n_tensors, self.magic == "PWRI")
        self.tensors = {info.name: info for info in self._place(infos, cursor)}

    def _place(self, infos: list[TensorInfo], table: Cursor) -> list[TensorInfo]:
        data_start = -(-table.at // self.alignment) * self.alignment
        placed = tensors.place(self.path.name, infos, data_start, self.alignment, self.size)
        end = max((info.offset + info.n_bytes for info in placed), default=table.at)
        extra = self.size - -(-end // self.alignment) * self.alignment
        if extra > 0 and table.entry_follows():
            raise CountError(
                f"{self.path.name}: number of tensors and of metadata pairs",
                f"{len(infos)} and {len(self.metadata)}",
                f"another one follows at byte {table.at}",
                DAMAGED,
            )
        if extra > 0:
            self.warnings = (f"{self.path.name}: {extra} bytes after the end are not read",)
        return placed

    def rows(self, info: TensorInfo) -> NDArray[np.uint8]:
        """A tensor's rows: read-only view of the map, uint8 [n_rows, bytes a row].

        Raises:
            TruncatedError: the file has become shorter.
        """
        self._check_size()
        view = np.frombuffer(self._view, np.uint8, info.n_bytes, info.offset)
        return view.reshape(info.n_rows, info.row_bytes)

    def all_data(self) -> NDArray[np.uint8]:
        """One flat read-only view from the first tensor's data to the end of the last's."""
        self._check_size()
        infos = self.tensors.values()
        first = min((info.offset for info in infos), default=0)
        end = max((info.offset + info.n_bytes for info in infos), default=0)
        return np.frombuffer(self._view, np.uint8, end - first, first)

    def copy_to_memory(self, done: Callable[[int], None]) -> None:
        """Read the whole file into memory of this process: from then on its rows are no longer the map's.

        Args:
            done: hears of bytes, a piece at a time.

        Raises:
            MemoryError: there is no room.
        """
        try:
            memory = mmap.mmap(-1, self.size)
        except OSError as error:
            raise MemoryError(f"{self.size} bytes for {self.path.name}") from error
        whole = memoryview(memory)
        for first in range(0, self.size, PIECE):
            self._check_size()
            piece = self._view[first : first + PIECE]
            whole[first : first + len(piece)] = piece
            done(len(piece))
        self.mapping.madvise(mmap.MADV_DONTNEED)
        self._view, self._is_file = whole.toreadonly(), False

    def header(self) -> memoryview:
        """Everything before the first tensor's data: metadata and tensor table."""
        return self._view[: min((info.offset for info in self.tensors.values()), default=self.size)]

    @property
    def is_mapped(self) -> bool:
        """Whether rows are read from the file's map, and not from a copy in memory."""
        return self._is_file

    @property
    def mapping(self) -> mmap.mmap:
        """The map, of the whole file."""
        assert isinstance(self._view.obj, mmap.mmap)
        return self._view.obj

    def _check_size(self) -> None:
        if self._is_file and isinstance(self._view.obj, mmap.mmap) and self._view.obj.size() < self.size:
            raise TruncatedError(
                f"{self.path.name}: size",
                f"{self._view.obj.size()} bytes",
                f"was {self.size} when it was opened",
                CUT,
            )

    def close(self) -> None:
        """Let go of the map; it is unmapped when the last view of it is gone."""
        self.tensors = {}
        self.metadata = {}
        self._view = memoryview(b"")


def _version(cursor: Cursor) -> int:
    cursor.at = 4
    version = cursor.number("I", "version")
    if version & 0xFFFF == 0 and version:
        raise VersionError(f"{cursor.name}: version", version, "big-endian; 2 or 3 can be read", CONVERT)
    if version not in VERSIONS:
        raise VersionError(f"{cursor.name}: version", version, "2 or 3 can be read", CONVERT)
    return version


def _metadata(
    cursor: Cursor, n_pairs: int
) -> tuple[dict[str, Any], dict[str, tuple[GGUFValueType, GGUFValueType | None]]]:
    """Values and their types by key."""
    pairs: dict[str, Any] = {}
    kinds: dict[str, tuple[GGUFValueType, GGUFValueType | None]] = {}
    for i in range(n_pairs):
        key = cursor.text(f"key {i}", MAX_KEY_BYTES, MetadataError)
        shown = excerpt(key)
        if key in pairs:
            raise MetadataError(f"{cursor.name}: key {i}", shown, "occurs twice", CONVERT)
        kind = cursor.value_type(f"type of {shown}")
        if key == ALIGNMENT and kind != GGUFValueType.UINT32:
            raise MetadataError(f"{cursor.name}: type of {key}", kind.name, "must be UINT32", CONVERT)
        start = cursor.at
        pairs[key] = cursor.value(kind, shown)
        kinds[key] = (kind, cursor.element_type(start) if kind == GGUFValueType.ARRAY else None)
    return pairs, kinds


def _alignment(name: str, metadata: Mapping[str, Any]) -> int:
    value = int(metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT))
    if not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise MetadataError(f"{name}: {ALIGNMENT}", value, f"a power of two up to {MAX_ALIGNMENT}", CONVERT)
    return value


def open_part(path: Path) -> Part:
    """Open and check one file.

    Raises:
        GGUFError: one of its children says what is wrong.
    """
    view = memoryview(_map(path))
    if bytes(view[:4]) not in MAGICS:
        raise _not_gguf(path, bytes(view[:32]))
    return Part(path, view)


def _map(path: Path) -> mmap.mmap:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise NotGGUFError("model file", path, error.strerror or "cannot be opened", CHECK) from error
    except ValueError as error:  # a NUL in the path
        raise NotGGUFError("model file", path, str(error), CHECK) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotGGUFError("model file", path, "must be a regular file", CHECK)
        if status.st_size == 0:
            raise TruncatedError("model file", path, "is empty: 0 bytes", CUT)
        return mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise NotGGUFError("model file", path, f"cannot be mapped: {error}", CHECK) from error
    finally:
        os.close(descriptor)


def _not_gguf(path: Path, head: bytes) -> GGUFError:
    if any(magic.startswith(head) for magic in MAGICS):
        return TruncatedError("model file", path, f"only {len(head)} bytes", CUT)
    if head.startswith(b"FUGG"):
        return VersionError(f"{path.name}: magic", "FUGG", "big-endian; GGUF or PWRI can be read", CONVERT)
    if other := other_format(head):
        kind, next_step = other
        return NotGGUFError("model file", path, f"{kind}; GGUF or PWRI can be read", next_step)
    if head[8:9] == b"{":
        return NotGGUFError("model file", path, "a safetensors file; GGUF or PWRI can be read", TO_CONVERT)
    bound = f"begins with {head[:4]!r}; GGUF or PWRI can be read"
    return NotGGUFError("model file", path, bound, f"{CHECK}, or {DOWNLOAD}")
