"""Damaged and hostile files: each is refused at once, cheaply, naming the field, its value and the bound."""

import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from hotcold.errors import printable
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.errors import (
    CountError,
    GGUFError,
    MetadataError,
    NotGGUFError,
    TensorDataError,
    TensorTableError,
    TruncatedError,
    VersionError,
)

T, V = GGMLQuantizationType, GGUFValueType
Refused = Callable[..., None]
Build = Any  # the class behind the fixture gguf_bytes

U32_MAX, U63, U64_MAX = 2**32 - 1, 2**63, 2**64 - 1


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def cut_if(possible: bool) -> type[GGUFError]:
    """What a number past the end says: that the file is cut, if a whole one could have it."""
    return TruncatedError if possible else CountError


def refusal_of(path: Path) -> GGUFError:
    with pytest.raises(GGUFError) as caught:
        open_gguf(path)
    return caught.value


def check_refusal(path: Path, error: type[GGUFError], field: str, value: object, bound: str) -> None:
    """The class, the text's parts, and the cost."""
    start = time.process_time()
    refusal = refusal_of(path)
    seconds = time.process_time() - start
    tracemalloc.start()
    refusal_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert type(refusal) is error, refusal
    assert field in refusal.thing, refusal
    assert str(refusal.value) == str(value), refusal
    assert bound in refusal.bound and bound, refusal
    assert refusal.next_step, refusal
    assert all(printable(str(part)) in str(refusal) for part in (field, value, bound))
    assert str(refusal).isprintable() and len(str(refusal)) < 600
    assert refusal.exit_code == 3
    assert seconds < 1 and peak < 100e6


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


def small(build: Build, **changes: Any) -> Any:
    """A good file: one pair, two tensors `a` F32 [4, 2] and `b` Q8_0 [32], no padding at the end."""
    fields: dict[str, Any] = {
        "pairs": (build.pair(b"general.architecture", V.STRING, build.text(b"llama")),),
        "tensors": (build.tensor(b"a", (4, 2)), build.tensor(b"b", (32,), T.Q8_0, 32)),
        "data": bytes(32) + b"\x01" * 34,
    }
    return build(**fields | changes)


def with_pairs(build: Build, *pairs: bytes) -> bytes:
    return bytes(build(pairs=pairs).whole())


def with_tensors(build: Build, *tensors: bytes, data: bytes = b"", **changes: Any) -> bytes:
    return bytes(build(tensors=tensors, data=data, **changes).whole())


# The container.


def test_an_empty_file(refused: Refused, tmp_path: Path) -> None:
    refused(b"", TruncatedError, "model file", tmp_path / "bad.gguf", "0 bytes")


def test_a_directory(refused: Refused, tmp_path: Path) -> None:
    refused(tmp_path, NotGGUFError, "model file", tmp_path, "regular file")


def test_a_fifo_does_not_block(refused: Refused, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", NotGGUFError, "model file", tmp_path / "pipe", "regular file")


def test_a_device(refused: Refused) -> None:
    refused(Path("/dev/zero"), NotGGUFError, "model file", "/dev/zero", "regular file")


def test_a_missing_file(refused: Refused, tmp_path: Path) -> None:
    refused(tmp_path / "none", NotGGUFError, "model file", tmp_path / "none", "No such file")


def test_a_path_that_leads_through_a_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"GGUF")
    refused(tmp_path / "file" / "x", NotGGUFError, "model file", tmp_path / "file" / "x", "Not a directory")


def test_a_path_with_nul(refused: Refused) -> None:
    refused(Path("a\0b"), NotGGUFError, "model file", "a\0b", "null")


