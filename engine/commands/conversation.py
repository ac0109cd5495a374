"""`hotcold chat`: questions from a terminal or a pipe, answers as they come, and what Ctrl-C means."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self

from hotcold.engine.commands.reports import note as report_line
from hotcold.engine.commands.terminal import replace_unprintable, write
from hotcold.errors import INTERRUPTED, DoesNotFitError, HotcoldError, SettingError

if TYPE_CHECKING:
    from hotcold.engine.chat.conversation import Chat

PROMPT = "> "
HELP = """/clear  forget all turns
/help   this list
/exit   end; so does Ctrl-D
Ctrl-C stops an answer; once more, at the prompt, it ends the program."""
MAX_QUESTION = 1 << 24  # characters, more than any context holds


def converse(chat: "Chat", note: Callable[[str], None], verbose: bool) -> int:
    """Ask and answer until the questions end.

    Args:
        note: prints a line beside the conversation, unless it is to be quiet; errors come all the same.

    Returns:
        The exit code: 0, 130 after Ctrl-C, or that of the last question from a pipe that could not be
        answered; the questions behind it are.

    Raises:
        HotcoldError: no question from a pipe can be answered; on a terminal it is only said.
    """
    if sys.stdin is None:
        raise SettingError("standard input", "closed", next_step="ask from a terminal or a pipe")
    if hasattr(sys.stdin, "reconfigure"):  # bytes that are no UTF-8 reach the model as they are
        sys.stdin.reconfigure(errors="surrogateescape")
    replace_unprintable()
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        note("/help lists what can be done beside asking")
    code = 0
    with Interrupts(chat.stop) as interrupts:
        for question in questions(at_terminal, interrupts, note):
            if question == "/exit":
                return code
            if question.startswith("/") and len(question.split()) == 1:
                run_command(chat, question, note)
                continue
            try:
                answer(chat, question)
                if verbose and chat.last is not None:
                    for line in chat.last.statistics.lines():
                        note(line)
            except HotcoldError as error:
                if not at_terminal and not isinstance(error, SettingError | DoesNotFitError):
                    raise
                report_line(f"error: {error}")
                code = 0 if at_terminal else error.exit_code
            if interrupts.heard and not at_terminal:
                break
    return INTERRUPTED if interrupts.heard else code


def run_command(chat: "Chat", command: str, note: Callable[[str], None]) -> None:
    """What begins with a slash, but /exit."""
    if command == "/clear":
        chat.clear()
        note("all turns are forgotten")
        return
    if command != "/help":
        note(f"no such command: {command}")
    for line in HELP.splitlines():
        note(line)


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


def questions(at_terminal: bool, interrupts: Interrupts, note: Callable[[str], None]) -> Iterator[str]:
    """Lines that are not empty; Ctrl-C ends them if it came twice in a row, or from elsewhere than here."""
    if at_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - lines can be edited from here on
    while True:
        try:
            interrupts.asking = True
            line = terminal_line() if at_terminal else piped_line()
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
            continue
        if line.strip():
            yield line.strip()


def terminal_line() -> str:
    """A line from a terminal, asked for on it also while answers go elsewhere; EOFError at the end."""
    if sys.stdout.isatty():
        return input(PROMPT)
    print(PROMPT, end="", file=sys.stderr, flush=True)
    return input()


def piped_line() -> str:
    """A line from a pipe, of one that is too long the beginning; EOFError at the end."""
    line = part = sys.stdin.readline(MAX_QUESTION + 1)
    if not line:
        raise EOFError
    while len(part) > MAX_QUESTION and not part.endswith("\n"):
        part = sys.stdin.readline(MAX_QUESTION + 1)
    return line


def answer(chat: "Chat", question: str) -> None:
    """Print the answer as it comes.

    Raises:
        SettingError: a question that is too long, or has what the vocabulary has no piece for.
        DoesNotFitError: one that the context cannot hold.
    """
    if len(question) > MAX_QUESTION:
        bound = f"at most {MAX_QUESTION} characters a line"
        raise SettingError("question", f"{question[:20]}…", bound, "ask in lines of text")
    shown = ""
    for piece in chat.ask(question):
        shown = piece
        write(piece)
    write("" if shown.endswith("\n") else "\n")
