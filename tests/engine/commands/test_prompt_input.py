"""Where a text comes from, and what of it is text: marks, last newlines, escapes."""

import codecs
import io
from pathlib import Path

import pytest
from commands import run

from hotcold.engine.commands.prompt_input import read_file, read_prompt, unescaped, unescaped_text
from hotcold.errors import FileError


def test_bytes_of_the_command_line_are_utf8() -> None:
    """Python hands bytes that are no characters over as lone surrogates."""
    assert read_prompt("né\udcff", None) == b"n\xc3\xa9\xff"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfno\xc3\xabl", "noël".encode()),
        (codecs.BOM_UTF16_LE + "noël".encode("utf-16-le"), "noël".encode()),
        (codecs.BOM_UTF16_BE + "noël 👍".encode("utf-16-be"), "noël 👍".encode()),
        (codecs.BOM_UTF32_LE + "noël".encode("utf-32-le"), "noël".encode()),
        (codecs.BOM_UTF32_BE + "noël".encode("utf-32-be"), "noël".encode()),
        (b"no \xef\xbb\xbf mark", b"no \xef\xbb\xbf mark"),
        (b"\xff\xfeodd", b"\xff\xfeodd"),  # no UTF-16: bytes as they are
        (b"\xff", b"\xff"),
    ],
)
def test_a_byte_order_mark_is_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, text: bytes
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(data)
    assert read_file(path) == read_prompt(None, path) == text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert read_prompt(None, Path("-")) == text


def test_nor_is_one_that_a_shell_took_from_a_file() -> None:
    assert read_prompt("\ufeffnoël", None) == "noël".encode()


@pytest.mark.parametrize(
    ("data", "usual"),
    [(b"a\n", b"a"), (b"a\r\n", b"a"), (b"a\n\n", b"a\n"), (b"a", b"a"), (b"a\r", b"a\r"), (b"\n", b"")],
)
def test_the_last_newline_is_left_out_or_kept(tmp_path: Path, data: bytes, usual: bytes) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(data)
    assert read_prompt(None, path) == usual
    assert read_prompt(None, path, keep_newline=True) == data


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (rb"a\nb", b"a\nb"),
        (rb"\t\r\n", b"\t\r\n"),
        (rb"\\n", rb"\n"),
        (rb"\\\n", b"\\\n"),
        (rb"\x41\xc3\xa9", "Aé".encode()),
        (rb"\'\"", b"'\""),
        (rb"\q \x4 \xg1", rb"\q \x4 \xg1"),
        (b"a\\", b"a\\"),
    ],
)
def test_escapes(written: bytes, meant: bytes) -> None:
    assert unescaped(written) == meant
    assert read_prompt(written.decode(), None, escapes=True) == meant
    assert read_prompt(written.decode(), None) == written


def test_escapes_of_a_stop_string_are_text() -> None:
    assert unescaped_text(r"é\xc3\xa9\n") == "éé\n"
    assert unescaped_text(r"\xff") == "\ufffd"


def test_escapes_are_not_for_files(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(rb"a\nb")
    assert read_prompt(None, path, escapes=True) == rb"a\nb"


def test_a_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(FileError, match="standard input: closed"):
        read_file(Path("-"))


def test_a_perplexity_is_told_in_80_columns(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("She said that she was very much obliged to him for it. " * 4)
    lines = run("perplexity", "-f", str(text), "-c", "32").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("1 chunk of 32, " in line for line in lines)


def test_the_text_of_a_perplexity_is_no_prompt() -> None:
    result = run("perplexity", "-f", "/no/such/text")
    assert result.returncode == 3
    assert "text file: /no/such/text (No such file or directory); name a text file" in result.stderr
