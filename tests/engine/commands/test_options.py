"""Groups of options: they are arguments of the functions that take them, and reach every command."""

import inspect
import re
from dataclasses import fields

import pytest
from commands import run

from hotcold.engine.commands import reports, terminal
from hotcold.engine.commands.bench import BenchCommand
from hotcold.engine.commands.chat import ChatCommand
from hotcold.engine.commands.convert import ConvertCommand
from hotcold.engine.commands.generate import GenerateCommand
from hotcold.engine.commands.offload_dump import OffloadDumpCommand
from hotcold.engine.commands.option_names import in_options, option_names
from hotcold.engine.commands.options import EngineOptions, GenerationOptions, HeadOptions, part
from hotcold.engine.commands.serve import ServeCommand
from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.loading import load
from hotcold.engine.generation.run_options import RunOptions
from hotcold.engine.generation.settings import GenerationSettings
from hotcold.errors import HotcoldError, SettingError


def test_the_engine_options_are_what_load_takes() -> None:
    parameters = inspect.signature(load).parameters
    names = {field.name for field in fields(RunOptions)}
    assert names | {"path", "progress"} == set(parameters)
    of_commands = {field.name for kind in (EngineOptions, HeadOptions) for field in fields(kind)}
    # several answers at a time are for those who serve
    assert of_commands | {"n_slots"} == names | {"path"}
    assert "n_slots" in {field.name for field in fields(ServeCommand)}
    assert all(parameters[name].default == value for name, value in vars(RunOptions()).items())
    assert part(RunOptions, EngineOptions()) == RunOptions()


def test_the_generation_options_are_what_generate_takes() -> None:
    parameters = inspect.signature(Engine.generate).parameters
    names = {field.name for field in fields(GenerationSettings)}
    assert names | {"self", "prompt", "after"} == set(parameters)
    said_otherwise = {"grammar", "parse_special"}  # by files, and by --no-special
    assert {field.name for field in fields(GenerateCommand)} >= names - said_otherwise
    of_generate_alone = {"max_tokens", "parse_special", "logprobs", "grammar"}
    assert {field.name for field in fields(GenerationOptions)} == names - of_generate_alone | {"escape"}
    assert all(parameters[name].default == value for name, value in vars(GenerationSettings()).items())
    assert GenerationOptions().generation_settings() == GenerationSettings()


def test_what_a_command_sets_reaches_the_engines_settings() -> None:
    options = EngineOptions(n_ctx=7, device="cpu")
    assert part(RunOptions, options) == RunOptions(n_ctx=7, device="cpu")
    assert part(RunOptions, options, n_ctx=8) == RunOptions(n_ctx=8, device="cpu")


@pytest.mark.parametrize("command", ["generate", "perplexity", "bench"])
def test_every_command_that_runs_a_model_has_the_engine_options(command: str) -> None:
    shown = run(command, "--help").stdout
    for flag in ("--model", "--threads", "--ctx-size", "--kv-type", "--sparsity", "--vram-budget"):
        assert flag in shown


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        (("-n", "-5"), "-n"),
        (("-n-5",), "-n"),
        (("--n-predict=-5",), "--n-predict"),
        (("--n-predict", "-5"), "--n-predict"),
        ((), "-n"),
    ],
)
def test_an_error_names_the_option_as_it_was_typed(typed: tuple[str, ...], name: str) -> None:
    error = SettingError("max_tokens", -5, "a whole number", "such as -n 128")
    assert in_options(error, GenerateCommand, typed) == f"{name}: -5 (a whole number); such as -n 128"
    assert str(error).startswith("max_tokens: -5")  # what the library says


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            HotcoldError("prompt", "9 tokens", "", "raise n_ctx, or shorten it"),
            "prompt: 9 tokens; raise -c, or shorten it",
        ),
        (HotcoldError("KV cache of n_ctx 9", None, "", "lower n_ctx"), "KV cache of -c 9; lower -c"),
        (HotcoldError("x", 1, "", "try kv_type='f32'"), "x: 1; try kv_type='f32'"),
        (HotcoldError("m.gguf: hotcold.ffn_activation", "x"), "m.gguf: hotcold.ffn_activation: x"),
        (HotcoldError("sparsity of a graph", "x"), "sparsity of a graph: x"),
        (HotcoldError("threads", 0, "their number"), "-t: 0 (their number)"),
        (HotcoldError("n_embd", "n_ctx", "n_head_kv"), "n_embd: n_ctx (n_head_kv)"),
    ],
)
def test_only_keywords_are_options(error: HotcoldError, text: str) -> None:
    assert in_options(error, GenerateCommand, ()) == text


