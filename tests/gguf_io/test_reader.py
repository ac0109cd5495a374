"""Good files: read as the gguf package reads them, and what is unusual and valid."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.gguf_io.errors import MetadataError
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


def test_there_are_real_files() -> None:
    assert len(FILES) > 20


@pytest.mark.sample(3)
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
