"""Writes a GGUF file whole or not at all.

The header comes from the gguf package; the tensors' bytes are appended chunk by chunk, so memory
holds one chunk.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from hotcold.errors import DoesNotFitError, FileError
from hotcold.whole_file import check_output, whole_file

Magic = Literal["GGUF", "PWRI"]
WriteProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class MetadataValue:
    """One value of the metadata; `element_type` only for arrays."""

    type: GGUFValueType
    value: Any
    element_type: GGUFValueType | None = None


def uint32(value: int) -> MetadataValue:
    """An unsigned 32-bit number."""
    return MetadataValue(GGUFValueType.UINT32, value)


def float32(value: float) -> MetadataValue:
    """A 32-bit float."""
    return MetadataValue(GGUFValueType.FLOAT32, value)


def boolean(value: bool) -> MetadataValue:
    """True or false."""
    return MetadataValue(GGUFValueType.BOOL, value)


def string(value: str) -> MetadataValue:
    """UTF-8 text."""
    return MetadataValue(GGUFValueType.STRING, value)


def array(values: Sequence[Any], element_type: GGUFValueType) -> MetadataValue:
    """At least one value, all of `element_type`; strings may be bytes."""
    return MetadataValue(GGUFValueType.ARRAY, values, element_type)


@dataclass(frozen=True)
class OutputTensor:
    """One tensor to write.

    Attributes:
        ne: ggml order, row length first.
        n_bytes: of all rows.
        chunks: called once, yields the bytes in file order, together `n_bytes`.
    """

    name: str
    type: GGMLQuantizationType
    ne: tuple[int, ...]
    n_bytes: int
    chunks: Callable[[], Iterator[NDArray[np.uint8]]]


@dataclass(frozen=True)
class Contents:
    """What a file is to hold.

    Attributes:
        architecture: `general.architecture`, which is written first.
        metadata: the other keys, in order.
    """

    architecture: str
    metadata: Mapping[str, MetadataValue]
    tensors: Sequence[OutputTensor]
    magic: Magic = "GGUF"


def write_gguf(
    path: Path, contents: Contents, *, force: bool = False, progress: WriteProgress | None = None
) -> int:
    """Writes `path` and returns its size in bytes.

    `progress` is called with the tensor's name, the bytes of tensors done and their total.

    Raises:
        FileError, SettingError: as `check_output`; FileError too when writing fails.
        DoesNotFitError: the disk cannot hold the file.
    """
    check_output(path, force=force)
    with whole_file(path) as temporary:
        n_bytes = write_contents(temporary, contents, progress)
        check_output(path, force=force)
    return n_bytes


def write_contents(temporary: Path, contents: Contents, progress: WriteProgress | None) -> int:
    """Fills an empty file and returns its size in bytes."""
    _write_header(temporary, contents)
    _append_tensors(temporary, contents.tensors, progress)
    return _set_magic(temporary, contents.magic)


def _write_header(temporary: Path, contents: Contents) -> None:
    writer = GGUFWriter(temporary, contents.architecture)
    try:
        for key, value in contents.metadata.items():
            writer.add_key_value(key, value.value, value.type, value.element_type)
        for tensor in contents.tensors:
            shape = tuple(reversed(tensor.ne))
            writer.add_tensor_info(
                tensor.name, shape, np.dtype(np.float32), tensor.n_bytes, raw_dtype=tensor.type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _append_tensors(temporary: Path, tensors: Sequence[OutputTensor], progress: WriteProgress | None) -> None:
    total = sum(tensor.n_bytes for tensor in tensors)
    with temporary.open("ab") as file:
        _pad(file)
        check_room(temporary.parent, total)
        done = 0
        for tensor in tensors:
            n_written = 0
            for chunk in tensor.chunks():
                file.write(np.ascontiguousarray(chunk).data)
                n_written += chunk.nbytes
                if progress is not None:
                    progress(tensor.name, done + n_written, total)
            if n_written != tensor.n_bytes:
                raise FileError(
                    f"tensor {tensor.name}", f"{n_written} bytes made", f"{tensor.n_bytes} announced"
                )
            done += n_written
            _pad(file)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % GGUF_DEFAULT_ALIGNMENT))


def check_room(folder: Path, n_bytes: int) -> None:
    """Refuses what the disk of a folder cannot hold."""
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise DoesNotFitError(
            f"disk of {folder}",
            f"{free} bytes free",
            f"{n_bytes} needed",
            "free some or choose another --outfile",
        )


def _set_magic(temporary: Path, magic: Magic) -> int:
    """Sets the magic, since the gguf package knows only its own, and returns the size in bytes."""
    with temporary.open("r+b") as file:
        file.write(magic.encode("ascii"))
        return file.seek(0, os.SEEK_END)
