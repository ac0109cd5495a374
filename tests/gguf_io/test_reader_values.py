"""What an open file gives: strings, typed metadata, arrays that are views of the map."""

import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType
from numpy.typing import NDArray

from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.gguf_io.errors import MetadataError, TensorTableError, TruncatedError
from hotcold.gguf_io.fields import StringArray

V = GGUFValueType
Build = Any  # the class behind the fixture gguf_bytes
DATA = Path(__file__).parents[1] / "data"
FILES = sorted(DATA.glob("*/*.gguf"))


def opened(path: Path, raw: bytes) -> GGUFFile:
    path.write_bytes(raw)
    return open_gguf(path)


@pytest.fixture
def pieces(gguf_bytes: Build, tmp_path: Path) -> StringArray:
    texts = b"".join(map(gguf_bytes.text, (b"a", b"", "▁c".encode(), b"dd")))
    file = opened(tmp_path / "x", gguf_bytes(pairs=(gguf_bytes.array(b"k", V.STRING, 4, texts),)).whole())
    strings = file.get_array("k")
    assert isinstance(strings, StringArray)
    return strings


def test_a_string_array_is_a_sequence(pieces: StringArray) -> None:
    expected = [b"a", b"", "▁c".encode(), b"dd"]
    assert list(pieces) == expected
    assert [pieces[i] for i in range(-4, 4)] == expected + expected
    assert pieces[1:3] == expected[1:3]
    assert pieces[::-1] == expected[::-1]
    assert len(pieces) == 4
    assert b"dd" in pieces and b"x" not in pieces


@pytest.mark.parametrize("i", [4, -5])
def test_a_string_array_has_an_end(i: int, pieces: StringArray) -> None:
    with pytest.raises(IndexError):
        pieces[i]


@pytest.fixture
def typed(gguf_bytes: Build, tmp_path: Path) -> GGUFFile:
    pairs = (
        gguf_bytes.pair(b"int", V.INT32, struct.pack("<i", -3)),
        gguf_bytes.pair(b"float", V.FLOAT32, struct.pack("<f", 0.25)),
        gguf_bytes.pair(b"bool", V.BOOL, b"\1"),
        gguf_bytes.pair(b"str", V.STRING, gguf_bytes.text(b"text" * 100)),
        gguf_bytes.array(b"array", V.UINT8, 3, b"\1\2\3"),
        gguf_bytes.array(b"bools", V.BOOL, 2, b"\1\0"),
    )
    return opened(tmp_path / "typed.gguf", gguf_bytes(pairs=pairs).whole())


def test_typed_getters(typed: GGUFFile) -> None:
    assert typed.get_int("int") == -3
    assert typed.get_float("float") == 0.25
    assert typed.get_float("int") == -3.0
    assert typed.get_str("str") == "text" * 100
    assert typed.get_array("array").tolist() == [1, 2, 3]
    assert typed.get_array("bools").dtype == np.bool_


def test_defaults_stand_in_only_for_what_is_missing(typed: GGUFFile) -> None:
    assert typed.get_int("none", 5) == 5
    assert typed.get_float("none", 0.0) == 0.0
    assert typed.get_str("none", "") == ""
    assert typed.get_array("none", ()) == ()
    assert typed.get_int("int", 5) == -3
    with pytest.raises(MetadataError):
        typed.get_int("str", 5)


@pytest.mark.parametrize(
    ("getter", "wrong"),
    [
        ("get_int", ("float", "bool", "str", "array")),
        ("get_float", ("bool", "str", "array")),
        ("get_str", ("int", "float", "bool", "array")),
        ("get_array", ("int", "float", "bool", "str")),
    ],
)
def test_getters_name_what_is_wrong(getter: str, wrong: tuple[str, ...], typed: GGUFFile) -> None:
    for key in wrong:
        with pytest.raises(MetadataError, match=rf"^typed\.gguf: {key}: .* \(must be ") as caught:
            getattr(typed, getter)(key)
        assert len(str(caught.value)) < 200
    with pytest.raises(MetadataError, match=r"metadata key: none \(missing\)"):
        getattr(typed, getter)("none")


def test_a_tensor_that_is_not_there() -> None:
    with open_gguf(FILES[0]) as file, pytest.raises(TensorTableError, match=r"tensor: none \(not among the"):
        file.data("none")


def owner(view: NDArray[Any]) -> object:
    """Whose memory a view shows."""
    base: Any = view
    while isinstance(base, np.ndarray):
        base = base.base
    return base.obj if isinstance(base, memoryview) else base


def test_all_arrays_are_views_of_the_map() -> None:
    with open_gguf(FILES[-1]) as file:
        arrays = [value for value in file.metadata.values() if isinstance(value, np.ndarray)]
        views = arrays + [file.data(name) for name in file.tensors] + [file.parts[0].all_data()]
        assert len(arrays) >= 2
        assert len({id(owner(view)) for view in views}) == 1
        assert isinstance(owner(views[0]), mmap.mmap)
        assert all(np.shares_memory(file.data(name), file.parts[0].all_data()) for name in file.tensors)


def test_nothing_can_be_written(typed: GGUFFile) -> None:
    with open_gguf(FILES[0]) as file:
        views = [file.data(name) for name in file.tensors] + [
            file.parts[0].all_data(),
            typed.get_array("bools"),
        ]
    for view in views:
        with pytest.raises(ValueError, match="read-only"):
            view[:1] = 0
        with pytest.raises(ValueError):
            view.flags.writeable = True


def mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_closing_unmaps_once_the_last_view_is_gone(gguf_bytes: Build, tmp_path: Path) -> None:
    path = tmp_path / "closing.gguf"
    raw = gguf_bytes(tensors=(gguf_bytes.tensor(b"a", (8,)),), data=b"\5" * 32).whole()
    file = opened(path, raw)
    assert mapped(path)
    view = file.data("a")
    file.close()
    assert mapped(path) and view.sum() == 5 * 32
    del view
    assert not mapped(path)
    file.close()


def test_a_file_that_is_cut_after_opening(gguf_bytes: Build, tmp_path: Path) -> None:
    """Reading what is gone would end the process."""
    path = tmp_path / "x"
    raw = gguf_bytes(tensors=(gguf_bytes.tensor(b"a", (8,)),), data=bytes(32)).whole()
    with opened(path, raw) as file:
        os.truncate(path, len(raw) - 1)
        message = rf"x: size: {len(raw) - 1} bytes \(was {len(raw)} when"
        with pytest.raises(TruncatedError, match=message):
            file.data("a")
        with pytest.raises(TruncatedError, match=message):
            file.parts[0].all_data()
