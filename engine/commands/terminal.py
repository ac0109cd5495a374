"""Standard output and standard error: whatever they are, a command prints, or says in a line why not."""

import codecs
import contextlib
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, cast

from hotcold.errors import FileError

if TYPE_CHECKING:
    from rich.console import Console

STAND_INS = dict.fromkeys("▋▊▉█", "#") | dict.fromkeys("▏▎▍▌", ":") | {"…": ".", "±": "~", "\ufffd": "?"}


class OutputError(FileError):
    """Standard output is closed, or cannot be written to."""


def write(text: str) -> None:
    """Text to standard output, at once.

    Raises:
        OutputError: it is closed, or cannot be written to.
        BrokenPipeError: nobody reads on.
    """
    if sys.stdout is None:
        raise OutputError("standard output", "closed", next_step="leave it open")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritable(error) from error


def write_line(text: str) -> None:
    """A line to standard output; see `write`."""
    write(text + "\n")


def unwritable(error: OSError) -> OutputError:
    """What is said when standard output cannot be written to."""
    reason = error.strerror or str(error)
    return OutputError("standard output", None, reason, "send it where there is room")


class Output(io.TextIOBase):
    """Standard output as other libraries write to it: with `write` and its errors."""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a variable in typeshed
        """Of standard output."""
        return sys.stdout.encoding if sys.stdout is not None else "utf-8"

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return sys.stdout is not None and sys.stdout.isatty()

    def write(self, text: str) -> int:
        """Print it, but for the spaces that fill up the ends of a table's lines."""
        write(re.sub(" +$", "", text, flags=re.MULTILINE))
        return len(text)


def console() -> "Console":
    """For tables on standard output: of the terminal's width, else 80 columns."""
    from rich.console import Console

    class Stdout(Console):
        """Lets whoever called see that nobody reads on, where rich would end the process with 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    output = Output()
    return Stdout(file=cast(IO[str], output), width=None if output.isatty() else 80, highlight=False)


def columns(stream: IO[str] | None = None) -> int:
    """How wide text on a stream, or standard output, is: as the terminal, else 80."""
    stream = cast(IO[str], Output()) if stream is None else stream
    return shutil.get_terminal_size().columns if is_terminal(stream) else 80


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether somebody looks at it; one that is closed is none."""
    return stream is not None and not stream.closed and stream.isatty()


def prepare_streams() -> None:
    """Make standard output take any text, and standard error be there; no file becomes one of them.

    A character that the encoding lacks comes out as one that looks like it, or a question mark; bytes of a
    file's name that are no UTF-8 come out as they are.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would have its number
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("hotcold", _stand_in)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="hotcold")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives


def _stand_in(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return b"".join(map(_stand_in_for, lacking)), error.end


def _stand_in_for(character: str) -> bytes:
    if "\udc80" <= character <= "\udcff":  # a byte of a name, by PEP 383
        return bytes([ord(character) - 0xDC00])
    return STAND_INS.get(character, "?").encode()


def forget(stream: IO[str] | None) -> None:
    """Let what a stream still holds go nowhere, so that Python's last flush fails no more."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        number = cast(IO[str], stream).fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


@contextlib.contextmanager
def progress_bar(shown: bool, counted: str = "bytes") -> Iterator[Callable[[str, int, int], None] | None]:
    """A function that hears (name, done, in all) and draws a bar on stderr; None if not shown.

    Nothing is drawn before it hears something.
    """
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    amount = DownloadColumn() if counted == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    with contextlib.ExitStack() as drawn:

        def advance(name: str, done: int, total: int) -> None:
            if not bar.tasks:
                bar.add_task("")
                drawn.enter_context(bar)
            bar.update(bar.tasks[0].id, description=name.replace("[", r"\["), completed=done, total=total)

        yield advance
