"""What a good file holds: the gguf package is the oracle, and nothing of the file is copied."""

import mmap
import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.gguf_io.errors import MetadataError, TensorTableError, TruncatedError
from hotcold.gguf_io.fields import StringArray

T, V = GGMLQuantizationType, GGUFValueType
Build = Any  # the class behind the fixture gguf_bytes

DATA = Path(__file__).parents[1] / "data"
FILES = sorted(DATA.glob("*/*.gguf"))
GPU_INDEX = DATA / "powerinfer" / "llama-f16.powerinfer.gguf.generated.gpuidx"

# Of each type a value that another width, sign or byte order would change.
NUMBERS: dict[GGUFValueType, Any] = {
    V.UINT8: 200,
    V.INT8: -100,
    V.UINT16: 60_000,
    V.INT16: -30_000,
    V.UINT32: 4_000_000_001,
    V.INT32: -2_000_000_001,
    V.UINT64: 2**64 - 2,
    V.INT64: -(2**63) + 1,
    V.FLOAT32: 0.15625,
    V.FLOAT64: 0.1,
    V.BOOL: True,
}


def opened(path: Path, raw: bytes) -> GGUFFile:
    path.write_bytes(raw)
    return open_gguf(path)


def plain(value: Any) -> Any:
    """As the gguf package gives values: lists, and strings as str."""
    if isinstance(value, StringArray):
        return [item.decode() for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def same_as_oracle(file: GGUFFile, oracle: GGUFReader) -> None:
    fields = {name: f.contents() for name, f in oracle.fields.items() if not name.startswith("GGUF.")}
    assert {key: plain(value) for key, value in file.metadata.items()} == fields
    assert list(file.metadata) == list(fields)
    assert list(file.tensors) == [t.name for t in oracle.tensors]
    for tensor in oracle.tensors:
        info = file.tensors[tensor.name]
        assert (info.type, info.offset) == (tensor.tensor_type, tensor.data_offset)
        assert (info.ne, info.n_bytes) == (tuple(tensor.shape.tolist()), tensor.n_bytes)
        assert info.shape == info.ne[::-1]
        assert file.data(tensor.name).tobytes() == tensor.data.tobytes()
        assert file.data(tensor.name).shape == (info.n_rows, info.row_bytes)


# Files by others.


def test_there_are_real_files() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_real_files_read_like_the_gguf_package(path: Path, tmp_path: Path) -> None:
    """The package knows no PWRI: it reads a copy with the other magic."""
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(b"GGUF" + path.read_bytes()[4:])
    with open_gguf(path) as file:
        same_as_oracle(file, GGUFReader(copy))
        assert file.is_powerinfer == ("powerinfer" in path.name)
        assert file.magic == ("PWRI" if file.is_powerinfer else "GGUF")
        assert (file.version, file.alignment, file.warnings) == (3, 32, ())
        assert (file.path, file.size) == (path, path.stat().st_size)


def write_all_types(path: Path) -> None:
    """By the gguf package: a scalar and an array of each type, and tensors of several shapes."""
    writer = GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    for kind, number in NUMBERS.items():
        writer.add_key_value(f"scalar.{kind.name}", number, kind)
        writer.add_key_value(f"array.{kind.name}", [number, 0, 1], V.ARRAY, kind)
    writer.add_string("text", "née ▁")
    writer.add_array("texts", ["", "a", "▁b"])
    for rows in (3, 1, 5):
        writer.add_tensor(f"f32.{rows}", np.arange(rows * 7, dtype=np.float32).reshape(rows, 7))
    writer.add_tensor("four", np.ones((2, 3, 4, 5), np.float16))
    writer.add_tensor("packed", np.ones((4, 34), np.uint8), raw_dtype=T.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(("magic", "version"), [("GGUF", 3), ("GGUF", 2), ("PWRI", 3), ("PWRI", 2)])
def test_what_the_gguf_package_writes(magic: str, version: int, tmp_path: Path) -> None:
    """Version 2 has the same layout as 3."""
    path = tmp_path / "written.gguf"
    write_all_types(path)
    start = magic.encode() + struct.pack("<I", version)
    with opened(tmp_path / "changed", start + path.read_bytes()[8:]) as file:
        same_as_oracle(file, GGUFReader(path))
        assert (file.magic, file.version, file.alignment) == (magic, version, 64)
        for kind, number in NUMBERS.items():
            value, array = file.metadata[f"scalar.{kind.name}"], file.metadata[f"array.{kind.name}"]
            assert value == number and type(value) is type(number)
            assert isinstance(array, np.ndarray) and array.tolist() == [number, 0, 1]
        assert (file.tensors["four"].shape, file.tensors["four"].n_rows) == ((2, 3, 4, 5), 24)
        assert file.tensors["packed"].ne == (32, 4)


def test_a_gpu_index_of_powerinfer() -> None:
    """Type 18 of these two kinds of tensors is I32."""
    with open_gguf(GPU_INDEX) as file:
        assert file.get_str("general.architecture") == "generic.gpu_index"
        for i in range(file.get_int("generic.gpu_index.block_count")):
            index, bucket = (file.tensors[f"blk.{i}.{name}"] for name in ("gpu_idx", "gpu_bucket"))
            assert index.type == bucket.type == T.I32
            on_gpu = np.flatnonzero(file.data(index.name).view("<i4"))
            assert file.data(bucket.name).view("<i4").reshape(-1).tolist() == on_gpu.tolist()
            assert len(on_gpu) > 0


def test_an_empty_bucket(gguf_bytes: Build, tmp_path: Path) -> None:
    """PowerInfer writes one where a layer has no neuron on the GPU; it shares its offset with the next."""
    names = (b"blk.0.gpu_idx", b"blk.0.gpu_bucket", b"blk.1.gpu_idx", b"blk.1.gpu_bucket")
    shapes = ((8, 0), (0, 32), (8, 32), (0, 64))
    tensors = tuple(gguf_bytes.tensor(n, (ne,), 18, at) for n, (ne, at) in zip(names, shapes, strict=True))
    raw = gguf_bytes(tensors=tensors, data=bytes(64), magic=b"PWRI").whole()
    with opened(tmp_path / "index", raw) as file:
        assert [info.ne for info in file.tensors.values()] == [(8,), (0,), (8,), (0,)]
        assert [info.n_bytes for info in file.tensors.values()] == [32, 0, 32, 0]
        assert file.data("blk.1.gpu_bucket").shape == (1, 0)
        assert file.data("blk.1.gpu_idx").shape == (1, 32)


@pytest.mark.parametrize(("magic", "name"), [(b"PWRI", b"blk.0.ffn_up.weight"), (b"GGUF", b"blk.0.gpu_idx")])
def test_type_18_elsewhere(magic: bytes, name: bytes, gguf_bytes: Build, tmp_path: Path) -> None:
    tensor = gguf_bytes.tensor(name, (256,), 18)
    with opened(tmp_path / "x", gguf_bytes(tensors=(tensor,), data=bytes(98), magic=magic).whole()) as file:
        assert file.tensors[name.decode()].type == T.IQ3_XXS


# Unusual and valid.


@pytest.mark.parametrize("magic", [b"GGUF", b"PWRI"])
@pytest.mark.parametrize("version", [2, 3])
def test_a_header_alone(magic: bytes, version: int, gguf_bytes: Build, tmp_path: Path) -> None:
    with opened(tmp_path / "x", gguf_bytes(magic=magic, version=version).whole()) as file:
        assert (file.size, file.metadata, file.tensors, file.warnings) == (24, {}, {}, ())
        assert file.parts[0].all_data().size == 0


@pytest.mark.parametrize("n_padding", [0, 1, 26])
def test_metadata_without_tensors(n_padding: int, gguf_bytes: Build, tmp_path: Path) -> None:
    """38 bytes; 26 more are the padding up to the alignment."""
    raw = gguf_bytes(pairs=(gguf_bytes.pair(b"k", V.UINT8, b"\7"),)).whole()
    with opened(tmp_path / "x", raw + bytes(n_padding)) as file:
        assert (file.metadata, file.tensors, file.warnings) == ({"k": 7}, {}, ())


@pytest.mark.parametrize("n_padding", [0, 1, 28])
def test_padding_after_the_last_tensor_may_be_missing(
    n_padding: int, gguf_bytes: Build, tmp_path: Path
) -> None:
    raw = gguf_bytes(tensors=(gguf_bytes.tensor(b"a", (1,)),), data=b"\0\0\x80\x3f").whole()
    with opened(tmp_path / "x", raw + bytes(n_padding)) as file:
        assert file.data("a").view("<f4").tolist() == [[1.0]]
        assert file.warnings == ()


def test_what_follows_the_end_is_named_and_not_read(gguf_bytes: Build, tmp_path: Path) -> None:
    raw = gguf_bytes(tensors=(gguf_bytes.tensor(b"a", (8,)),), data=bytes(32)).whole()
    with opened(tmp_path / "x", raw + b"\xff" * 5) as file:
        assert file.warnings == ("x: 5 bytes after the end are not read",)
        assert file.data("a").max() == file.parts[0].all_data().max() == 0


def test_what_follows_may_start_like_a_name(gguf_bytes: Build, tmp_path: Path) -> None:
    """No pair or tensor: no type and no number of dimensions is 13."""
    follows = gguf_bytes.text(b"name") + struct.pack("<I", 13)
    with opened(tmp_path / "x", gguf_bytes().whole() + follows.ljust(32, b"\0")) as file:
        assert file.warnings == ("x: 24 bytes after the end are not read",)


@pytest.mark.parametrize("alignment", [1, 8, 2**20])
def test_alignments(alignment: int, gguf_bytes: Build, tmp_path: Path) -> None:
    pair = gguf_bytes.pair(b"general.alignment", V.UINT32, struct.pack("<I", alignment))
    second = max(alignment, 4)
    tensors = (gguf_bytes.tensor(b"a", (1,)), gguf_bytes.tensor(b"b", (3,), T.I8, second))
    data = b"abcd".ljust(second, b"\0") + b"xyz"
    raw = gguf_bytes(pairs=(pair,), tensors=tensors, data=data, alignment=alignment).whole()
    with opened(tmp_path / "x", raw) as file:
        assert file.alignment == alignment
        assert file.data("a").tobytes() + file.data("b").tobytes() == b"abcdxyz"
        assert file.tensors["a"].offset % alignment == 0


@pytest.mark.parametrize("ne", [(0,), (0, 3), (4, 0), (0, 0, 0, 0), (32, 0, 5)])
def test_an_empty_tensor(ne: tuple[int, ...], gguf_bytes: Build, tmp_path: Path) -> None:
    tensors = (gguf_bytes.tensor(b"empty", ne), gguf_bytes.tensor(b"b", (2,)))
    with opened(tmp_path / "x", gguf_bytes(tensors=tensors, data=bytes(8)).whole()) as file:
        info = file.tensors["empty"]
        assert (info.ne, info.n_bytes, info.row_bytes) == (ne, 0, 4 * ne[0])
        assert file.data("empty").shape == (info.n_rows, 4 * ne[0])
        assert file.data("b").nbytes == 8


@pytest.mark.parametrize("names", [(b"empty", b"full"), (b"full", b"empty")])
def test_an_empty_tensor_before_or_after_another_in_its_place(
    names: tuple[bytes, bytes], gguf_bytes: Build, tmp_path: Path
) -> None:
    tensors = tuple(gguf_bytes.tensor(name, (0,) if name == b"empty" else (8,)) for name in names)
    with opened(tmp_path / "x", gguf_bytes(tensors=tensors, data=b"\1" * 32).whole()) as file:
        assert list(file.tensors) == [name.decode() for name in names]
        assert (file.data("empty").size, file.data("full").sum()) == (0, 32)


def test_tensors_that_lie_in_another_order(gguf_bytes: Build, tmp_path: Path) -> None:
    tensors = (gguf_bytes.tensor(b"second", (1,), offset=32), gguf_bytes.tensor(b"first", (1,)))
    raw = gguf_bytes(tensors=tensors, data=b"aaaa" + bytes(28) + b"bbbb").whole()
    with opened(tmp_path / "x", raw) as file:
        assert list(file.tensors) == ["second", "first"]
        assert file.data("second").tobytes() + file.data("first").tobytes() == b"bbbbaaaa"


def test_names_at_their_bounds(gguf_bytes: Build, tmp_path: Path) -> None:
    pair = gguf_bytes.pair(b"k" * 65_535, V.UINT8, b"\1")
    tensor = gguf_bytes.tensor(b"t" * 63, (1,))
    with opened(tmp_path / "x", gguf_bytes(pairs=(pair,), tensors=(tensor,), data=bytes(4)).whole()) as file:
        assert (list(file.metadata), list(file.tensors)) == (["k" * 65_535], ["t" * 63])


@pytest.mark.parametrize("depth", [1, 7])
def test_arrays_in_arrays(depth: int, gguf_bytes: Build, tmp_path: Path) -> None:
    inner = struct.pack("<IQ2H", V.UINT16, 2, 7, 8) + struct.pack("<IQ", V.STRING, 1) + gguf_bytes.text(b"x")
    outer = struct.pack("<IQ", V.ARRAY, 1) * (depth - 1) + struct.pack("<IQ", V.ARRAY, 2)
    raw = gguf_bytes(pairs=(gguf_bytes.pair(b"k", V.ARRAY, outer + inner),)).whole()
    with opened(tmp_path / "x", raw) as file:
        value = file.get_array("k")
        for _ in range(depth - 1):
            (value,) = value
        numbers, texts = value
        assert (numbers.tolist(), list(texts)) == ([7, 8], [b"x"])


def test_strings_that_are_no_utf8(gguf_bytes: Build, tmp_path: Path) -> None:
    """Pieces of a vocabulary may be any bytes; a text that stands alone comes as bytes, and is no text."""
    pieces = gguf_bytes.text(b"\xff") + gguf_bytes.text(b"")
    pairs = (
        gguf_bytes.pair(b"name", V.STRING, gguf_bytes.text(b"na\xefve\x1b")),
        gguf_bytes.array(b"pieces", V.STRING, 2, pieces),
    )
    with opened(tmp_path / "x", gguf_bytes(pairs=pairs).whole()) as file:
        assert list(file.get_array("pieces")) == [b"\xff", b""]
        assert file.metadata["name"] == b"na\xefve\x1b"
        with pytest.raises(MetadataError, match=r"name: b'na\\xefve\\x1b' \(must be UTF-8 text\)"):
            file.get_str("name")


# Strings and getters.


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
    assert typed.get_bool("bool") is True
    assert typed.get_str("str") == "text" * 100
    assert typed.get_array("array").tolist() == [1, 2, 3]
    assert typed.get_array("bools").dtype == np.bool_


def test_defaults_stand_in_only_for_what_is_missing(typed: GGUFFile) -> None:
    assert typed.get_int("none", 5) == 5
    assert typed.get_float("none", 0.0) == 0.0
    assert typed.get_bool("none", False) is False
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
        ("get_bool", ("int", "float", "str", "array")),
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


# The map.


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


# Large files.


def cost_of_opening(path: Path) -> tuple[GGUFFile, float, int]:
    """The file, CPU seconds, and bytes of memory at the most."""
    start = time.process_time()
    open_gguf(path).close()
    seconds = time.process_time() - start
    tracemalloc.start()
    try:
        return open_gguf(path), seconds, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [V.UINT8, V.INT8, V.BOOL])
def test_a_hundred_million_small_elements(kind: GGUFValueType, gguf_bytes: Build, tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    head = gguf_bytes(pairs=(gguf_bytes.array(b"k", kind, 10**8),)).whole()
    path.write_bytes(head)
    os.truncate(path, len(head) + 10**8)
    file, seconds, peak = cost_of_opening(path)
    assert len(file.get_array("k")) == 10**8
    assert seconds < 1 and peak < 1e6


def test_a_large_tensor_is_not_read(gguf_bytes: Build, tmp_path: Path) -> None:
    """A terabyte opens as fast as a kilobyte."""
    path = tmp_path / "large.gguf"
    raw = gguf_bytes(tensors=(gguf_bytes.tensor(b"a", (2**20, 2**20), T.I8),), data=b"\0").whole()
    path.write_bytes(raw)
    try:
        os.truncate(path, len(raw) - 1 + 2**40)
    except OSError:
        pytest.skip("this file system has no sparse file of a terabyte")
    file, seconds, peak = cost_of_opening(path)
    assert file.data("a").shape == (2**20, 2**20)
    assert seconds < 0.1 and peak < 1e5


def test_strings_of_an_array_stay_in_the_file(gguf_bytes: Build, tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    texts = gguf_bytes.text(b"x" * 10_000) * 1000
    path.write_bytes(gguf_bytes(pairs=(gguf_bytes.array(b"k", V.STRING, 1000, texts),)).whole())
    file, _, peak = cost_of_opening(path)
    assert peak < 1e5
    assert {len(text) for text in file.get_array("k")} == {10_000}


def test_a_large_vocabulary_opens_fast(gguf_bytes: Build, tmp_path: Path) -> None:
    """128,000 pieces with scores and types, and 280,000 merges."""
    pieces = b"".join(gguf_bytes.text(b"piece%d" % i) for i in range(128_000))
    merges = b"".join(gguf_bytes.text(b"left%d right%d" % (i, i)) for i in range(280_000))
    pairs = (
        gguf_bytes.array(b"tokenizer.ggml.tokens", V.STRING, 128_000, pieces),
        gguf_bytes.array(b"tokenizer.ggml.scores", V.FLOAT32, 128_000, bytes(4 * 128_000)),
        gguf_bytes.array(b"tokenizer.ggml.token_type", V.INT32, 128_000, bytes(4 * 128_000)),
        gguf_bytes.array(b"tokenizer.ggml.merges", V.STRING, 280_000, merges),
    )
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(gguf_bytes(pairs=pairs).whole())
    start = time.process_time()
    file = open_gguf(path)
    assert time.process_time() - start < 0.5
    tokens, last = file.get_array("tokenizer.ggml.tokens"), file.get_array("tokenizer.ggml.merges")[-1]
    assert (len(tokens), tokens[127_999], last) == (128_000, b"piece127999", b"left279999 right279999")
