"""Command lines that are wrong, `--help` and `--version`."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import process, run


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
