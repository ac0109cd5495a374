"""`hotcold generate` that cannot: one line on stderr, and the exit codes."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run

GOLDEN = Path(__file__).parent.parent.parent / "data" / "llamacpp"


def refused(code: int, *arguments: str, **environment: str) -> str:
    """The one line of an error."""
    result = run("generate", *arguments, stdin=b"", **environment)
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if "compiling" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("hotcold: error: ")
    return lines[0].removeprefix("hotcold: error: ")


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ("-p", "a", "--temp", "-1"), "--temp: -1.0 ("),
        (2, ("-p", "a", "--temp", "-1", "-m", "/no/such"), "--temp: -1.0 ("),  # before the model is looked at
        (2, ("-p", "a", "--top-p", "nan"), "--top-p: nan ("),
        (2, ("-p", "a", "--repeat-last-n", "-2"), "--repeat-last-n: -2 ("),
        (2, ("-p", "a", "--presence-penalty", "inf"), "--presence-penalty: inf ("),
        (2, ("-p", "a", "--frequency-penalty", "nan"), "--frequency-penalty: nan ("),
        (2, ("-p", "a", "--logprobs", "-1", "--json"), "--logprobs: -1 ("),
        (2, ("-p", "a", "--logprobs", "3"), "--logprobs: 3 (the text has no place for them); add --json"),
        (2, ("-p", "a", "-t", "0"), "-t: 0 ("),
        (2, ("-p", "a", "-n", "-2"), "-n: -2 (a whole number from -1 to 1073741824); such as -n 128"),
        (2, ("-p", "a", "--kv-type", "q4_0"), "--kv-type: q4_0 (known: f16, f32, q8_0); choose one of them"),
        (
            2,
            ("-m", str(GOLDEN / "llama.f16.gguf"), "-p", "a", "--kv-type", "q8_0"),
            "--kv-type: q8_0 (its blocks of 32 do not divide the model's heads of 16); take --kv-type f16",
        ),
        (2, ("-p", "a", "--draft", ""), '--draft: "" (known: off, ngram)'),
        (2, ("-p", "a", "--sparsity", "some"), "--sparsity: some (known: "),
        (2, ("-p", "a", "--stop", ""), "stop string: '' ("),
        (2, ("-p", "a", "-f", "b"), "prompt: both -p and -f (one of them); leave out -p or -f"),
        (
            2,
            ("-m", str(GOLDEN / "llama.f16.gguf"), "-p", "a", "--sparsity", "predictor"),
            "--sparsity: predictor",
        ),
        (2, ("-m", str(GOLDEN / "llama.f16.gguf"), "-p", "a", "--sparsity", "exact"), "--sparsity: exact"),
        (3, ("-p", "a", "-m", "/no/such\nmodel"), "model file: /no/such\\nmodel"),
        (3, ("-f", "/no/such/prompt"), "prompt file: /no/such/prompt (No such file"),
        (3, ("-p", "a", "-m", str(GOLDEN)), "model directory: "),
        (3, ("-p", "a", "-m", str(GOLDEN / "README.md")), "README.md"),
        (4, ("-p", "word " * 50, "-c", "16"), "prompt: "),
        (5, ("-p", "a", "--device", "cuda"), "CUDA driver: "),
        (5, ("-p", "a", "--vram-budget", "6G"), "--vram-budget: 6G ("),
    ],
)
def test_errors_are_one_line_and_a_code(code: int, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(code, *arguments)


def test_an_empty_prompt_is_refused_wherever_it_comes_from(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert "nothing came from the pipe" in refused(2)
    assert "nothing came from the pipe" in refused(2, "-f", "-")
    assert f"{empty} is empty" in refused(2, "-f", str(empty))


def test_a_bad_environment() -> None:
    variable = {"LLAMA_SPARSE_PRED_THRESHOLD": "junk"}
    assert "LLAMA_SPARSE_PRED_THRESHOLD: junk" in refused(2, "-p", "a", **variable)


def test_a_terminal_without_a_prompt_is_not_waited_for() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hotcold", "generate"]
    result = subprocess.run(command, stdin=theirs, capture_output=True, check=False, timeout=60)
    os.close(ours)
    os.close(theirs)
    assert result.returncode == 2
    assert b"prompt: none" in result.stderr


def test_debug_shows_the_traceback() -> None:
    result = run("generate", "-p", "a", "--temp", "-1", HOTCOLD_DEBUG="1")
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("hotcold: error: --temp: -1.0")


def test_what_is_not_expected_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(options: object, quiet: bool, head_sparsity: str) -> None:
        raise ValueError("first\nsecond")

    monkeypatch.setattr("hotcold.engine.commands.generate.open_engine", broken)
    assert refused(1, "-p", "a").startswith("unexpected ValueError: first second; HOTCOLD_DEBUG=1")


def test_memory_that_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(options: object, quiet: bool, head_sparsity: str) -> None:
        raise MemoryError("90 GB")

    monkeypatch.setattr("hotcold.engine.commands.generate.open_engine", greedy)
    assert "90 GB" in refused(4, "-p", "a")
