"""Writes a GGUF file whole or not at all.

The header comes from the gguf package; the tensors' bytes are appended chunk by chunk, so memory
holds one chunk. Everything goes to a temporary file in the destination's folder, which is synced and
then renamed: whatever stops the writing, an older file at that path stays as it was.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from hotcold.errors import DoesNotFitError, FileError, SettingError

Magic = Literal["GGUF", "PWRI"]
Progress = Callable[[str, int, int], None]


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


def check_destination(path: Path, sources: Sequence[Path] = (), force: bool = False) -> None:
    """Refuses a destination before any work is done for it.

    Raises:
        FileError: its folder is missing or it is a folder.
        SettingError: it is one of `sources`, or it exists and `force` is false.
    """
    if not path.parent.is_dir():
        raise FileError(
            "output folder", str(path.parent), "must exist", "make it, or choose another --outfile"
        )
    if path.is_dir():
        raise FileError("output file", str(path), "is a directory", "choose another --outfile")
    if not path.exists():
        return
    for source in sources:
        if source.exists() and path.samefile(source):
            raise SettingError("output file", str(path), f"is the input {source}", "choose another --outfile")
    if not force:
        raise SettingError("output file", str(path), "exists already", "use --force to overwrite it")


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, MetadataValue],
    tensors: Sequence[OutputTensor],
    *,
    magic: Magic = "GGUF",
    force: bool = False,
    progress: Progress | None = None,
) -> int:
    """Writes `path` and returns its size in bytes.

    `general.architecture` is written first, then `metadata` in order. `progress` is called with the
    tensor's name, the bytes of tensors done and their total.

    Raises:
        FileError, SettingError: as `check_destination`; FileError too when writing fails.
        DoesNotFitError: the disk cannot hold the file.
    """
    check_destination(path, force=force)
    try:
        temporary = _make_temporary(path)
        try:
            _write_header(temporary, architecture, metadata, tensors)
            _append_tensors(temporary, tensors, progress)
            n_bytes = _finish(temporary, magic)
            check_destination(path, force=force)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error
    return n_bytes


def _make_temporary(path: Path) -> Path:
    """An empty file beside `path` with the rights that a new file gets."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(name, 0o666 & ~mask)
    return Path(name)


def _write_header(
    temporary: Path, architecture: str, metadata: Mapping[str, MetadataValue], tensors: Sequence[OutputTensor]
) -> None:
    writer = GGUFWriter(temporary, architecture)
    try:
        for key, value in metadata.items():
            writer.add_key_value(key, value.value, value.type, value.element_type)
        for tensor in tensors:
            shape = tuple(reversed(tensor.ne))
            writer.add_tensor_info(
                tensor.name, shape, np.dtype(np.float32), tensor.n_bytes, raw_dtype=tensor.type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _append_tensors(temporary: Path, tensors: Sequence[OutputTensor], progress: Progress | None) -> None:
    total = sum(tensor.n_bytes for tensor in tensors)
    with temporary.open("ab") as file:
        _pad(file)
        _check_room(temporary, total)
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


def _check_room(temporary: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(temporary.parent).free
    if n_bytes > free:
        raise DoesNotFitError(
            f"disk of {temporary.parent}",
            f"{free} bytes free",
            f"{n_bytes} needed",
            "free some or choose another --outfile",
        )


def _finish(temporary: Path, magic: Magic) -> int:
    """Sets the magic (the gguf package knows only its own), syncs, and returns the size in bytes."""
    with temporary.open("r+b") as file:
        file.write(magic.encode("ascii"))
        file.flush()
        os.fsync(file.fileno())
        return file.seek(0, os.SEEK_END)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the system can sync a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _write_error(path: Path, error: OSError) -> FileError | DoesNotFitError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DoesNotFitError(
            f"writing {path}", reason, "nothing was kept", "free some disk or choose another --outfile"
        )
    return FileError(f"writing {path}", reason, "nothing was kept", "choose another --outfile")
