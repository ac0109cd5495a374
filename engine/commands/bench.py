"""`hotcold bench`: prompt and decode speed."""

import json
from dataclasses import dataclass
from typing import Annotated

import typer

from hotcold.engine.commands.loading import open_engine, warn
from hotcold.engine.commands.options import EngineOptions, Json, Quiet
from hotcold.engine.commands.terminal import console, write_line


@dataclass(frozen=True, kw_only=True)
class TestOptions:
    """How much is run."""

    n_prompt: Annotated[int, typer.Option("-p", "--n-prompt", min=0, help="Prompt tokens; 0: none.")] = 256
    n_gen: Annotated[int, typer.Option("-n", "--n-gen", min=0, help="Decoded tokens; 0: none.")] = 64
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Of each test.")] = 3


@dataclass(frozen=True, kw_only=True)
class BenchCommand(EngineOptions, TestOptions):
    """Prompt and decode speed, beside the memory's bandwidth."""

    n_ctx: Annotated[
        int | None, typer.Option("-c", "--ctx-size", help="Positions. [default: what the tests need]")
    ] = None
    quiet: Quiet = False
    as_json: Json = False

    def run(self) -> None:
        """Load, measure, print."""
        with open_engine(self, self.quiet, n_ctx=max(self.n_prompt, self.n_gen, 1)) as engine:
            from hotcold.engine.measure import benchmark

            warn(engine, self.quiet)
            results = benchmark.run(engine, self.n_prompt, self.n_gen, self.repetitions)
            devices = engine.executor.devices
            head = {
                "model": engine.file.path.name,
                "device": ",".join(device.name for device in devices) or "cpu",
                "threads": engine.n_threads,
                "sparsity": engine.sparsity,
            }
            if self.as_json:
                write_line(json.dumps(head | {"tests": [result.numbers() for result in results]}))
            else:
                write_line(", ".join(f"{name} {value}" for name, value in head.items()))
                console().print(benchmark.table(results))