def test_a_file_that_may_not_be_read(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "closed.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        refused(path, NotGGUFError, "model file", path, "Permission denied")
    finally:
        if user == 0:
            os.seteuid(0)


def test_every_prefix_of_a_good_file(gguf_bytes: Build, tmp_path: Path) -> None:
    good = small(gguf_bytes).whole()
    path = tmp_path / "cut.gguf"
    path.write_bytes(good)
    assert list(open_gguf(path).tensors) == ["a", "b"]
    for n_bytes in range(len(good)):
        path.write_bytes(good[:n_bytes])
        with pytest.raises(TruncatedError) as caught:
            open_gguf(path)
        assert "byte" in str(caught.value) and caught.value.bound and caught.value.next_step


@pytest.mark.parametrize("name", ["llama.q8_0", "qwen2.f16", "falcon.norm2.q4_0"])
def test_a_model_that_is_cut_anywhere(name: str, tmp_path: Path) -> None:
    """In its counts, strings, arrays, the table or the data: a copy that broke off is no damage."""
    good = (Path(__file__).parent.parent / "data" / "llamacpp" / f"{name}.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for n_bytes in (*range(0, 200, 7), *range(200, len(good), len(good) // 100), len(good) - 33):
        path.write_bytes(good[:n_bytes])
        with pytest.raises(TruncatedError, match="cut short: download it again"):
            open_gguf(path)


def test_a_prefix_shorter_than_the_magic(refused: Refused, tmp_path: Path) -> None:
    refused(b"GGU", TruncatedError, "model file", tmp_path / "bad.gguf", "only 3 bytes")


def test_a_header_that_ends_in_the_version(refused: Refused) -> None:
    refused(b"GGUF\x03\0", TruncatedError, "version at byte 4", "4 bytes", "2 bytes are left")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (b"<!doctype html><html>", "HTML page"),
        (b"<html><body>", "HTML page"),
        (u64(2) + b"{}", "safetensors"),
        (b"PK\x03\x04" + bytes(20), "PyTorch"),
        (b"\x80\x02}q\0.", "pickle"),
        (b"lmgg" + bytes(20), "GGML"),
        (b"tjgg" + bytes(20), "GGJT"),
        (b"fmgg" + bytes(20), "GGMF"),
    ],
)
def test_another_format_is_named(head: bytes, kind: str, refused: Refused, tmp_path: Path) -> None:
    refused(head, NotGGUFError, "model file", tmp_path / "bad.gguf", kind)


def test_an_unknown_magic(refused: Refused) -> None:
    refused(b"ABC\x1b" + bytes(60), NotGGUFError, "magic", b"ABC\x1b", "GGUF or PWRI")


def test_a_big_endian_magic(gguf_bytes: Build, refused: Refused) -> None:
    refused(gguf_bytes(magic=b"FUGG").whole(), VersionError, "magic", "FUGG", "big-endian")


def test_a_big_endian_version(gguf_bytes: Build, refused: Refused) -> None:
    refused(gguf_bytes(version=3 << 24).whole(), VersionError, "version", 3 << 24, "big-endian")


@pytest.mark.parametrize("version", [0, 1, 4, 2**31 + 1, U32_MAX])
def test_a_version_that_is_unknown(version: int, gguf_bytes: Build, refused: Refused) -> None:
    refused(gguf_bytes(version=version).whole(), VersionError, "version", version, "2 or 3")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("count", [U64_MAX, U63, 4])
def test_more_tensors_than_fit(count: int, version: int, gguf_bytes: Build, refused: Refused) -> None:
    """92 bytes follow the field, an entry takes 33 at least."""
    raw = gguf_bytes(version=version, n_tensors=count).whole() + bytes(92)
    refused(raw, cut_if(count == 4), "number of tensors", count, "at most 3 fit")


@pytest.mark.parametrize("count", [U64_MAX, U63, 6])
def test_more_pairs_than_fit(count: int, gguf_bytes: Build, refused: Refused) -> None:
    """83 bytes follow the field, a pair takes 14 at least."""
    raw = gguf_bytes(n_pairs=count).whole() + bytes(83)
    refused(raw, cut_if(count == 6), "number of metadata pairs", count, "at most 5 fit")


