"""A `.pt` file gives its tensors, and nothing that it says is run."""

import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotcold.errors import FileError
from hotcold.gguf_io.torch_pickle import open_state_dict, open_tensor

Program = Any  # the class that the fixture torch_program gives


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model_0.pt"


@pytest.fixture
def with_value(torch_program: Program, file: Path) -> Callable[[bytes], Path]:
    """Makes a file whose pickle is the given value, with one storage "0" of 6 floats."""

    def make(value: bytes) -> Path:
        torch_program.archive(file, torch_program.whole(value), {"0": bytes(24)})
        return file

    return make


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<u2", "<f8", "<i8", "<i4"])
def test_tensors_of_every_type(torch_program: Program, file: Path, dtype: str) -> None:
    fc1, fc2 = np.arange(6).reshape(2, 3).astype(dtype), np.arange(8).reshape(4, 2).astype(dtype)
    torch_program.save(file, {"fc1.weight": fc1, "fc2.weight": fc2})
    tensors = open_state_dict(file)
    assert list(tensors) == ["fc1.weight", "fc2.weight"]
    assert np.array_equal(tensors["fc1.weight"].read(), fc1)
    assert np.array_equal(tensors["fc2.weight"].read(), fc2)
    assert tensors["fc2.weight"].shape == (4, 2)


class FakeStorage:
    """Goes into the pickle by reference, as torch's storages do."""

    def __init__(self, kind: type, key: str, n_elements: int) -> None:
        self.reference = ("storage", kind, key, "cpu", n_elements)


class Pickler(pickle.Pickler):
    """Python's own pickler with torch.save's treatment of storages."""

    def persistent_id(self, value: Any) -> Any:
        return value.reference if isinstance(value, FakeStorage) else None


def test_what_pythons_pickler_makes(
    torch_program: Program, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.save(module.state_dict()) with stand-ins for torch's names, memo and shared values included."""
    torch_module, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    half = type("HalfStorage", (), {"__module__": "torch"})

    def rebuild(*_: Any) -> None: ...

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    torch_module.HalfStorage, utils._rebuild_tensor_v2 = half, rebuild  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch_module)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class FakeTensor:
        def __init__(self, key: str, shape: tuple[int, int]) -> None:
            self.arguments: tuple[Any, ...] = (
                FakeStorage(half, key, shape[0] * shape[1]),
                0,
                shape,
                (shape[1], 1),
                False,
                OrderedDict(),
            )

        def __reduce_ex__(self, _: Any) -> Any:
            return rebuild, self.arguments

    state: Any = OrderedDict(
        {"fc1.weight": FakeTensor("0", (2, 300)), "fc2.weight": FakeTensor("1", (70_000, 2))}
    )
    state._metadata = OrderedDict({"": {"version": 1}, "fc1": {"version": 1}})
    stream = io.BytesIO()
    Pickler(stream, 2).dump(state)
    fc1, fc2 = np.arange(600).astype("<f2"), (np.arange(140_000) % 999).astype("<f2")
    torch_program.archive(file, stream.getvalue(), {"0": fc1.tobytes(), "1": fc2.tobytes()})
    tensors = open_state_dict(file)
    assert np.array_equal(tensors["fc1.weight"].read(), fc1.reshape(2, 300))
    assert np.array_equal(tensors["fc2.weight"].read(), fc2.reshape(70_000, 2))


def test_a_view_of_a_storage(torch_program: Program, file: Path) -> None:
    """A transposed slice that shares its storage with another tensor."""
    program = {
        "whole": torch_program.tensor("0", "FloatStorage", 6, 0, (2, 3), (3, 1)),
        "part": torch_program.tensor("0", "FloatStorage", 6, 1, (2, 2), (1, 3)),
    }
    numbers = np.arange(6, dtype=np.float32)
    torch_program.archive(
        file, torch_program.whole(torch_program.dictionary(program)), {"0": numbers.tobytes()}
    )
    tensors = open_state_dict(file)
    assert np.array_equal(tensors["part"].read(), numbers.reshape(2, 3)[:, 1:].T)


