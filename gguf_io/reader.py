"""Opens a model's GGUF file, or all the files that it is split into, as one."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.closing import Closing
from hotcold.gguf_io.errors import CONVERT, MetadataError, TensorTableError, excerpt
from hotcold.gguf_io.part import Part, ValueTypes, open_part
from hotcold.gguf_io.split import COUNT, open_others
from hotcold.gguf_io.tensors import TensorInfo

_MISSING = object()


class GGUFFile(Closing):
    """An open model: its keys and its tensors, whichever file they lie in.

    Attributes:
        parts: the open files, in order; one, unless the model is split.
        path: of the first.
        size: bytes of all.
        metadata: of the first part; scalars as Python values, strings as str (bytes where they are no UTF-8),
            arrays of numbers as read-only NumPy views, arrays of strings as `StringArray`.
        value_types: the type of each metadata value, and of the elements of an array.
        tensors: the tables of all parts, in order.
        warnings: what is odd but harmless.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        first = parts[0]
        self.parts = tuple(parts)
        self.path, self.size = first.path, sum(part.size for part in parts)
        self.magic, self.version, self.alignment = first.magic, first.version, first.alignment
        self.metadata: Mapping[str, Any] = first.metadata
        self.value_types: ValueTypes = first.value_types
        self.tensors: dict[str, TensorInfo] = {}
        self._part_of: dict[str, Part] = {}
        self._added: dict[str, NDArray[np.uint8]] = {}
        for part in parts:
            self.tensors |= part.tensors
            self._part_of |= dict.fromkeys(part.tensors, part)
        self.warnings = tuple(warning for part in parts for warning in part.warnings)

    @property
    def is_powerinfer(self) -> bool:
        """Whether the magic says that the model runs sparse, with predictors."""
        return self.magic == "PWRI"

    def data(self, name: str) -> NDArray[np.uint8]:
        """A tensor's rows: read-only view of the map, uint8 [n_rows, bytes a row].

        Raises:
            TensorTableError: there is no such tensor.
            TruncatedError: the file has become shorter.
        """
        info = self.tensors.get(name)
        if info is None:
            bound = f"not among the {len(self.tensors)} tensors of the file"
            raise TensorTableError(f"{self.path.name}: tensor", name, bound, CONVERT)
        if name in self._added:
            return self._added[name]
        return self._part_of[name].rows(info)

    def add(self, name: str, numbers: NDArray[np.float32]) -> None:
        """Serve an array, float32 and contiguous, as if it were a tensor of the file; it may change later on."""
        rows = numbers.reshape(-1, numbers.shape[-1])
        self.tensors[name] = TensorInfo(
            name, GGMLQuantizationType.F32, numbers.shape[::-1], offset=0, n_bytes=numbers.nbytes
        )
        self._added[name] = rows.view(np.uint8)

    def path_of(self, name: str) -> Path:
        """The file that a tensor lies in."""
        return self._part_of[name].path

    def all_data(self) -> list[NDArray[np.uint8]]:
        """Of each part one flat read-only view, from the first tensor's data to the end of the last's."""
        return [part.all_data() for part in self.parts]

    def header_hash(self) -> str:
        """SHA-256, in hex, of everything before the first tensor's data: metadata and tensor table."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(part.header())
        return digest.hexdigest()

    def get_int(self, key: str, default: int | None = None) -> int:
        """An integer of the metadata; MetadataError if it is missing without default or no integer."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "must be an integer")
        return value

    def get_float(self, key: str, default: float | None = None) -> float:
        """A float; integers will do."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "must be a number")
        return float(value)

    def get_str(self, key: str, default: str | None = None) -> str:
        """Text."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "must be UTF-8 text")
        return value

    def get_array(self, key: str, default: Any = None) -> Any:
        """An array: NumPy view or StringArray."""
        value = self._get(key, default)
        if isinstance(value, bool | int | float | str | bytes):
            raise self._wrong(key, value, "must be an array")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self.metadata.get(key, _MISSING)
        if value is not _MISSING:
            return value
        if default is None:
            raise MetadataError(f"{self.path.name}: metadata key", key, "missing", CONVERT)
        return default

    def _wrong(self, key: str, value: object, bound: str) -> MetadataError:
        shown = excerpt(repr(value)) if isinstance(value, bytes | str) else excerpt(value)
        return MetadataError(f"{self.path.name}: {key}", shown, bound, CONVERT)

    def close(self) -> None:
        """Let go of the maps; they are unmapped when the last view of them is gone."""
        self.tensors, self._part_of, self._added = {}, {}, {}
        self.metadata = {}
        for part in self.parts:
            part.close()


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open and check a model's file: of a model that is split, all parts of it, whichever is named.

    Raises:
        GGUFError: one of its children says what is wrong.
    """
    part = open_part(Path(path))
    return GGUFFile(open_others(part) if COUNT in part.metadata else [part])
