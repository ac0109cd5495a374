"""What a command says beside its output, and how it ends early: one line and an exit code."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator

import typer

from hotcold.errors import INTERRUPTED, HotcoldError

UNEXPECTED, DOES_NOT_FIT = 1, 4


def note(text: str) -> None:
    """One line on stderr."""
    typer.echo(f"hotcold: {text}", err=True)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn what ends a command early into one line on stderr and an exit code."""
    try:
        yield
    except typer.Exit:
        raise
    except HotcoldError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Nobody reads on: let the interpreter's last flush go nowhere, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except MemoryError as error:
        _fail(f"memory: used up ({error}); lower -c or -b, or take a smaller model", DOES_NOT_FIT)
    except Exception as error:  # noqa: BLE001 - the last resort: a user gets one line, not a traceback
        text = f"unexpected {type(error).__name__}: {error}; HOTCOLD_DEBUG=1 shows where"
        _fail(" ".join(text.split()), UNEXPECTED)


def _fail(text: str, exit_code: int) -> None:
    if os.environ.get("HOTCOLD_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    note(f"error: {text}")
    raise typer.Exit(exit_code) from None


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
