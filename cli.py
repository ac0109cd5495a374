"""The command line: a table of contents. Each command is a file of its own in `engine/commands`.

What takes a moment to import (NumPy, Numba, gguf, rich's progress bars) is imported when a command runs.
"""

import logging
import re
import sys
from typing import Any

import typer

from hotcold.engine.commands.bench import BenchCommand
from hotcold.engine.commands.calibrate import CalibrateCommand
from hotcold.engine.commands.chat import ChatCommand
from hotcold.engine.commands.convert import ConvertCommand
from hotcold.engine.commands.devices import DevicesCommand
from hotcold.engine.commands.generate import GenerateCommand
from hotcold.engine.commands.hub import ListCommand, PullCommand, RemoveCommand
from hotcold.engine.commands.imatrix import ImatrixCommand
from hotcold.engine.commands.offload_dump import OffloadDumpCommand
from hotcold.engine.commands.option_names import check_paths
from hotcold.engine.commands.options import Command, Version
from hotcold.engine.commands.perplexity import PerplexityCommand
from hotcold.engine.commands.profile import ProfileCommand
from hotcold.engine.commands.reports import LoggedNotes, note_error, reported
from hotcold.engine.commands.serve import ServeCommand
from hotcold.engine.commands.terminal import forget, prepare_streams, unwritable
from hotcold.engine.commands.train_predictor import TrainPredictorCommand
from hotcold.engine.commands.tune import TuneCommand
from hotcold.errors import INTERRUPTED

NO_NUMBER = re.compile(r"a valid (integer|number), unable to parse string as an? \w+")
NUMBERS = {"integer": "whole number", "number": "number"}  # the library's word, ours

app = typer.Typer(
    help="Runs large language models that do not fit the GPU.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(GenerateCommand)
app.command("chat")(ChatCommand)
app.command("serve")(ServeCommand)
app.command("perplexity")(PerplexityCommand)
app.command("bench")(BenchCommand)
app.command("devices")(DevicesCommand)
app.command("convert")(ConvertCommand)
app.command("offload-dump")(OffloadDumpCommand)
app.command("profile")(ProfileCommand)
app.command("calibrate")(CalibrateCommand)
app.command("pull")(PullCommand)
app.command("list")(ListCommand)
app.command("rm")(RemoveCommand)
app.command("imatrix")(ImatrixCommand)
app.command("train-predictor")(TrainPredictorCommand)
app.command("tune")(TuneCommand)


def run(command: Command, **of_hotcold: Any) -> None:
    """Do what the command line was read to."""
    with reported(type(command)):
        check_paths(command)
        command.run()


@app.callback(result_callback=run)
def hotcold_command(version: Version = False) -> None:
    """Options of the command itself."""


def main() -> None:
    """Entry point of the `hotcold` command: usage errors come in one line, as all others do."""
    prepare_streams()
    logging.getLogger("hotcold").addHandler(LoggedNotes(logging.WARNING))
    try:
        code = app(standalone_mode=False)
    except OSError as error:  # of --help and --version, which are printed outside of a command
        code = _unprinted(error)
    except Exception as error:
        # by its shape, since the class lies in click or in typer, as the version has it
        if error.__class__.__name__ == "Abort":  # what the library makes of Ctrl-C outside of a command
            sys.exit(INTERRUPTED)
        if not hasattr(error, "format_message"):
            raise
        message = " ".join(error.format_message().split())
        if error.__class__.__name__ == "NoArgsIsHelpError":
            show_help(error)
        else:
            message = NO_NUMBER.sub(lambda found: "a " + NUMBERS[found[1]], message)
            message = message.replace("Input should be", f"{_given_to(error)} should be")
            see = f"see `{_command_of(error)} --help`"
            asks = message.endswith("?")
            note_error(f"{message} S{see[1:]}" if asks else f"{message.rstrip('.')}; {see}")
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)


def show_help(usage_error: Any) -> None:
    """What the library prints of a command without arguments, on stderr if somebody can read it."""
    try:
        usage_error.show()
    except OSError:
        forget(sys.stderr)


def _unprinted(error: OSError) -> int:
    try:
        with reported():
            raise error if isinstance(error, BrokenPipeError) else unwritable(error)
    except typer.Exit as end:
        return end.exit_code


def _command_of(usage_error: Exception) -> str:
    """What was called: `hotcold`, or with the command whose options were wrong."""
    context = getattr(usage_error, "ctx", None)
    if context is None:  # as of an option without its value
        known = [command.name for command in app.registered_commands]
        return " ".join(["hotcold", *(word for word in sys.argv[1:2] if word in known)])
    return "hotcold" if context.parent is None else f"hotcold {context.info_name}"


def _given_to(usage_error: Exception) -> str:
    """The value that an option refused, which newer versions of the library leave out of their text."""
    errors = getattr(usage_error.__cause__, "errors", None)
    given = errors()[0].get("input") if callable(errors) else None
    return "Input" if given is None else repr(given)


if __name__ == "__main__":
    main()
