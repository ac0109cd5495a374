r"""Reads tensors out of torch's `.pt` zip files without torch and without running what a pickle says.

A `.pt` file is a zip archive of uncompressed records: `NAME/data.pkl` describes the tensors, and
`NAME/data/KEY` holds the numbers of one storage. A pickle is a program. Here its instructions are first
compared with a short list, and the few names that a tensor needs stand for inert values; any other
name, instruction, size or path is refused. Nothing is unpacked to disk.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io.errors import CUT, TruncatedError

MAX_RECORDS = 20_000
MAX_PICKLE_BYTES = 1 << 22
MAX_INSTRUCTIONS = 100_000  # some 40 a tensor
MAX_TUPLES = 10_000  # some 4 a tensor; Python takes stack for each that lies in another
MAX_DIMENSIONS = 4
RECORD = b"PK\3\4"  # how a record of a zip archive begins, and with the first one the file

STORAGES: dict[str, tuple[str, np.dtype[Any]]] = {
    "FloatStorage": ("F32", np.dtype("<f4")),
    "HalfStorage": ("F16", np.dtype("<f2")),
    "BFloat16Storage": ("BF16", np.dtype("<u2")),
    "DoubleStorage": ("F64", np.dtype("<f8")),
    "LongStorage": ("I64", np.dtype("<i8")),
    "IntStorage": ("I32", np.dtype("<i4")),
}

# fmt: off
INSTRUCTIONS = frozenset((
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_TUPLE",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM",
    "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
))
# fmt: on


class TorchTensor(NamedTuple):
    """A tensor of a `.pt` file; its numbers are read by `read`.

    A named tuple has no attributes to set, so a pickle cannot change one after it was checked.

    Attributes:
        dtype: "F32", "F16", "BF16", "F64", "I64" or "I32".
        shape, strides: in elements; `offset`: of the first element in its record.
    """

    path: Path
    record: str
    dtype: str
    number: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> NDArray[Any]:
        """The numbers, shape `shape` (BF16 as its 16 bits); a FileError when the record is damaged or cut."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                numbers = np.frombuffer(archive.read(self.record), self.number)
        except (OSError, zipfile.BadZipFile, ValueError, EOFError) as error:
            _check_end(self.path)
            raise FileError(
                f"{self.path}: {self.record}", str(error), "must be whole", "fetch it again"
            ) from error
        if numbers.size < _extent(self.offset, self.shape, self.strides):
            raise _refused(self.path, f"{self.record} became shorter", "same as when it was opened")
        steps = tuple(stride * self.number.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps, writeable=False)


def open_state_dict(path: Path) -> dict[str, TorchTensor]:
    """The tensors of a saved state dict by name; their numbers are not read.

    Raises:
        TruncatedError: a zip file that is cut.
        FileError: no readable torch zip file, anything outside the allow-list, or no dict of tensors.
    """
    value = _load(path)
    if not isinstance(value, dict):
        raise _refused(path, f"holds a {type(value).__name__}", "a dict of tensors")
    tensors: dict[str, TorchTensor] = {}
    for name, tensor in dict.items(value):  # a pickle can give its OrderedDict an `items` of its own
        if not isinstance(name, str) or not isinstance(tensor, TorchTensor):
            raise _refused(
                path, f"an entry {type(name).__name__}: {type(tensor).__name__}", "names and tensors"
            )
        tensors[name] = tensor
    return tensors


def open_tensor(path: Path) -> TorchTensor:
    """The single tensor that `path` holds; errors as `open_state_dict`."""
    value = _load(path)
    if not isinstance(value, TorchTensor):
        raise _refused(path, f"holds a {type(value).__name__}", "a tensor")
    return value


