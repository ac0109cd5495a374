"""Small models on disk, made from random numbers, and `.pt` and GGUF files made byte by byte."""

import functools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gguf_refusals import Refused, check_refusal, u32
from hf_models import HFDirectory, make, save_safetensors
from numpy.typing import NDArray

from hotcold.gguf_io.errors import GGUFError


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Checks a path, or bytes as a file: as they are, and as version 2 if they are version 3."""

    def check(source: bytes | Path, error: type[GGUFError], field: str, value: object, bound: str) -> None:
        path = source if isinstance(source, Path) else tmp_path / "bad.gguf"
        if isinstance(source, bytes):
            path.write_bytes(source)
        check_refusal(path, error, field, value, bound)
        if isinstance(source, bytes) and source[4:8] == u32(3):
            path.write_bytes(source[:4] + u32(2) + source[8:])
            check_refusal(path, error, field, value, bound)

    return check


@pytest.fixture
def hf_model(tmp_path: Path) -> Callable[..., HFDirectory]:
    """Makes a model in a folder of its own: `hf_model(kind, dtype=..., hidden_act=..., ...)`."""

    def make_here(kind: str, name: str = "model", **settings: Any) -> HFDirectory:
        return make(tmp_path / name, kind, **settings)

    return make_here


@pytest.fixture
def llama(hf_model: Callable[..., HFDirectory]) -> Callable[..., HFDirectory]:
    """`hf_model` of the kind "llama"."""
    return functools.partial(hf_model, "llama")


@pytest.fixture
def save() -> Callable[[Path, Mapping[str, NDArray[Any]]], None]:
    """`save_safetensors`."""
    return save_safetensors


class TorchProgram:
    """The instructions of a pickle as torch.save writes them, one method a kind of value."""

    @staticmethod
    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    @staticmethod
    def integer(value: int) -> bytes:
        if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        content = value.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(content)]) + content

    @staticmethod
    def name(module: str, name: str) -> bytes:
        return f"c{module}\n{name}\n".encode()

    @staticmethod
    def items(*values: bytes) -> bytes:
        return b"(" + b"".join(values) + b"t"

    @classmethod
    def tensor(
        cls,
        key: str,
        kind: str,
        n_elements: int,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> bytes:
        storage = cls.items(
            cls.text("storage"),
            cls.name("torch", kind),
            cls.text(key),
            cls.text("cpu"),
            cls.integer(n_elements),
        )
        arguments = cls.items(
            storage + b"Q",
            cls.integer(offset),
            cls.items(*map(cls.integer, shape)),
            cls.items(*map(cls.integer, strides)),
            b"\x89",
            cls.name("collections", "OrderedDict") + b")R",
        )
        return cls.name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"

    @classmethod
    def dictionary(cls, entries: Mapping[str, bytes]) -> bytes:
        return b"}(" + b"".join(cls.text(name) + value for name, value in entries.items()) + b"u"

    @staticmethod
    def whole(value: bytes) -> bytes:
        return b"\x80\x02" + value + b"."

    @staticmethod
    def archive(path: Path, program: bytes, records: Mapping[str, bytes], compression: int = 0) -> None:
        """The zip file: `program` as data.pkl, `records` as data/KEY."""
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", program)
            archive.writestr("archive/byteorder", b"little")
            for key, content in records.items():
                archive.writestr(f"archive/data/{key}", content)
            archive.writestr("archive/version", b"3\n")

    @classmethod
    def save(cls, path: Path, tensors: Mapping[str, NDArray[Any]] | NDArray[Any]) -> None:
        """What torch.save makes of these tensors, or of one; uint16 arrays are BF16."""
        kinds = {
            "<f4": "Float",
            "<f2": "Half",
            "<u2": "BFloat16",
            "<f8": "Double",
            "<i8": "Long",
            "<i4": "Int",
        }
        named = tensors if isinstance(tensors, Mapping) else {"": tensors}
        programs, records = {}, {}
        for key, (name, array) in enumerate(named.items()):
            strides = tuple(stride // array.itemsize for stride in array.strides)
            kind = f"{kinds[array.dtype.str]}Storage"
            programs[name] = cls.tensor(str(key), kind, array.size, 0, array.shape, strides)
            records[str(key)] = array.tobytes()
        program = cls.dictionary(programs) if isinstance(tensors, Mapping) else programs[""]
        cls.archive(path, cls.whole(program), records)


@pytest.fixture
def torch_program() -> type[TorchProgram]:
    """Builds `.pt` files without torch."""
    return TorchProgram


@dataclass(frozen=True)
class GGUFBytes:
    """A GGUF file made field by field, so that each field can be wrong."""

    pairs: tuple[bytes, ...] = ()
    tensors: tuple[bytes, ...] = ()
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    n_tensors: int | None = None  # None: the true number
    n_pairs: int | None = None

    @staticmethod
    def text(value: bytes, n_bytes: int | None = None) -> bytes:
        return struct.pack("<Q", len(value) if n_bytes is None else n_bytes) + value

    @classmethod
    def pair(cls, key: bytes, kind: int, value: bytes) -> bytes:
        return cls.text(key) + struct.pack("<I", kind) + value

    @classmethod
    def array(cls, key: bytes, kind: int, n: int, values: bytes = b"") -> bytes:
        return cls.pair(key, 9, struct.pack("<IQ", kind, n) + values)

    @classmethod
    def tensor(
        cls, name: bytes, ne: tuple[int, ...], kind: int = 0, offset: int = 0, n_dims: int | None = None
    ) -> bytes:
        n_dims = len(ne) if n_dims is None else n_dims
        return cls.text(name) + struct.pack(f"<I{len(ne)}QIQ", n_dims, *ne, kind, offset)

    def header(self) -> bytes:
        """All up to the end of the tensor table."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_pairs = len(self.pairs) if self.n_pairs is None else self.n_pairs
        start = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_pairs)
        return start + b"".join(self.pairs) + b"".join(self.tensors)

    def whole(self) -> bytes:
        """The file; without data it ends with the table, without padding."""
        header = self.header()
        return header + bytes(-len(header) % self.alignment) + self.data if self.data else header


@pytest.fixture(scope="session")
def gguf_bytes() -> type[GGUFBytes]:
    """Builds GGUF files byte by byte."""
    return GGUFBytes
