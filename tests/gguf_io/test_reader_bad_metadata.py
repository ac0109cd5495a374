"""Damaged and hostile files in their metadata: each is refused at once, naming the field, its value and the bound."""

import os
from pathlib import Path

import pytest
from gguf import GGUFValueType
from gguf_refusals import (
    U32_MAX,
    U63,
    U64_MAX,
    Build,
    Refused,
    V,
    cut_if,
    small,
    u32,
    u64,
    with_pairs,
    with_tensors,
)

from hotcold.gguf_io.errors import (
    CountError,
    MetadataError,
    TensorTableError,
    TruncatedError,
)


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