def _load(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = _checked_records(path, archive)
            prefix = _prefix(path, sizes)
            if sizes[f"{prefix}/data.pkl"] > MAX_PICKLE_BYTES:
                raise _refused(
                    path, f"data.pkl of {sizes[f'{prefix}/data.pkl']} bytes", f"at most {MAX_PICKLE_BYTES}"
                )
            if f"{prefix}/byteorder" in sizes and archive.read(f"{prefix}/byteorder") != b"little":
                raise _refused(path, "numbers in another byte order", "little-endian")
            program = archive.read(f"{prefix}/data.pkl")
    except zipfile.BadZipFile as error:
        _check_end(path)
        raise FileError(
            str(path),
            "no zip archive",
            "torch's format since 1.6",
            "save it again with torch.save(state_dict)",
        ) from error
    except OSError as error:
        raise FileError(str(path), error.strerror or str(error), "", "check the path") from error
    except (NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise _refused(path, str(error), "a plain zip archive") from error
    _check_instructions(path, program)
    return _Unpickler(path, program, prefix, sizes).load_checked()


def _check_end(path: Path) -> None:
    """Refuse what begins as a zip archive and lacks the directory, whose end is the file's: it is cut.

    Raises:
        TruncatedError: so it is.
    """
    with path.open("rb") as file:
        head = file.read(len(RECORD))
    if RECORD.startswith(head) and not zipfile.is_zipfile(path):
        bound = "a zip archive ends in a directory, which is missing"
        raise TruncatedError(str(path), f"{path.stat().st_size} bytes", bound, CUT)


def _checked_records(path: Path, archive: zipfile.ZipFile) -> dict[str, int]:
    """Sizes in bytes by name. Uncompressed records that fit the file together cannot expand."""
    records = archive.infolist()
    if len(records) > MAX_RECORDS:
        raise _refused(path, f"{len(records)} records", f"at most {MAX_RECORDS}")
    sizes: dict[str, int] = {}
    for record in records:
        _check_record(path, record)
        if record.filename in sizes:
            raise _refused(path, f"two records {record.filename}"[:200], "one each")
        sizes[record.filename] = record.file_size
    if sum(sizes.values()) > path.stat().st_size:
        raise _refused(path, f"records of {sum(sizes.values())} bytes", f"the file has {path.stat().st_size}")
    return sizes


def _check_record(path: Path, record: zipfile.ZipInfo) -> None:
    name = record.orig_filename
    if name.startswith("/") or ".." in name.split("/") or any(c in name for c in "\\:\0"):
        raise _refused(path, f"record {name!r}"[:200], "a plain relative name")
    if record.flag_bits & 1:
        raise _refused(path, f"record {name} is encrypted"[:200], "plain records")
    if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
        raise _refused(path, f"record {name} is compressed"[:200], "torch stores records uncompressed")


def _prefix(path: Path, sizes: Mapping[str, int]) -> str:
    prefixes = [name.removesuffix("/data.pkl") for name in sizes if name.endswith("/data.pkl")]
    if len(prefixes) != 1 or "/" in prefixes[0]:
        raise _refused(path, f"{len(prefixes)} records NAME/data.pkl", "exactly 1 in a torch file")
    return prefixes[0]


def _check_instructions(path: Path, program: bytes) -> None:
    """Refuses instructions beyond the list, too many of them, and memo numbers that claim memory."""
    n_tuples = 0
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(program), 1):
            n_tuples += instruction.name.startswith("TUPLE")
            if instruction.name not in INSTRUCTIONS:
                raise _refused(
                    path, f"pickle instruction {instruction.name}", "not in the short list that tensors need"
                )
            if count > MAX_INSTRUCTIONS:
                raise _refused(path, f"over {MAX_INSTRUCTIONS} pickle instructions", "a dict of tensors")
            if n_tuples > MAX_TUPLES:
                raise _refused(path, f"over {MAX_TUPLES} tuples in the pickle", "a dict of tensors")
            if instruction.name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > MAX_INSTRUCTIONS:
                raise _refused(path, f"pickle memo {argument}", f"at most {MAX_INSTRUCTIONS}")
    except ValueError as error:
        raise _refused(path, f"damaged pickle: {error}"[:200], "a whole data.pkl") from error


class _StorageType(NamedTuple):
    """Stands for a storage class of torch: its element type."""

    dtype: str
    number: np.dtype[Any]


class _Storage(NamedTuple):
    """A record of numbers."""

    record: str
    type: _StorageType
    n_elements: int


class _RebuildTensor:
    """Stands for torch._utils._rebuild_tensor_v2."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TorchTensor:
        if not isinstance(storage, _Storage) or not _is_size(offset):
            raise _refused(self._path, "a tensor without a storage", "a storage and an offset")
        if not _are_sizes(shape) or not _are_sizes(strides) or len(shape) != len(strides):
            raise _refused(
                self._path, f"shape {shape!r}"[:100], f"up to {MAX_DIMENSIONS} sizes and as many strides"
            )
        if math.prod(shape) > storage.n_elements or _extent(offset, shape, strides) > storage.n_elements:
            raise _refused(
                self._path, f"tensor of shape {shape}", f"its storage has {storage.n_elements} elements"
            )
        return TorchTensor(self._path, storage.record, *storage.type, offset, shape, strides)


class _RebuildParameter:
    """Stands for torch._utils._rebuild_parameter: the tensor inside."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _Unpickler(pickle.Unpickler):
    """An unpickler for which only the names of the allow-list exist."""

    def __init__(self, path: Path, program: bytes, prefix: str, sizes: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(program))
        self._path, self._prefix, self._sizes = path, prefix, sizes

    def load_checked(self) -> Any:
        try:
            return self.load()
        except FileError:
            raise
        except Exception as error:  # a pickle can make its reader raise any of them
            raise _refused(self._path, f"damaged pickle: {error}"[:200], "a dict of tensors") from error

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _RebuildTensor(self._path)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _RebuildParameter()
        if module == "torch" and name in STORAGES:
            return _StorageType(*STORAGES[name])
        raise _refused(
            self._path, f"the pickle asks for {module}.{name}"[:200], "nothing but tensors is read"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise _refused(self._path, f"reference {pid!r}"[:100], "a storage")
        _, kind, key, _, count = pid
        if not (isinstance(kind, _StorageType) and isinstance(key, str) and _is_size(count)):
            raise _refused(self._path, f"storage {key!r}"[:100], "an element type, a key and a count")
        record = f"{self._prefix}/data/{key}"
        if self._sizes.get(record) != count * kind.number.itemsize:
            raise _refused(
                self._path, f"storage {key} of {count} {kind.dtype}"[:200], "a record of just that size"
            )
        return _Storage(record, kind, count)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(_is_size(item) for item in value)


def _extent(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The element after the last one that such a tensor reads; 0 when it reads none."""
    if 0 in shape:
        return 0
    return offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1


def _refused(path: Path, value: str, bound: str) -> FileError:
    return FileError(
        f"torch file {path}", value, bound, "use a file that you trust, saved as a plain state dict"
    )
