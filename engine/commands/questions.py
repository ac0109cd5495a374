"""Where the questions of a chat come from: a terminal or a pipe; and what Ctrl-C means meanwhile."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Self

from hotcold.engine.commands.prompt_input import BYTE_ORDER_MARK
from hotcold.engine.commands.terminal import write
from hotcold.errors import SettingError

PROMPT, CONTINUED = "> ", ". "
MAX_QUESTION = 1 << 24  # characters, more than any context holds


class Interrupts:
    """What Ctrl-C does while it is entered: it stops an answer, so that no step is left half done.

    Attributes:
        heard: whether it came since the last question.
        asking: whether a question is waited for; Ctrl-C raises KeyboardInterrupt then.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop, self.heard, self.asking = stop, False, False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _hear(self, number: int, frame: object) -> None:
        if self.asking:
            raise KeyboardInterrupt
        self.heard = True
        self._stop()


def questions(
    at_terminal: bool, interrupts: Interrupts, note: Callable[[str], None]
) -> Iterator[str | SettingError]:
    """Questions that are not empty, or why one is none.

    A line is a question; so is a block that is pasted into a terminal. A line that ends in one backslash
    goes on in the next. Ctrl-C ends them if it came twice in a row, or from elsewhere than here.
    """
    if at_terminal:
        edit_lines()
    read_line = terminal_line if at_terminal else piped_line
    while True:
        try:
            interrupts.asking = True
            text = question(read_line)
            interrupts.asking = interrupts.heard = False
        except EOFError:
            interrupts.asking = interrupts.heard = False
            write("\n" if at_terminal else "")
            return
        except KeyboardInterrupt:
            interrupts.asking = False
            if at_terminal:
                write("\n")
            if interrupts.heard or not at_terminal:
                interrupts.heard = True
                return
            interrupts.heard = True
            note("Ctrl-C once more, Ctrl-D or /exit ends the chat")
        except SettingError as error:
            interrupts.asking = interrupts.heard = False
            yield error
        else:
            if text:
                yield text


def question(read_line: Callable[[str], str]) -> str:
    """One question; "" for an empty line.

    Raises:
        EOFError: there is none.
        SettingError: it is too long.
    """
    lines = [read_line(PROMPT)]
    while lines[-1].endswith("\\") and not lines[-1].endswith("\\\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(read_line(CONTINUED))
        except EOFError:
            break
    text = "\n".join(lines).removeprefix(BYTE_ORDER_MARK)
    return text.strip("\n") if "\n" in text.strip() else text.strip()  # a block keeps its indentation


def edit_lines() -> None:
    """Let a terminal's lines be edited, and a pasted block come as one, where readline can."""
    with contextlib.suppress(ImportError):
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")  # which Python turns off


def terminal_line(prompt: str) -> str:
    """A line from a terminal, asked for on it also while answers go elsewhere; EOFError at the end."""
    if sys.stdout is not None and sys.stdout.isatty():
        return input(prompt)
    if sys.stderr is not None:
        print(prompt, end="", file=sys.stderr, flush=True)
    return _read_line()


def piped_line(prompt: str) -> str:
    """A line from a pipe, which is not asked for; EOFError at the end, SettingError for one too long."""
    return _read_line()


def _read_line() -> str:
    line = sys.stdin.readline(MAX_QUESTION + 1)
    if not line:
        raise EOFError
    if len(line) <= MAX_QUESTION:
        return line.removesuffix("\n").removesuffix("\r")
    begin = line[:20]
    while line and not line.endswith("\n"):  # so that what is left of it is no further question
        line = sys.stdin.readline(MAX_QUESTION)
    bound = f"at most {MAX_QUESTION} characters a line"
    raise SettingError("question", f"{begin}…", bound, "ask in lines of text")
