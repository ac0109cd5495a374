"""Groups of options: they are arguments of the functions that take them, and reach every command."""

import inspect
from dataclasses import fields

import pytest
from commands import run

from hotcold.engine.commands.generate import GenerateCommand
from hotcold.engine.commands.options import EngineOptions, GenerationOptions, part
from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.loading import load
from hotcold.engine.generation.run_options import RunOptions
from hotcold.engine.generation.settings import GenerationSettings


def test_the_engine_options_are_what_load_takes() -> None:
    parameters = inspect.signature(load).parameters
    names = {field.name for field in fields(RunOptions)}
    assert names | {"path", "progress"} == set(parameters)
    assert {field.name for field in fields(EngineOptions)} == names | {"path"}
    assert all(parameters[name].default == value for name, value in vars(RunOptions()).items())
    assert part(RunOptions, EngineOptions()) == RunOptions()


def test_the_generation_options_are_what_generate_takes() -> None:
    parameters = inspect.signature(Engine.generate).parameters
    names = {field.name for field in fields(GenerationSettings)}
    assert names | {"self", "prompt", "after"} == set(parameters)
    assert {field.name for field in fields(GenerateCommand)} >= names
    of_generate_alone = {"max_tokens", "parse_special", "logprobs"}
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