def test_more_tensors_and_pairs_than_any_model_has(
    gguf_bytes: Build, refused: Refused, tmp_path: Path
) -> None:
    """Each becomes an object: a file of some MB could cost a hundred times that."""
    path = tmp_path / "many.gguf"
    for field, counts in {"tensors": {"n_tensors": 65_537}, "metadata pairs": {"n_pairs": 65_537}}.items():
        path.write_bytes(gguf_bytes(**counts).whole())
        os.truncate(path, 2**24)
        refused(path, CountError, f"number of {field}", 65_537, "at most 65536")


def test_one_tensor_too_few(gguf_bytes: Build, refused: Refused) -> None:
    """Else the last entry would be read as the first tensor's data."""
    raw = small(gguf_bytes, n_tensors=1).whole()
    refused(raw, CountError, "number of tensors", "1 and 1", "another one follows at byte")


def test_one_tensor_too_many(gguf_bytes: Build, refused: Refused) -> None:
    raw = small(gguf_bytes, n_tensors=3).whole()
    refused(raw, TensorTableError, "length of name of tensor 2", 0, "1 to 63 bytes")


def test_one_pair_too_few(gguf_bytes: Build, refused: Refused) -> None:
    raw = small(gguf_bytes, n_pairs=0).whole()
    refused(raw, TensorTableError, "tensor general.architecture: dimensions", 8, "1 to 4")


def test_one_pair_too_few_without_tensors(gguf_bytes: Build, refused: Refused) -> None:
    pairs = [gguf_bytes.pair(key, V.UINT32, u32(7)) for key in (b"one", b"two")]
    raw = gguf_bytes(pairs=tuple(pairs), n_pairs=1).whole()
    refused(raw + bytes(32), CountError, "metadata pairs", "0 and 1", "another one follows at byte")


def test_one_pair_too_many(gguf_bytes: Build, refused: Refused) -> None:
    """Tensor `a` reads as a pair of type 2, so what follows is out of step."""
    raw = small(gguf_bytes, n_pairs=2).whole()
    refused(raw, TensorTableError, "length of name of tensor 0", 2 << 48, "1 to 63 bytes")


def test_one_pair_too_many_without_tensors(gguf_bytes: Build, refused: Refused) -> None:
    raw = gguf_bytes(pairs=(gguf_bytes.pair(b"k", V.UINT32, u32(7)),), n_pairs=2).whole() + bytes(20)
    refused(raw, MetadataError, "length of key 1", 0, "1 to 65535 bytes")


# Metadata.


@pytest.mark.parametrize("length", [U64_MAX, U63, 2**48, 65_536, 0])
def test_the_length_of_a_key(length: int, gguf_bytes: Build, refused: Refused) -> None:
    raw = gguf_bytes(pairs=(gguf_bytes.text(b"x" * 70_000, length),)).whole()
    refused(raw, MetadataError, "length of key 0", length, "1 to 65535 bytes")


def test_a_key_past_the_end(gguf_bytes: Build, refused: Refused) -> None:
    raw = with_pairs(gguf_bytes, gguf_bytes.text(b"x" * 20, 21))
    refused(raw, TruncatedError, "key 0 at byte 32", "21 bytes", "20 bytes are left")


def test_a_key_twice(gguf_bytes: Build, refused: Refused) -> None:
    pair = gguf_bytes.pair(b"general.name", V.UINT8, b"\0")
    refused(with_pairs(gguf_bytes, pair, pair), MetadataError, "key 1", "general.name", "occurs twice")


def test_a_long_key_twice_is_shortened(gguf_bytes: Build, refused: Refused) -> None:
    pair = gguf_bytes.pair(b"k" * 60_000, V.UINT8, b"\0")
    refused(with_pairs(gguf_bytes, pair, pair), MetadataError, "key 1", "k" * 57 + "...", "occurs twice")