@pytest.mark.parametrize(
    "command", [GenerateCommand, ChatCommand, BenchCommand, ConvertCommand, OffloadDumpCommand]
)
def test_every_field_has_the_name_that_help_shows(command: type) -> None:
    names = option_names(command)
    shown = run(
        re.sub(r"(?<!^)(?=[A-Z])", "-", command.__name__.removesuffix("Command")).lower(), "--help"
    ).stdout
    assert len(names) > 5 and all(re.search(rf"(?m)[ ,]{name}\b", shown) for name in names.values())
    of_engine = option_names(EngineOptions)
    assert {f: names[f] for f in names.keys() & of_engine.keys()} == {
        f: of_engine[f] for f in names.keys() & of_engine.keys()
    }


@pytest.mark.parametrize(
    ("arguments", "begin"),
    [
        ("generate -p a -b 0", "-b: 0 ("),
        ("generate -p a --batch-size 0", "--batch-size: 0 ("),
        ("generate -p a --top-p 2", "--top-p: 2.0 ("),
        ("generate -p a --vram-budget x --device emulated", "--vram-budget: x ("),
        ("convert models --outfile x.gguf --outtype x", "--outtype: x ("),
        ("bench -t 0", "-t: 0 ("),
    ],
)
def test_commands_name_their_options(arguments: str, begin: str) -> None:
    """In the last line: the first command of a fresh checkout says before it that kernels are compiled."""
    last = run(*arguments.split()).stderr.splitlines()[-1]
    assert last.startswith(f"hotcold: error: {begin}")


@pytest.mark.parametrize(
    "options", [(), ("--device", "emulated", "--vram-budget", "6MiB", "-c", "256", "-b", "64")]
)
def test_a_terminal_has_lines_of_its_width_and_a_pipe_has_whole_ones(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for words that are longer, such as a path."""
    arguments = "generate", "-p", "Mr. Darcy looked", "-n", "1", "-v", "--seed", "1", *options
    of_pipe = run(*arguments).stderr.splitlines()
    assert all(line.startswith("hotcold: ") for line in of_pipe) and max(map(len, of_pipe)) > 80
    look(monkeypatch)
    of_terminal = run(*arguments, COLUMNS="60").stderr
    for line in of_terminal.splitlines():
        assert len(line) <= 60 or len(line.removeprefix("hotcold: ").split()) == 1
        assert line.startswith(("hotcold: ", "  "))
    assert of_terminal.count("\n  ") >= 2


def look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let standard error be a terminal."""
    for module in (reports, terminal):
        monkeypatch.setattr(module, "is_terminal", lambda stream: True)


def test_an_error_is_one_line_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    look(monkeypatch)
    result = run("generate", "-p", "a", "-m", "no such model " * 9, COLUMNS="60")
    assert result.returncode == 3 and result.stderr.count("\n") == 1 and len(result.stderr) > 120


def test_a_warning_has_lines_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reports.note("warning: " + "many words " * 9)
    look(monkeypatch)
    monkeypatch.setenv("COLUMNS", "40")
    reports.note("warning: " + "many words " * 9)
    one, *several = capsys.readouterr().err.splitlines()
    assert len(one) > 80 and max(map(len, several)) <= 40
    assert " ".join(each.strip() for each in several) == one.strip()
