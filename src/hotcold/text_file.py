"""Reads small files: prompts, and texts such as templates, grammars and schemas."""

from pathlib import Path

from hotcold.errors import FileError


def read_bytes(path: Path, most: int, what: str) -> bytes:
    """A file's bytes; arguments and errors as those of `read_text`, whatever the bytes are."""
    try:
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        raise FileError(what, path, error.strerror or "cannot be read", "name a text file") from error
    if len(data) > most:
        raise FileError(what, path, f"at most {most} bytes", "shorten it")
    return data


def read_text(path: Path, most: int, what: str) -> str:
    """A file's text, without a byte-order mark.

    Args:
        most: bytes that it may have; no more are read, however long it is.
        what: the file is, for errors.

    Raises:
        FileError: it cannot be read, is longer, or no UTF-8.
    """
    try:
        return read_bytes(path, most, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(what, path, "no UTF-8", "give a text file") from error
