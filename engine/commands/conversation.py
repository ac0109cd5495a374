"""`hotcold chat`: questions and commands come in, answers go out."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from hotcold.engine.commands.option_names import in_options
from hotcold.engine.commands.options import EngineOptions
from hotcold.engine.commands.questions import Interrupts, questions
from hotcold.engine.commands.reports import note_error
from hotcold.engine.commands.terminal import OutputError, write
from hotcold.errors import INTERRUPTED, DeviceError, HotcoldError, SettingError

if TYPE_CHECKING:
    from hotcold.engine.chat.conversation import Chat

HELP = r"""/clear  forget all turns
/help   this list
/exit   end; so does Ctrl-D
A line that ends in \ goes on in the next; a pasted block is one question.
Ctrl-C stops an answer; once more, at the prompt, it ends the program."""


def converse(chat: "Chat", say: Callable[[str], None], verbose: bool) -> int:
    """Ask and answer until the questions end. One that cannot be answered is said, and the next one comes.

    Args:
        say: prints a line beside the conversation, which -q leaves out.

    Returns:
        The exit code: 0, or 130 after Ctrl-C; from a pipe that of the first question without an answer.

    Raises:
        DeviceError: the device failed. OutputError: answers cannot be printed.
    """
    if sys.stdin is None:
        raise SettingError("standard input", "closed", next_step="ask from a terminal or a pipe")
    if hasattr(sys.stdin, "reconfigure"):  # bytes that are no UTF-8 reach the model as they are
        sys.stdin.reconfigure(errors="surrogateescape")
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        say("/help lists what can be done beside asking")
    code = 0
    with Interrupts(chat.stop) as interrupts:
        for question in questions(at_terminal, interrupts, say):
            if question == "/exit":
                break
            if isinstance(question, str) and run_command(chat, question, say):
                continue
            error = answer(chat, question) if isinstance(question, str) else question
            code = code or said(error)
            for line in told(chat, verbose) if error is None else ():
                say(line)
            if interrupts.heard and not at_terminal:
                break
    if interrupts.heard:
        return INTERRUPTED
    return 0 if at_terminal else code


def said(error: HotcoldError | None) -> int:
    """Its exit code, once it is said; 0 for none."""
    if error is None:
        return 0
    note_error(in_options(error, EngineOptions))
    return error.exit_code


def told(chat: "Chat", verbose: bool) -> tuple[str, ...]:
    """What the last answer has shown of the model; with -v its statistics too, a line each."""
    if chat.last is None:
        return ()
    findings = tuple(f"warning: {finding}" for finding in chat.last.findings)
    return (*findings, *chat.last.lines, *chat.last.statistics.lines(verbose=True)) if verbose else findings


def run_command(chat: "Chat", text: str, say: Callable[[str], None]) -> bool:
    """Do what /clear and /help ask for; False for any other text, which is a question."""
    if text == "/clear":
        chat.clear()
        say("all turns are forgotten")
    elif text == "/help":
        for line in HELP.splitlines():
            say(line)
    else:
        return False
    return True


def answer(chat: "Chat", question: str) -> HotcoldError | None:
    """Print the answer as it comes; the error of a question that has none.

    Raises:
        DeviceError: no further question will have an answer either.
        OutputError: it cannot be printed.
    """
    pieces, shown = chat.ask(question), ""
    try:
        while (piece := next(pieces, None)) is not None:
            shown = piece
            write(piece)
    except (DeviceError, OutputError):
        raise
    except HotcoldError as error:
        write("\n" if shown and not shown.endswith("\n") else "")
        return error
    write("" if shown.endswith("\n") else "\n")
    return None
