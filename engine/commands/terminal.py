"""What a command draws on a terminal while it works."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from hotcold.errors import FileError


@contextlib.contextmanager
def progress_bar(shown: bool, counted: str = "bytes") -> Iterator[Callable[[str, int, int], None] | None]:
    """A function that hears (name, done, in all) and draws a bar on stderr; None if not shown."""
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
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")

        def advance(name: str, done: int, total: int) -> None:
            bar.update(task, description=name.replace("[", r"\["), completed=done, total=total)

        yield advance


def replace_unprintable() -> None:
    """Let characters that standard output cannot encode come out as question marks."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


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
        reason = error.strerror or str(error)
        raise OutputError("standard output", None, reason, "send it where there is room") from error
