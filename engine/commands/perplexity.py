"""`hotcold perplexity`: how well a model expects a text."""

import json
import math
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotcold.engine.commands.loading import open_engine, warn
from hotcold.engine.commands.options import EngineOptions, Json, Quiet
from hotcold.engine.commands.prompt_input import read_file
from hotcold.engine.commands.reports import note
from hotcold.engine.commands.terminal import columns, progress_bar, write_line

if TYPE_CHECKING:
    from hotcold.engine.generation.generation import Engine
    from hotcold.engine.measure.perplexity import Perplexity


@dataclass(frozen=True, kw_only=True)
class TextOption:
    """What is measured."""

    file: Annotated[Path, typer.Option("-f", "--file", help="Text; - for a pipe.")]


@dataclass(frozen=True, kw_only=True)
class PerplexityCommand(EngineOptions, TextOption):
    """Perplexity of a text, by llama.cpp's definition."""

    n_ctx: Annotated[int, typer.Option("-c", "--ctx-size", help="Ids of a chunk.")] = 512
    quiet: Quiet = False
    as_json: Json = False

    def run(self) -> None:
        """Read, load, measure, print."""
        text = read_file(self.file, "text file")
        with open_engine(self, self.quiet) as engine:
            warn(engine, self.quiet)
            result = measured(engine, text, shown=not self.quiet and sys.stderr.isatty())
            for finding in () if self.quiet else result.findings:
                note(f"warning: {finding}")
            if self.as_json:
                write_line(json.dumps(result.numbers()))
            else:
                show(engine, result)


def measured(engine: "Engine", text: bytes, shown: bool) -> "Perplexity":
    """The perplexity, with a bar while it comes."""
    from hotcold.engine.measure.perplexity import measure

    with progress_bar(shown, counted="tokens") as progress:

        def advance(done: int, total: int, value: float) -> None:
            if progress is not None:
                progress("perplexity" if math.isnan(value) else f"perplexity {value:.2f}", done, total)

        return measure(engine, text, advance)


def show(engine: "Engine", result: "Perplexity") -> None:
    """The value, how it is defined, and what it took."""
    write_line(f"perplexity {result.value:.4f} +/- {result.deviation:.4f}")
    for line in details(engine, result):
        write_line(textwrap.fill(line, columns(), initial_indent="  ", subsequent_indent="    "))


def details(engine: "Engine", result: "Perplexity") -> Iterator[str]:
    """What stands below the value, a line each."""
    from hotcold.engine.measure.perplexity import DEFINITION

    listed, firing = result.activity.shares(engine.model.n_neurons)
    n_chunks = len(result.chunk_nlls)
    yield DEFINITION
    n_scored = f"{result.n_scored} id{'s' * (result.n_scored > 1)}"
    yield f"{n_chunks} chunk{'s' * (n_chunks > 1)} of {result.n_ctx}, {n_scored} scored"
    mode = engine.sparsity if result.threshold is None else f"predictor >= {result.threshold:g}"
    if result.activity.of == "model":
        yield f"sparsity {mode}: {listed:.1%} of neurons looked at, {firing:.1%} computed"
        yield f"{result.activity.bytes_a_token / 1e6:.2f} MB of weights a token"
    elif result.activity.listed:
        yield f"sparsity {mode}: on the CPU {listed:.1%} of all neurons looked at, {firing:.1%} computed"
    yield f"{result.n_tokens / result.seconds:.0f} tokens/s"