def test_ordered_dict_with_metadata_and_parameters(
    torch_program: Program, with_value: Callable[[bytes], Path]
) -> None:
    """What `torch.save(module.state_dict())` writes, and a parameter inside it."""
    tensor = torch_program.tensor("0", "FloatStorage", 6, 0, (6,), (1,))
    empty = torch_program.name("collections", "OrderedDict") + b")R"
    parameter = torch_program.name("torch._utils", "_rebuild_parameter") + torch_program.items(
        tensor, b"\x88", empty
    )
    entries = b"(" + torch_program.text("w") + tensor + torch_program.text("p") + parameter + b"Ru"
    state = torch_program.dictionary({"_metadata": empty})
    tensors = open_state_dict(with_value(empty + entries + state + b"b"))
    assert [(name, t.shape) for name, t in tensors.items()] == [("w", (6,)), ("p", (6,))]


def test_a_single_tensor(torch_program: Program, file: Path) -> None:
    torch_program.save(file, np.arange(5))
    assert open_tensor(file).read().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(FileError, match="holds a TorchTensor"):
        open_state_dict(file)


class Evil:
    """Pickles as a call of os.mkdir."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_is_never_run(torch_program: Program, file: Path, tmp_path: Path, protocol: int) -> None:
    torch_program.archive(file, pickle.dumps({"fc1.weight": Evil(tmp_path / "harm")}, protocol), {})
    with pytest.raises(FileError, match="torch file"):
        open_state_dict(file)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("os", "system"),
        ("posix", "system"),
        ("torch", "load"),
        ("torch", "FloatStorage.__init__"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.nn.modules.linear", "Linear"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.__init__"),
        ("collections", "namedtuple"),
        ("hotcold.gguf_io.torch_pickle", "TorchTensor"),
    ],
)
def test_other_names_are_refused(
    torch_program: Program, with_value: Callable[[bytes], Path], module: str, name: str
) -> None:
    with pytest.raises(FileError, match=f"asks for {module}.{name}".replace(".", r"\.")):
        open_state_dict(with_value(torch_program.name(module, name)))


def extension(code: int) -> bytes:
    return b"\x82" + bytes([code])


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(extension(1), id="EXT1"),
        pytest.param(b"(ios\nsystem\n", id="INST"),
        pytest.param(b"(cos\nsystem\no", id="OBJ"),
        pytest.param(b"Pstorage\n", id="PERSID"),
        pytest.param(b"\x8c\x02os\x8c\x06system\x93", id="STACK_GLOBAL"),
        pytest.param(b"ccollections\nOrderedDict\n)\x81", id="NEWOBJ"),
    ],
)
def test_other_instructions_are_refused(
    with_value: Callable[[bytes], Path], value: bytes, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(FileError, match=f"pickle instruction {request.node.callspec.id}"):
        open_state_dict(with_value(value))


def test_memo_cannot_claim_memory(with_value: Callable[[bytes], Path]) -> None:
    with pytest.raises(FileError, match="memo 4294967280"):
        open_state_dict(with_value(b"}r" + struct.pack("<I", 2**32 - 16)))


def test_too_many_instructions(with_value: Callable[[bytes], Path]) -> None:
    with pytest.raises(FileError, match="over 100000 pickle instructions"):
        open_state_dict(with_value(b"]" + b"]a" * 100_000))
    with pytest.raises(FileError, match="over 10000 tuples in the pickle"):
        open_state_dict(with_value(b")" + b"\x85" * 10_001))


def test_deep_nesting_is_refused_without_a_crash(with_value: Callable[[bytes], Path]) -> None:
    nested = b")" + b"\x85" * 9_000
    for value in (nested, b"}" + nested + b"Ns", nested + b"Q"):
        with pytest.raises(FileError):
            open_state_dict(with_value(value))


def test_a_checked_tensor_cannot_be_changed(
    torch_program: Program, with_value: Callable[[bytes], Path]
) -> None:
    """BUILD sets attributes: a shape set after the check would read beyond the storage."""
    tensor = torch_program.tensor("0", "FloatStorage", 6, 0, (6,), (1,))
    state = torch_program.dictionary({"shape": torch_program.items(torch_program.integer(10**6))})
    for change in (state, torch_program.items(b"N", state)):
        with pytest.raises(FileError, match="damaged pickle"):
            open_state_dict(with_value(torch_program.dictionary({"w": tensor + change + b"b"})))


def test_an_items_method_from_the_file_is_not_called(
    torch_program: Program, with_value: Callable[[bytes], Path]
) -> None:
    empty = torch_program.name("collections", "OrderedDict") + b")R"
    state = torch_program.dictionary({"items": torch_program.name("torch._utils", "_rebuild_parameter")})
    assert open_state_dict(with_value(empty + state + b"b")) == {}


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (0, (2, 2), (6, 1)),
        (0, (2**40,), (0,)),
        (0, (2**62, 4), (0, 0)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2,), (1, 1)),
        (0, (2**70,), (1,)),
        (0, (1,) * 5, (1,) * 5),
        (7, (1,), (1,)),
    ],
)
def test_a_tensor_stays_inside_its_storage(
    torch_program: Program,
    with_value: Callable[[bytes], Path],
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> None:
    tensor = torch_program.tensor("0", "FloatStorage", 6, offset, shape, strides)
    with pytest.raises(FileError, match="torch file"):
        open_tensor(with_value(tensor))


@pytest.mark.parametrize(("key", "n_elements"), [("0", 7), ("0", 5), ("1", 6), ("../data.pkl", 6), ("0", -6)])
def test_a_storage_is_one_record(
    torch_program: Program, with_value: Callable[[bytes], Path], key: str, n_elements: int
) -> None:
    tensor = torch_program.tensor(key, "FloatStorage", n_elements, 0, (1,), (1,))
    with pytest.raises(FileError, match="storage"):
        open_tensor(with_value(tensor))


def test_zip_bomb(torch_program: Program, file: Path) -> None:
    program = torch_program.whole(torch_program.tensor("0", "FloatStorage", 2**24, 0, (2**24,), (1,)))
    torch_program.archive(file, program, {"0": bytes(2**26)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(FileError, match="compressed"):
        open_tensor(file)


def test_overlapping_records(torch_program: Program, file: Path) -> None:
    """A record counted twice in the directory would let a small file expand."""
    torch_program.save(file, {"a": np.zeros(50_000, np.float32), "b": np.zeros(1, np.float32)})
    content = bytearray(file.read_bytes())
    entries = [i for i in range(len(content)) if content[i : i + 4] == b"PK\x01\x02"]
    first = next(i for i in entries if b"data/0" in content[i + 46 : i + 66])
    second = next(i for i in entries if b"data/1" in content[i + 46 : i + 66])
    content[second + 16 : second + 28] = content[first + 16 : first + 28]
    file.write_bytes(content)
    with pytest.raises(FileError, match="records of"):
        open_state_dict(file)


@pytest.mark.parametrize("name", ["../evil", "/evil", "archive/../../evil", "archive\\evil", "C:evil"])
def test_path_traversal(torch_program: Program, file: Path, tmp_path: Path, name: str) -> None:
    torch_program.save(file, {"a": np.zeros(1, np.float32)})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(FileError, match="plain relative name"):
        open_state_dict(file)
    assert list(tmp_path.iterdir()) == [file]


def test_two_programs(torch_program: Program, file: Path) -> None:
    torch_program.save(file, {"a": np.zeros(1, np.float32)})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("other/data.pkl", b"x")
    with pytest.raises(FileError, match=r"2 records NAME/data\.pkl"):
        open_state_dict(file)


def test_big_endian(torch_program: Program, file: Path) -> None:
    torch_program.save(file, {"a": np.zeros(1, np.float32)})
    file.write_bytes(file.read_bytes().replace(b"little", b"big   "))
    with pytest.raises(FileError):
        open_state_dict(file)


def test_every_changed_byte(torch_program: Program, file: Path) -> None:
    """Any single damaged byte gives a FileError or a tensor, nothing else."""
    torch_program.save(file, {"a": np.arange(3, dtype=np.float32)})
    content = file.read_bytes()
    refused = 0
    for position in range(len(content)):
        for value in (0, content[position] ^ 0x01, 0xFF):
            file.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
            try:
                for tensor in open_state_dict(file).values():
                    tensor.read()
            except FileError:
                refused += 1
    assert refused > len(content)


def test_the_old_format_and_other_files(file: Path) -> None:
    for content in (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", b"<html>"):
        file.write_bytes(content)
        with pytest.raises(FileError, match="no zip archive"):
            open_state_dict(file)
    with pytest.raises(FileError, match="No such file"):
        open_state_dict(file.parent / "missing.pt")
    with pytest.raises(FileError, match="Is a directory"):
        open_state_dict(file.parent)
