"""Where a command's text comes from: an option, a file, or a pipe."""

import sys
from pathlib import Path

from hotcold.errors import FileError, SettingError

MAX_PROMPT_BYTES = 1 << 28


def read_prompt(prompt: str | None, file: Path | None) -> bytes:
    """The prompt of -p, of the file of -f, or of a pipe, without a last newline of the latter two.

    Raises:
        SettingError: none of them, or -p and -f.
        FileError: a file that cannot be read.
    """
    if prompt is not None:
        if file is not None:
            raise SettingError("prompt", "both -p and -f", "one of them")
        return prompt.encode("utf-8", "surrogateescape")
    if file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise SettingError("prompt", "none", "-p TEXT, -f FILE or a pipe", "such as -p 'Once upon a time'")
    data = read_file(file)
    if not data:
        where = "nothing came from the pipe" if file is None or str(file) == "-" else f"{file} is empty"
        raise SettingError("prompt", where, next_step="give some text, or -p TEXT")
    return data.removesuffix(b"\n").removesuffix(b"\r")


def read_file(file: Path | None) -> bytes:
    """All bytes of a file, or of standard input for None and for "-".

    Raises:
        FileError: it cannot be read, or is too long.
    """
    try:
        if file is None or str(file) == "-":
            data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
        else:
            with file.open("rb") as stream:
                data = stream.read(MAX_PROMPT_BYTES + 1)
    except OSError as error:
        raise FileError(
            "prompt file", file, error.strerror or "cannot be read", "name a text file"
        ) from error
    if len(data) > MAX_PROMPT_BYTES:
        raise FileError("prompt file", file or "-", f"at most {MAX_PROMPT_BYTES} bytes", "shorten it")
    return data
