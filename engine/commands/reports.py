"""What a command says beside its output, and how it ends early: one line and an exit code."""

import contextlib
import logging
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterator

import typer

from hotcold.cache_folder import remove_temporary_folder
from hotcold.engine.commands.option_names import in_options
from hotcold.engine.commands.terminal import OutputError, columns, forget, is_terminal
from hotcold.errors import INTERRUPTED, HotcoldError

UNEXPECTED, DOES_NOT_FIT = 1, 4


def note(text: str) -> None:
    """Something beside the output, on stderr: on a terminal in lines of its width, else one line, for programs."""
    line = f"hotcold: {text}"
    if is_terminal(sys.stderr):
        width = columns(sys.stderr)
        line = textwrap.fill(
            line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    _say(line)


def note_error(text: str) -> None:
    """What is wrong, in one line wherever it goes: people search for it, and send it to each other."""
    _say(f"hotcold: error: {text}")


def _say(line: str) -> None:
    """Print on stderr; where that cannot be written to, nobody hears."""
    try:
        typer.echo(line, err=True)
    except (OSError, ValueError):
        forget(sys.stderr)


@contextlib.contextmanager
def reported(command: type | None = None) -> Iterator[None]:
    """Turn what ends a command early into one line on stderr and an exit code.

    Args:
        command: whose options errors name, in place of the library's keywords.
    """
    try:
        yield
    except typer.Exit:
        raise
    except HotcoldError as error:
        if isinstance(error, OutputError):
            forget(sys.stdout)
        _fail(str(error) if command is None else in_options(error, command), error.exit_code)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        forget(sys.stdout)  # nobody reads on
        raise typer.Exit(0) from None
    except MemoryError as error:
        _fail(f"memory: used up ({error}); lower -c or -b, or take a smaller model", DOES_NOT_FIT)
    except Exception as error:  # noqa: BLE001 - the last resort: a user gets one line, not a traceback
        text = f"unexpected {type(error).__name__}: {error}; HOTCOLD_DEBUG=1 shows where"
        _fail(" ".join(text.split()), UNEXPECTED)


def _fail(text: str, exit_code: int) -> None:
    if os.environ.get("HOTCOLD_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    note_error(text)
    raise typer.Exit(exit_code) from None


class LoggedNotes(logging.Handler):
    """What hotcold's loggers warn of, in the form of all other lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        note(f"warning: {record.getMessage()}")


@contextlib.contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the process at once: for what would lose the exception, as a compiler's callbacks do."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        yield
        return

    def end(number: int, frame: object) -> None:
        remove_temporary_folder()
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def unwound() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the command as an exception, so that temporary files go."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    both = (signal.SIGTERM, signal.SIGHUP)
    wanted = [number for number in both if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores one
    for number in wanted:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in wanted:
            signal.signal(number, signal.SIG_DFL)
