"""What goes from a GGUF file into another as it is: its metadata, and its tensors slab by slab."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io.convert.tensor_plan import SLAB_ELEMENTS, encode
from hotcold.gguf_io.part import ALIGNMENT
from hotcold.gguf_io.reader import GGUFFile, open_gguf
from hotcold.gguf_io.split import KEYS
from hotcold.gguf_io.split_writer import write_model
from hotcold.gguf_io.tensors import TensorInfo
from hotcold.gguf_io.writer import Contents, Magic, MetadataValue, OutputTensor, WriteProgress
from hotcold.whole_file import check_output

ARCHITECTURE = "general.architecture"
INDEX_ARCHITECTURE = "generic.gpu_index"
OWN_KEYS = (ARCHITECTURE, ALIGNMENT, *KEYS)  # which are the written file's own


def with_more(
    source: Path,
    outfile: Path,
    metadata: Mapping[str, MetadataValue],
    tensors: Sequence[OutputTensor],
    *,
    without: Collection[str] = (),
    magic: Magic | None = None,
    force: bool = False,
    progress: WriteProgress | None = None,
) -> tuple[Path, ...]:
    """Write a model's file once more with these keys and tensors, in place of those of the same names.

    All parts of one that is split become one file. It appears whole or not at all.

    Args:
        without: keys and tensors that are left out.
        magic: None keeps the source's.

    Raises:
        SettingError: `outfile` is `source` or one of its parts, or exists and `force` is false.
        FileError: `source` is damaged, or changes while it is read; writing failed.
        DoesNotFitError: the disk is full.
    """
    check_output(outfile, [source], force)
    with open_gguf(source) as file:
        check_output(outfile, [part.path for part in file.parts], force)
        names = {tensor.name for tensor in tensors} | {*without}
        kept = [_copied(file, info) for info in file.tensors.values() if info.name not in names]
        kept_keys = {key: value for key, value in metadata_of(file).items() if key not in without}
        keys = {**kept_keys, **metadata}
        own: Magic = "PWRI" if file.is_powerinfer else "GGUF"
        contents = Contents(architecture_of(file), keys, [*kept, *tensors], magic or own)
        paths, _ = write_model(outfile, contents, force=force, progress=progress)
        return tuple(paths)


def _copied(file: GGUFFile, info: TensorInfo) -> OutputTensor:
    return OutputTensor(info.name, info.type, info.ne, info.n_bytes, lambda: slabs(file, info))


def new_tensor(
    name: str, numbers: NDArray[np.float32], kind: GGMLQuantizationType = GGMLQuantizationType.F32
) -> OutputTensor:
    """A tensor of these numbers, rounded to the type."""
    rows = encode(name, numbers.reshape(-1, numbers.shape[-1]), kind, lambda text: None)
    return OutputTensor(name, kind, numbers.shape[::-1], rows.nbytes, lambda: iter([rows]))


def architecture_of(file: GGUFFile) -> str:
    """Its name, once the file is known to be a whole model."""
    name = file.get_str(ARCHITECTURE)
    if name == INDEX_ARCHITECTURE:
        raise FileError(str(file.path), name, "a split index has no matrices", "give the model beside it")
    if not file.tensors:
        raise FileError(str(file.path), "0 tensors", "a model has some", "give a model file")
    return name


def metadata_of(file: GGUFFile, warn: Callable[[str], None] = lambda text: None) -> dict[str, MetadataValue]:
    """A file's metadata but for what is the written file's own, and empty arrays, which are told of."""
    empty = [key for key in file.metadata if _is_empty(file, key)]
    for key in empty:
        warn(f"{key} is an empty array, which is left out")
    return {key: _value(file, key) for key in file.metadata if key not in (*OWN_KEYS, *empty)}


def slabs(
    file: GGUFFile, info: TensorInfo, begin: int = 0, end: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Rows of the tensor in order, or those from begin to before end, read from the file.

    Pages of its map would stay in memory.
    """
    step, path = max(1, SLAB_ELEMENTS // max(1, info.ne[0])), file.path_of(info.name)
    stop = info.n_rows if end is None else end
    for first in range(begin, stop, step):
        n_rows = min(step, stop - first)
        offset = info.offset + first * info.row_bytes
        try:
            rows = np.fromfile(path, np.uint8, n_rows * info.row_bytes, offset=offset)
        except OSError as error:
            raise FileError(str(path), error.strerror or "cannot be read", "", "check it") from error
        if rows.size != n_rows * info.row_bytes:
            bound = f"{n_rows * info.row_bytes} were there when it was opened"
            raise FileError(f"{path}: {info.name}", f"{rows.size} bytes", bound, "keep the file as it is")
        yield rows.reshape(n_rows, info.row_bytes)


def _is_empty(file: GGUFFile, key: str) -> bool:
    """Whether it is an array of nothing, which no GGUF writer makes and no reader misses."""
    return file.value_types[key][0] is GGUFValueType.ARRAY and not len(file.metadata[key])


def _value(file: GGUFFile, key: str) -> MetadataValue:
    kind, element = file.value_types[key]
    value: Any = file.metadata[key]
    if kind is not GGUFValueType.ARRAY:
        return MetadataValue(kind, value)
    if element is GGUFValueType.ARRAY:
        bound = "cannot be written"
        raise FileError(f"{file.path}: {key}", "an array of arrays", bound, "use a file without that key")
    return MetadataValue(kind, value.tolist() if isinstance(value, np.ndarray) else list(value), element)
