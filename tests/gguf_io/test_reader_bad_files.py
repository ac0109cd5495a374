"""Damaged and hostile files: head, counts, end. Each is refused at once, naming field, value and bound."""

import os
from pathlib import Path

import pytest
from gguf_refusals import U32_MAX, U63, U64_MAX, Build, Refused, V, cut_if, small, u32, u64

from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.errors import (
    CountError,
    MetadataError,
    NotGGUFError,
    TensorTableError,
    TruncatedError,
    VersionError,
)


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


def test_an_unknown_magic(refused: Refused, tmp_path: Path) -> None:
    bound = r"begins with b'ABC\x1b'; GGUF or PWRI"
    refused(b"ABC\x1b" + bytes(60), NotGGUFError, "model file", tmp_path / "bad.gguf", bound)


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