@pytest.mark.parametrize(
    "name", [b"a\0b", b"a\nb", b"a\x1b[31mb", b"a\x7fb", "a\u202eb".encode(), "a\u2028b".encode()]
)
def test_a_name_that_is_not_printable(name: bytes, gguf_bytes: Build, refused: Refused) -> None:
    pair = with_pairs(gguf_bytes, gguf_bytes.pair(name, V.UINT8, b"\0"))
    tensor = with_tensors(gguf_bytes, gguf_bytes.tensor(name, (1,)), data=bytes(4))
    refused(pair, MetadataError, "key 0", name.decode(), "printable")
    refused(tensor, TensorTableError, "name of tensor 0", name.decode(), "printable")


def test_a_name_that_is_no_utf8(gguf_bytes: Build, refused: Refused) -> None:
    pair = with_pairs(gguf_bytes, gguf_bytes.pair(b"a\xff", V.UINT8, b"\0"))
    tensor = with_tensors(gguf_bytes, gguf_bytes.tensor(b"a\xff", (1,)), data=bytes(4))
    refused(pair, MetadataError, "key 0", b"a\xff", "UTF-8")
    refused(tensor, TensorTableError, "name of tensor 0", b"a\xff", "UTF-8")


@pytest.mark.parametrize("kind", [13, U32_MAX])
def test_an_unknown_value_type(kind: int, gguf_bytes: Build, refused: Refused) -> None:
    refused(
        with_pairs(gguf_bytes, gguf_bytes.pair(b"k", kind, b"\0")),
        MetadataError,
        "type of k",
        kind,
        "0 to 12",
    )


@pytest.mark.parametrize("kind", [k for k in V if k not in (V.STRING, V.ARRAY)])
def test_a_number_cut_short(kind: GGUFValueType, gguf_bytes: Build, refused: Refused) -> None:
    sizes = {"8": 1, "BOOL": 1, "16": 2, "32": 4, "64": 8}
    n_bytes = next(size for end, size in sizes.items() if kind.name.endswith(end))
    raw = with_pairs(gguf_bytes, gguf_bytes.pair(b"key", kind, bytes(n_bytes - 1)))
    if n_bytes == 1:  # the pair itself is then below the smallest size
        refused(raw, TruncatedError, "key at byte", "1 bytes", "0 bytes are left")
    else:
        refused(raw, TruncatedError, "key at byte", f"{n_bytes} bytes", f"{n_bytes - 1} bytes are left")


@pytest.mark.parametrize("value", [2, 255])
def test_a_bool_that_is_neither(value: int, gguf_bytes: Build, refused: Refused) -> None:
    scalar = gguf_bytes.pair(b"flag", V.BOOL, bytes([value]))
    array = gguf_bytes.array(b"flag", V.BOOL, 3, bytes([0, 1, value]))
    refused(with_pairs(gguf_bytes, scalar), MetadataError, "flag", value, "0 or 1")
    refused(with_pairs(gguf_bytes, array), MetadataError, "flag", value, "0 or 1")


@pytest.mark.parametrize("length", [6, U63, U64_MAX])
def test_a_string_past_the_end(length: int, gguf_bytes: Build, refused: Refused) -> None:
    raw = with_pairs(gguf_bytes, gguf_bytes.pair(b"k", V.STRING, gguf_bytes.text(b"hello", length)))
    refused(raw, cut_if(length == 6), "length of k", length, "at most 5 fit")


