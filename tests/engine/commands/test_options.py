"""Groups of options: they are arguments of the functions that take them, and reach every command."""

import inspect
from dataclasses import dataclass, fields
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from hotcold.cli import app
from hotcold.engine.commands.options import EngineOptions, SamplingOptions, with_options
from hotcold.engine.generate.generation import Engine
from hotcold.engine.generate.loading import load


def test_the_engine_options_are_what_load_takes() -> None:
    parameters = inspect.signature(load).parameters
    assert {field.name for field in fields(EngineOptions)} == set(parameters) - {"progress"}
    for name, value in vars(EngineOptions()).items():
        assert value == parameters[name].default


def test_the_sampling_options_are_what_generate_takes() -> None:
    parameters = inspect.signature(Engine.generate).parameters
    assert {field.name for field in fields(SamplingOptions)} == set(parameters) - {
        "self",
        "prompt",
        "max_tokens",
        "after",
    }
    for name, value in vars(SamplingOptions()).items():
        assert (tuple(value) if name == "stop" else value) == parameters[name].default


@pytest.mark.parametrize("command", ["generate", "perplexity", "bench"])
def test_every_command_that_runs_a_model_has_the_engine_options(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"]).output
    for flag in ("--model", "--threads", "--ctx-size", "--kv-type", "--sparsity", "--vram-budget"):
        assert flag in shown


@dataclass(frozen=True)
class Colours:
    """A group with a default, one without a flag of its own."""

    hue: Annotated[int, typer.Option("-u")] = 7
    shades: Annotated[int | None, typer.Option()] = None


def test_a_group_is_made_of_its_options() -> None:
    heard: list[object] = []
    command = typer.Typer()

    @command.command()
    @with_options
    def paint(name: str, colours: Colours, wet: bool = False) -> None:
        """Paint."""
        heard.append((name, colours, wet))

    assert CliRunner().invoke(command, ["wall", "-u", "3", "--wet"]).exit_code == 0
    assert CliRunner().invoke(command, ["wall", "--shades", "2"]).exit_code == 0
    assert heard == [("wall", Colours(3), True), ("wall", Colours(7, 2), False)]
    assert CliRunner().invoke(command, ["wall", "--colours", "2"]).exit_code == 2
