"""Damaged and hostile tables of tensors, and data: each is refused at once, naming field, value and bound."""

import os
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from gguf_refusals import U32_MAX, U63, U64_MAX, Build, Refused, T, V, small, u32, with_tensors

from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.errors import (
    TensorDataError,
    TensorTableError,
    TruncatedError,
)


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