def test_a_string_that_is_too_long(gguf_bytes: Build, refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    path.write_bytes(with_pairs(gguf_bytes, gguf_bytes.pair(b"k", V.STRING, u64(2**27))))
    os.truncate(path, 2**27 + 100)
    refused(path, CountError, "length of k", 2**27, f"at most {2**26}")


def test_strings_that_are_too_long_together(gguf_bytes: Build, refused: Refused, tmp_path: Path) -> None:
    """Each alone would do; they are copied, so their sum counts."""
    path, half = tmp_path / "long.gguf", 2**25
    with path.open("wb") as stream:
        stream.write(gguf_bytes(n_pairs=3).header())
        for key in (b"a", b"b", b"c"):
            stream.write(gguf_bytes.pair(key, V.STRING, u64(half)))
            stream.truncate(stream.seek(half, os.SEEK_CUR))
    refused(path, CountError, "length of c", half, f"at most 0 more, {2**26} in one file")


@pytest.mark.parametrize("kind", [13, U32_MAX])
def test_an_unknown_element_type(kind: int, gguf_bytes: Build, refused: Refused) -> None:
    raw = with_pairs(gguf_bytes, gguf_bytes.array(b"list", kind, 0))
    refused(raw, MetadataError, "element type of list", kind, "0 to 12")


def test_arrays_nested_deep(gguf_bytes: Build, refused: Refused) -> None:
    deep = (u32(V.ARRAY) + u64(1)) * 10_000 + u32(V.UINT8) + u64(0)
    raw = with_pairs(gguf_bytes, gguf_bytes.pair(b"list", V.ARRAY, deep))
    refused(raw, MetadataError, "nesting of list", "over 8 arrays deep", "at most 8")


def test_too_many_arrays_in_arrays(gguf_bytes: Build, refused: Refused) -> None:
    """Of one array, and summed over a file."""
    empty = u32(V.UINT8) + u64(0)
    wide = gguf_bytes.array(b"wide", V.ARRAY, 4_097, empty * 4_097)
    refused(with_pairs(gguf_bytes, wide), CountError, "length of wide", 4_097, "at most 4096")
    parts = [gguf_bytes.array(b"part%d" % i, V.ARRAY, 2_500, empty * 2_500) for i in range(2)]
    bound = "at most 1596 more, 4096 in one file"
    refused(with_pairs(gguf_bytes, *parts), CountError, "length of part1", 2_500, bound)


def test_more_strings_than_any_model_has(gguf_bytes: Build, refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "strings.gguf"
    path.write_bytes(with_pairs(gguf_bytes, gguf_bytes.array(b"list", V.STRING, 2**22 + 1)))
    os.truncate(path, 2**26)
    refused(path, CountError, "length of list", 2**22 + 1, f"at most {2**22}")


def test_more_strings_in_several_arrays(gguf_bytes: Build, refused: Refused, tmp_path: Path) -> None:
    """4096 strings before leave less than the limit for the next array."""
    first = gguf_bytes.array(b"first", V.STRING, 4096, u64(0) * 4096)
    path = tmp_path / "strings.gguf"
    path.write_bytes(with_pairs(gguf_bytes, first, gguf_bytes.array(b"second", V.STRING, 2**22)))
    os.truncate(path, 2**26)
    bound = f"at most {2**22 - 4096} more, {2**22} in one file"
    refused(path, CountError, "length of second", 2**22, bound)


@pytest.mark.parametrize("kind", list(V))
@pytest.mark.parametrize("length", [U63, U64_MAX])
def test_an_endless_array(kind: GGUFValueType, length: int, gguf_bytes: Build, refused: Refused) -> None:
    raw = with_pairs(gguf_bytes, gguf_bytes.array(b"list", kind, length, bytes(100)))
    refused(raw, CountError, "length of list", length, "in the 100 bytes that follow")


def test_an_array_whose_bytes_do_not_fit(gguf_bytes: Build, refused: Refused) -> None:
    """Its count is below the bytes that are left."""
    raw = with_pairs(gguf_bytes, gguf_bytes.array(b"list", V.FLOAT64, 5_000_000, bytes(5_000_000)))
    refused(raw, TruncatedError, "length of list", 5_000_000, "at most 625000 fit")


def test_more_strings_than_fit(gguf_bytes: Build, refused: Refused) -> None:
    raw = with_pairs(gguf_bytes, gguf_bytes.array(b"list", V.STRING, 11, bytes(80)))
    refused(raw, TruncatedError, "length of list", 11, "at most 10 fit")


def test_strings_that_run_out(gguf_bytes: Build, refused: Refused) -> None:
    strings = gguf_bytes.text(b"x" * 12) + gguf_bytes.text(b"")
    raw = with_pairs(gguf_bytes, gguf_bytes.array(b"list", V.STRING, 3, strings + b"1234567"))
    refused(raw, TruncatedError, "length of string 2 of list", "8 bytes", "7 bytes are left")


@pytest.mark.parametrize("length", [4, U63, U64_MAX])
def test_a_string_of_an_array_past_the_end(length: int, gguf_bytes: Build, refused: Refused) -> None:
    strings = gguf_bytes.text(b"") + gguf_bytes.text(b"abc", length)
    raw = with_pairs(gguf_bytes, gguf_bytes.array(b"list", V.STRING, 2, strings))
    refused(raw, cut_if(length == 4), "length of string 1 of list", length, "3 bytes are left")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (V.INT32, u32(32)),
        (V.UINT64, u64(32)),
        (V.STRING, u64(2) + b"32"),
        (V.BOOL, b"\1"),
        (V.UINT8, b"\x20"),
    ],
)
def test_the_type_of_the_alignment(
    kind: GGUFValueType, value: bytes, gguf_bytes: Build, refused: Refused
) -> None:
    raw = with_pairs(gguf_bytes, gguf_bytes.pair(b"general.alignment", kind, value))
    refused(raw, MetadataError, "type of general.alignment", kind.name, "UINT32")


