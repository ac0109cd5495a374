"""`hotcold generate`: text that goes on from a prompt, as it comes or as one JSON object."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotcold.engine.commands.loading import open_engine, warn
from hotcold.engine.commands.options import (
    EngineOptions,
    GenerationOptions,
    HeadOptions,
    Json,
    Quiet,
    Verbose,
    Version,
)
from hotcold.engine.commands.prompt_input import read_prompt
from hotcold.engine.commands.reports import note
from hotcold.engine.commands.terminal import write
from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.settings import offload_debug
from hotcold.errors import INTERRUPTED, SettingError
from hotcold.text_file import read_text
from hotcold.whole_file import check_output

if TYPE_CHECKING:
    from hotcold.engine.generation.generation import Engine, Generation, Held


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """What is gone on from, and how far."""

    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to go on from.")] = None
    file: Annotated[
        Path | None,
        typer.Option(
            "-f", "--file", help="File with the prompt, but for its last newline; - or nothing: from a pipe."
        ),
    ] = None
    keep_newline: Annotated[
        bool, typer.Option("--keep-newline", help="Keep the last newline of file or pipe.")
    ] = False
    max_tokens: Annotated[
        int, typer.Option("-n", "--n-predict", help="Most tokens; -1: until the context is full.")
    ] = GenerationSettings.max_tokens
    json_schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON schema that the text follows.")
    ] = None
    grammar_file: Annotated[
        Path | None, typer.Option("--grammar", metavar="FILE", help="Lark or GBNF that the text follows.")
    ] = None
    no_special: Annotated[
        bool, typer.Option("--no-special", help="Leave what looks like </s> in the prompt as text.")
    ] = False

    @property
    def parse_special(self) -> bool:
        """As the engine's settings have it."""
        return not self.no_special


@dataclass(frozen=True, kw_only=True)
class GenerateCommand(GenerationOptions, HeadOptions, EngineOptions, PromptOptions):
    """Go on from a prompt. Text goes to stdout, statistics to stderr."""

    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt too.")] = False
    session: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the KV cache there; the next prompt runs what is new in it."),
    ] = None
    verbose: Verbose = False
    quiet: Quiet = False
    as_json: Json = False
    logprobs: Annotated[
        int, typer.Option(metavar="N", help="In the JSON: how likely each token and the N likeliest were.")
    ] = GenerationSettings.logprobs
    version: Version = False

    def run(self) -> None:
        """Read, load, print."""
        if self.logprobs and not self.as_json:
            raise SettingError("--logprobs", self.logprobs, "the text has no place for them", "add --json")
        text = read_prompt(self.prompt, self.file, escapes=self.escape, keep_newline=self.keep_newline)
        grammar = grammar_of(self.json_schema, self.grammar_file)
        settings = replace(self.generation_settings(), grammar=grammar).checked()
        if self.session is not None:
            check_output(self.session, force=True, option="--session")
        with open_engine(self, self.quiet, head_sparsity=self.head_rows(settings)) as engine:
            held = None if self.session is None else restored(engine, self.session)
            generation = engine.generate_with(text, settings, held)
            if not self.quiet:
                describe(engine, generation, self.verbose)
            shown = text.decode(errors="replace") if self.echo else ""
            interrupted = stream(engine, generation, shown, self.as_json)
            if not self.quiet:
                for line in (
                    *found(generation, self.verbose),
                    *generation.statistics.lines(verbose=self.verbose),
                ):
                    note(line)
            if self.session is not None:
                save(engine, generation.held, self.session)
        if interrupted:
            raise typer.Exit(INTERRUPTED)


def grammar_of(schema: Path | None, grammar: Path | None) -> str:
    """What a text has to follow, of the file that says it; "" for none."""
    path = schema or grammar
    if path is None:
        return ""
    if schema is not None and grammar is not None:
        raise SettingError(
            "--json-schema", str(schema), "not together with --grammar", "leave one of them out"
        )
    from hotcold.engine.generation import constraint

    make, option = (
        (constraint.of_grammar, "--grammar") if schema is None else (constraint.of_schema, "--json-schema")
    )
    return make(read_text(path, constraint.MAX_BYTES, f"file of {option}"), option)


def restored(engine: "Engine", path: Path) -> "Held | None":
    """What a session's file brings, if there is one."""
    from hotcold.engine.generation.session import restore

    return restore(engine, path) if path.exists() else None


def save(engine: "Engine", held: "Held", path: Path) -> None:
    """Write a session's file."""
    from hotcold.engine.generation import session

    session.save(engine, held, path)


def describe(engine: "Engine", generation: "Generation", verbose: bool) -> None:
    """Warnings of model and prompt; with -v also what runs, and how.

    Where everything is comes with -v too, or where the variable of `offload_debug` asks for it.
    """
    warn(engine, quiet=False)
    for warning in generation.warnings:
        note(f"warning: {warning}")
    if verbose:
        from hotcold.engine.generation.description import description

        for line in (*description(engine), f"seed {generation.sampling.seed}"):
            note(line)
    if verbose or offload_debug():
        from hotcold.engine.dump.inputs import short_lines

        for line in short_lines(engine):
            note(line)


def found(generation: "Generation", verbose: bool) -> list[str]:
    """What the prompt has shown of the model: warnings, and more with -v."""
    lines = generation.lines if verbose else ()
    return [*lines, *(f"warning: {finding}" for finding in generation.findings)]


def stream(engine: "Engine", generation: "Generation", shown: str, as_json: bool) -> bool:
    """Print pieces as they come, or one JSON object; whether Ctrl-C ended it."""
    pieces = [shown]
    interrupted = False
    try:
        if not as_json:
            write(shown)
        for piece in generation:
            pieces.append(piece)
            if not as_json:
                write(piece)
    except KeyboardInterrupt:
        interrupted = True
    text = "".join(pieces)
    if as_json:
        write(json.dumps(report(engine, generation, text)) + "\n")
    elif not text.endswith("\n"):
        write("\n")
    return interrupted


def report(engine: "Engine", generation: "Generation", text: str) -> dict[str, Any]:
    """What --json prints; logprobs only where they were asked for."""
    from hotcold.engine.generation import logprobs

    asked = generation.sampling.logprobs > 0
    likely = {"logprobs": logprobs.as_json(generation.logprobs, engine.tokenizer)} if asked else {}
    return {
        "text": text,
        "ids": generation.ids,
        "prompt_ids": generation.prompt_ids,
        "seed": generation.sampling.seed,
        "model": str(engine.file.path),
        "sparsity": engine.sparsity,
        **likely,
        **generation.statistics.numbers(),
    }
