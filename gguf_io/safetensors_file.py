"""Reads a safetensors file: an 8-byte length, a JSON header of that length, then the numbers.

The library's NumPy side has no BF16, so the header is read and checked here. The promises are the
library's own: header at most 100 MB, every range equal to shape times element size, ranges that
follow each other from the first byte to the last.
"""

import math
import os
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io.errors import CUT, TruncatedError
from hotcold.gguf_io.json_object import parse_json_object
from hotcold.gguf_io.source_tensor import BYTES, STORED_TYPES, SourceTensor

MAX_HEADER_BYTES = 100_000_000
ELEMENTS = {**STORED_TYPES, BYTES: np.dtype("u1")}
"""Element types that are read; whose bytes may be what is the layout's matter."""


def open_safetensors(path: Path) -> dict[str, SourceTensor]:
    """The tensors of `path` by name, in the order of their bytes; nothing of their numbers is read.

    Raises:
        TruncatedError: the file ends within its header or its last tensor.
        FileError: no readable file, a damaged header, an element type other than F32, F16, BF16, U8,
            or ranges that overlap, leave holes or end before the file does.
    """
    header, _, data_start, size = _read_header(path)
    entries = [(name, *_checked_entry(path, name, entry)) for name, entry in header.items()]
    entries.sort(key=lambda entry: entry[3])
    end = 0
    tensors: dict[str, SourceTensor] = {}
    for name, shape, dtype, begin, finish in entries:
        if begin != end:
            raise _damaged(path, f"{name} starts at byte {begin}", f"the tensor before it ends at {end}")
        end = finish
        tensors[name] = _tensor(path, name, data_start + begin, shape, dtype)
    if data_start + end > size:
        raise _cut(path, f"{size} bytes", f"its header describes {data_start + end}")
    if data_start + end < size:
        raise _damaged(path, f"{size} bytes", f"its header describes {data_start + end}")
    return tensors


def metadata_text(path: Path, key: str) -> str | None:
    """A text that the header has beside the tensors; FileError as `open_safetensors`."""
    entries = _read_header(path)[1]
    value = entries.get(key) if isinstance(entries, dict) else None
    return value if isinstance(value, str) else None


def element_types(path: Path) -> dict[str, str]:
    """What the header says of each tensor's element type, known or not; FileError as `open_safetensors`."""
    entries = _read_header(path)[0].items()
    return {name: str(entry.get("dtype")) for name, entry in entries if isinstance(entry, dict)}


def _read_header(path: Path) -> tuple[dict[str, Any], Any, int, int]:
    """Entries of the tensors, what stands beside them, where the numbers begin, and the file's size."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            n_header = int.from_bytes(file.read(8), "little")
            if n_header > MAX_HEADER_BYTES:
                raise _damaged(path, f"header of {n_header} bytes", f"at most {MAX_HEADER_BYTES}")
            if size < 8 + n_header:
                needed = (
                    f"its header ends at byte {8 + n_header}" if size >= 8 else "the first 8 give its length"
                )
                raise _cut(path, f"{size} bytes", needed)
            content = file.read(n_header)
    except OSError as error:
        raise FileError(str(path), error.strerror or "cannot be read", "", "check the path") from error
    header = parse_json_object(content, f"header of {path}")
    beside = header.pop("__metadata__", None)
    return header, beside, 8 + n_header, size


def _checked_entry(path: Path, name: str, entry: Any) -> tuple[tuple[int, ...], str, int, int]:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise _damaged(path, f"entry of {name}", "needs a shape and two data_offsets, none of them negative")
    if not isinstance(dtype, str) or dtype not in ELEMENTS:
        raise FileError(
            f"{path}: {name}", f"element type {dtype}", "F32, F16 or BF16", "convert the original weights"
        )
    begin, end = offsets
    n_bytes = math.prod(shape) * ELEMENTS[dtype].itemsize
    if end - begin != n_bytes:
        raise _damaged(path, f"{name} has {end - begin} bytes", f"shape {shape} of {dtype} takes {n_bytes}")
    return tuple(shape), dtype, begin, end


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _tensor(path: Path, name: str, offset: int, shape: tuple[int, ...], dtype: str) -> SourceTensor:
    def read(begin: int, shape: tuple[int, ...]) -> NDArray[Any]:
        count = math.prod(shape)
        try:
            numbers = np.fromfile(path, ELEMENTS[dtype], count, offset=begin)
        except OSError as error:
            raise FileError(str(path), error.strerror or "cannot be read", "", "check the path") from error
        if numbers.size != count:
            bound = f"{count} were there when it was opened"
            raise _cut(path, f"{numbers.size} numbers from byte {begin}", bound)
        return numbers.reshape(shape)

    def read_entries(first: int, last: int) -> NDArray[Any]:
        n_bytes = math.prod(shape[1:]) * ELEMENTS[dtype].itemsize
        return read(offset + first * n_bytes, (last - first, *shape[1:]))

    return SourceTensor(name, shape, dtype, lambda: read(offset, shape), read_entries)


def _cut(path: Path, value: str, bound: str) -> TruncatedError:
    return TruncatedError(str(path), value, bound, CUT)


def _damaged(path: Path, value: str, bound: str) -> FileError:
    return FileError(str(path), value, bound, "fetch the file again")
