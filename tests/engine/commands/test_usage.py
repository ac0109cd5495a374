"""Command lines that are wrong, `--help` and `--version`."""

import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from commands import process, run
from typer.models import CommandInfo

from hotcold.cli import app
from hotcold.engine.commands.option_names import option_names


def test_bad_usage_exits_2() -> None:
    assert run("generate", "-p", "a", "-n", "many").returncode == 2
    assert run("generate", "--no-such-flag").returncode == 2
    assert run("no-such-command").returncode == 2


def test_version() -> None:
    for arguments in (("--version",), ("generate", "--version")):
        result = run(*arguments)
        assert result.returncode == 0
        assert result.stdout.startswith("hotcold 0.")


def test_help_is_quick_and_lists_the_flags() -> None:
    result = process("generate", "--help", COLUMNS="200", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"numpy", "numba", "gguf", "sentencepiece", "cupy"}
    for flag in ("--ctx-size", "--ignore-eos", "--kv-type", "--sparse-threshold", "--json", "--min-p"):
        assert flag in result.stdout


def test_the_checkout_runs_too() -> None:
    command = [sys.executable, str(Path(__file__).parent.parent.parent.parent / "cli.py"), "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout[:8]) == (0, "hotcold ")


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--temp", "abc"], ["--temp", "'abc'"]),
        (["generate", "--bad"], ["--bad", "see `hotcold generate --help`"]),
        (["generate", "-p", "hi", "-n"], ["-n", "see `hotcold generate --help`"]),
        (["generat"], ["Did you mean 'generate'? See `hotcold --help`"]),
        (["nonsense"], ["nonsense", "see `hotcold --help`"]),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], words: list[str]) -> None:
    command = [sys.executable, "-m", "hotcold", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("hotcold: error: ")
    assert all(word in done.stderr for word in words)
    assert done.stderr.count("\n") == 1
    assert "unable to parse" not in done.stderr


def test_the_list_of_commands_tells_each_in_a_whole_sentence() -> None:
    """In 80 columns, and what says that a flag is off stands by itself."""
    listed = process("--help", COLUMNS="80").stdout.partition("Commands:")[2]
    assert all(f"  {command.name} " in listed for command in app.registered_commands)
    assert "..." not in listed
    assert "/ --no-special" not in process("generate", "--help", COLUMNS="80").stdout


NEEDED = {"convert": ["m", "--outfile", "o"], "perplexity": ["-f", "t"]}
N_PATHS: dict[object, int] = {Path: 1, Path | None: 1, list[Path] | None: 1, tuple[Path, Path] | None: 2}


def path_options(command: type) -> dict[str, int]:
    """By an option's name, how many paths it takes."""
    hints, names = get_type_hints(command), option_names(command)
    return {name: N_PATHS[hints[field]] for field, name in names.items() if hints[field] in N_PATHS}


@pytest.mark.sample(5)
@pytest.mark.parametrize("command", app.registered_commands, ids=lambda command: command.name)
def test_a_path_of_no_characters_is_refused(command: CommandInfo) -> None:
    """It would be the working folder."""
    assert command.name is not None and isinstance(command.callback, type)
    needed = [command.name, *NEEDED.get(command.name, ())]
    for name, n in path_options(command.callback).items():
        for k in range(n):
            result = run(*needed, name, *("" if i == k else "a" for i in range(n)))
            said = f'hotcold: error: {name}: "" (no path); name one\n'
            assert (result.returncode, result.stderr) == (2, said)
        if name.startswith("--") and n == 1:
            assert f'error: {name}: "" (no path)' in run(*needed, f"{name}=").stderr


def test_arguments_are_paths_too() -> None:
    for arguments, name in ((["", "--outfile", "o"], "MODEL"), (["m", "--outfile", "o", ""], "PREDICTORS")):
        result = run("convert", *arguments)
        assert result.returncode == 2 and f'error: {name}: "" (no path)' in result.stderr


def test_the_working_folder_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And other options may have no characters."""
    monkeypatch.chdir(tmp_path)
    result = run("generate", "-m", ".", "-p", "a", "--grammar", "a", "--stop", "")
    assert result.returncode == 3 and "no path" not in result.stderr


@pytest.mark.parametrize("command", ["chat", "serve"])
def test_a_template_is_read_before_a_model_is_loaded(command: str, tmp_path: Path) -> None:
    result = run(command, "-m", str(tmp_path / "m.gguf"), "--chat-template", str(tmp_path / "t.jinja"))
    assert result.returncode == 3 and "t.jinja" in result.stderr and "m.gguf" not in result.stderr
