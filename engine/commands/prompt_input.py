"""Where a command's text comes from: an option, a file, or a pipe; and what of it is text."""

import codecs
import re
import sys
from pathlib import Path

from hotcold.errors import FileError, SettingError
from hotcold.text_file import read_bytes

MAX_PROMPT_BYTES = 1 << 28
BYTE_ORDER_MARK = "\ufeff"
WIDE_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([nrt'\"\\]))")
ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def read_prompt(
    prompt: str | None, file: Path | None, *, escapes: bool = False, keep_newline: bool = False
) -> bytes:
    """The prompt of -p, of the file of -f, or of a pipe.

    Args:
        escapes: whether a backslash and a letter in -p stand for another character; see `unescaped`.
        keep_newline: whether the last newline of a file or a pipe is text.

    Raises:
        SettingError: none of them, or -p and -f.
        FileError: a file that cannot be read.
    """
    if prompt is not None:
        if file is not None:
            raise SettingError("prompt", "both -p and -f", "one of them", "leave out -p or -f")
        data = prompt.removeprefix(BYTE_ORDER_MARK).encode("utf-8", "surrogateescape")
        return unescaped(data) if escapes else data
    if file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise SettingError("prompt", "none", "-p TEXT, -f FILE or a pipe", "such as -p 'Once upon a time'")
    data = read_file(file)
    if not data:
        where = "nothing came from the pipe" if file is None or str(file) == "-" else f"{file} is empty"
        raise SettingError("prompt", where, next_step="give some text, or -p TEXT")
    return data if keep_newline else without_last_newline(data)


def read_file(file: Path | None, what: str = "prompt file") -> bytes:
    """The text of a file, or of standard input for None and for "-"; see `without_mark`.

    Args:
        what: the file is, for errors.

    Raises:
        FileError: it cannot be read, or is too long.
    """
    if file is not None and str(file) != "-":
        return without_mark(read_bytes(file, MAX_PROMPT_BYTES, what))
    if sys.stdin is None:
        raise FileError("standard input", "closed", next_step="name a file, or use a pipe")
    try:
        data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    except OSError as error:
        raise FileError(
            "standard input", error.strerror or "cannot be read", next_step="name a file"
        ) from error
    if len(data) > MAX_PROMPT_BYTES:
        raise FileError(what, "-", f"at most {MAX_PROMPT_BYTES} bytes", "shorten it")
    return without_mark(data)


def without_mark(data: bytes) -> bytes:
    """Text as UTF-8, without a byte-order mark in front; UTF-16 and UTF-32 are known by theirs."""
    for mark, encoding in WIDE_MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding).encode()
            except UnicodeError:
                continue
    return data.removeprefix(codecs.BOM_UTF8)


def without_last_newline(data: bytes) -> bytes:
    """Text without the newline that editors and `echo` put at its end, in either form."""
    return data[:-1].removesuffix(b"\r") if data.endswith(b"\n") else data


def unescaped(data: bytes) -> bytes:
    r"""Text whose ``\n``, ``\r``, ``\t``, ``\\``, ``\'``, ``\"`` and ``\xHH`` stand for what they do in C.

    Another letter behind a backslash stays as it is, with the backslash.
    """

    def meant(match: re.Match[bytes]) -> bytes:
        if match[1] is not None:
            return bytes([int(match[1], 16)])
        return ESCAPED.get(match[2], match[2])

    return ESCAPE.sub(meant, data)


def unescaped_text(text: str) -> str:
    r"""The same for a text; bytes that ``\xHH`` makes and that are no UTF-8 become U+FFFD, as in an answer."""
    return unescaped(text.encode("utf-8", "surrogateescape")).decode(errors="replace")