@pytest.mark.parametrize("alignment", [0, 13, 3, 2**21, 2**31, U32_MAX])
def test_the_alignment(alignment: int, gguf_bytes: Build, refused: Refused) -> None:
    pair = gguf_bytes.pair(b"general.alignment", V.UINT32, u32(alignment))
    alone = gguf_bytes(pairs=(pair,)).whole()
    full = small(gguf_bytes, pairs=(pair,)).whole()
    for raw in (alone, full):
        refused(raw, MetadataError, "general.alignment", alignment, "a power of two up to 1048576")


# The tensor table.


def test_a_tensor_name_past_the_end(gguf_bytes: Build, refused: Refused) -> None:
    raw = with_tensors(gguf_bytes, gguf_bytes.text(b"x" * 40, 41))
    refused(raw, TruncatedError, "name of tensor 0 at byte 32", "41 bytes", "40 bytes are left")


@pytest.mark.parametrize("length", [0, 64, U63, U64_MAX])
def test_the_length_of_a_tensor_name(length: int, gguf_bytes: Build, refused: Refused) -> None:
    raw = with_tensors(gguf_bytes, gguf_bytes.text(b"x" * 64, length))
    refused(raw, TensorTableError, "length of name of tensor 0", length, "1 to 63 bytes")


def test_a_tensor_twice(gguf_bytes: Build, refused: Refused) -> None:
    tensors = [gguf_bytes.tensor(b"a", (8,), offset=offset) for offset in (0, 32)]
    raw = with_tensors(gguf_bytes, *tensors, data=bytes(64))
    refused(raw, TensorTableError, "name of tensor 1", "a", "occurs twice")


@pytest.mark.parametrize("n_dims", [0, 5, 1_000_000, U32_MAX])
def test_the_number_of_dimensions(n_dims: int, gguf_bytes: Build, refused: Refused) -> None:
    raw = with_tensors(gguf_bytes, gguf_bytes.tensor(b"a", (1,) * 5, n_dims=n_dims), data=bytes(64))
    refused(raw, TensorTableError, "tensor a: dimensions", n_dims, "1 to 4")


@pytest.mark.parametrize(
    "ne",
    [
        (U63,),
        (U64_MAX,),
        (1, U64_MAX),
        (U64_MAX,) * 4,
        (2**32, 2**31),
        (2**16,) * 4,
        (4194305, 4194305, 211106198978564),  # wraps to 4
        (0, 2**32, 2**32),
    ],
)
def test_shapes_too_large(ne: tuple[int, ...], gguf_bytes: Build, refused: Refused) -> None:
    raw = with_tensors(gguf_bytes, gguf_bytes.tensor(b"a", ne, T.I8), data=bytes(64))
    refused(raw, TensorTableError, "tensor a: shape", list(ne), f"at most {2**63 - 1} numbers")


@pytest.mark.parametrize(("kind", "block"), [(T.Q8_0, 32), (T.Q4_0, 32), (T.Q6_K, 256)])
def test_a_row_that_is_no_whole_blocks(
    kind: GGMLQuantizationType, block: int, gguf_bytes: Build, refused: Refused
) -> None:
    """The tensor as a whole is a multiple of the block."""
    raw = with_tensors(gguf_bytes, gguf_bytes.tensor(b"a", (block // 2, 2), kind), data=bytes(256))
    refused(
        raw, TensorTableError, "tensor a: row length", block // 2, f"a multiple of {block} in {kind.name}"
    )


@pytest.mark.parametrize("kind", [4, 5, 31, 32, 33, 36, 37, 38, 1000, 2**31, U32_MAX])
def test_a_type_that_is_unknown_or_removed(kind: int, gguf_bytes: Build, refused: Refused) -> None:
    raw = with_tensors(gguf_bytes, gguf_bytes.tensor(b"a", (256,), kind), data=bytes(1024))
    refused(raw, TensorTableError, "tensor a: type id", kind, "known: 0, 1, 2, 3, 6")


@pytest.mark.parametrize(
    ("ne", "kind", "n_bytes"),
    [
        ((2**61,), T.F64, 2**64),
        ((2**62,), T.F16, 2**63),
        ((2**31, 2**31), T.F32, 2**64),
        ((2**62 + 32,), T.Q8_0, (2**62 + 32) // 32 * 34),
    ],
)
def test_sizes_over_all_bounds(
    ne: tuple[int, ...], kind: GGMLQuantizationType, n_bytes: int, gguf_bytes: Build, refused: Refused
) -> None:
    """The numbers can be counted in 64 bits, their bytes wrap or reach far past the end."""
    raw = with_tensors(gguf_bytes, gguf_bytes.tensor(b"a", ne, kind), data=bytes(64))
    if n_bytes >= 2**63:
        refused(raw, TensorTableError, "tensor a: size in bytes", n_bytes, f"at most {2**63 - 1}")
    else:
        refused(raw, TensorDataError, "offset of tensor a", 0, f"its {n_bytes} bytes end at")


def test_two_huge_tensors_over_little_data(gguf_bytes: Build, refused: Refused) -> None:
    half = 2**63 - 32
    tensors = [gguf_bytes.tensor(b"a", (half,), T.I8), gguf_bytes.tensor(b"b", (half,), T.I8, half)]
    raw = with_tensors(gguf_bytes, *tensors, data=bytes(32))
    refused(raw, TensorDataError, "offset of tensor a", 0, f"its {half} bytes end at")


@pytest.mark.parametrize("offset", [1, 16, 33, U64_MAX])
def test_an_offset_off_the_alignment(offset: int, gguf_bytes: Build, refused: Refused) -> None:
    raw = with_tensors(gguf_bytes, gguf_bytes.tensor(b"a", (8,), offset=offset), data=bytes(96))
    refused(raw, TensorDataError, "offset of tensor a", offset, "a multiple of the alignment 32")


def test_offsets_for_another_alignment(gguf_bytes: Build, refused: Refused) -> None:
    pair = gguf_bytes.pair(b"general.alignment", V.UINT32, u32(64))
    raw = small(gguf_bytes, pairs=(pair,), alignment=64).whole() + bytes(64)
    refused(raw, TensorDataError, "offset of tensor b", 32, "a multiple of the alignment 64")


@pytest.mark.parametrize("offset", [U64_MAX - 31, U63, 2**40])
def test_an_offset_past_the_end(offset: int, gguf_bytes: Build, refused: Refused) -> None:
    raw = with_tensors(gguf_bytes, gguf_bytes.tensor(b"a", (8,), offset=offset), data=bytes(96))
    refused(raw, TensorDataError, "offset of tensor a", offset, f"end at {64 + 32 + offset}, the file at 160")


def test_the_last_offset_with_alignment_1(gguf_bytes: Build, refused: Refused) -> None:
    """Offset and size sum to over 2⁶⁴."""
    pair = gguf_bytes.pair(b"general.alignment", V.UINT32, u32(1))
    raw = gguf_bytes(
        pairs=(pair,), tensors=(gguf_bytes.tensor(b"a", (8,), offset=U64_MAX),), data=bytes(32), alignment=1
    ).whole()
    refused(raw, TensorDataError, "offset of tensor a", U64_MAX, f"the file at {len(raw)}")


def test_data_one_byte_short(gguf_bytes: Build, refused: Refused) -> None:
    raw = small(gguf_bytes).whole()
    refused(
        raw[:-1], TruncatedError, "offset of tensor b", 32, f"end at {len(raw)}, the file at {len(raw) - 1}"
    )


def test_two_tensors_in_the_same_place(gguf_bytes: Build, refused: Refused) -> None:
    raw = with_tensors(
        gguf_bytes, gguf_bytes.tensor(b"a", (8,)), gguf_bytes.tensor(b"b", (8,)), data=bytes(64)
    )
    refused(raw, TensorDataError, "offset of tensor b", 0, "expected 32: it overlaps")


def test_tensors_that_overlap_in_part(gguf_bytes: Build, refused: Refused) -> None:
    raw = with_tensors(
        gguf_bytes, gguf_bytes.tensor(b"a", (16,)), gguf_bytes.tensor(b"b", (8,), offset=32), data=bytes(64)
    )
    refused(raw, TensorDataError, "offset of tensor b", 32, "expected 64: it overlaps")


def test_a_hole_between_tensors(gguf_bytes: Build, refused: Refused) -> None:
    raw = with_tensors(
        gguf_bytes, gguf_bytes.tensor(b"a", (8,)), gguf_bytes.tensor(b"b", (8,), offset=64), data=bytes(96)
    )
    refused(raw, TensorDataError, "offset of tensor b", 64, "expected 32: it leaves a hole")


def test_a_hole_before_the_first_tensor(gguf_bytes: Build, refused: Refused) -> None:
    raw = with_tensors(gguf_bytes, gguf_bytes.tensor(b"a", (8,), offset=32), data=bytes(64))
    refused(raw, TensorDataError, "offset of tensor a", 32, "expected 0: it leaves a hole")


@pytest.mark.parametrize("ne", [(8,), (0,)])
def test_data_that_would_start_past_the_end(ne: tuple[int], gguf_bytes: Build, refused: Refused) -> None:
    """The file ends with the table or inside the padding behind it."""
    raw = with_tensors(gguf_bytes, gguf_bytes.tensor(b"a", ne))
    for n_padding in (0, 1, 6):
        end = f"its {ne[0] * 4} bytes end at {64 + ne[0] * 4}, the file at {len(raw) + n_padding}"
        refused(raw + bytes(n_padding), TruncatedError, "offset of tensor a", 0, end)


def test_a_refusal_leaves_nothing_open(gguf_bytes: Build, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(small(gguf_bytes).whole()[:-1])
    for _ in range(2):
        with pytest.raises(TruncatedError):
            open_gguf(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert str(path) not in links
