"""The command line: parse, call the engine, print.

What takes a moment to import (NumPy, Numba, gguf, rich's progress bars) is imported inside commands.
"""

import contextlib
import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotcold.engine import settings
from hotcold.engine.commands import offload_dump as dump_command
from hotcold.engine.commands.options import (
    BenchOptions,
    EngineOptions,
    Json,
    PerplexityOptions,
    Quiet,
    SamplingOptions,
    Verbose,
    with_options,
)
from hotcold.engine.commands.prompt_input import read_file, read_prompt
from hotcold.engine.commands.terminal import progress_bar, replace_unprintable, write
from hotcold.errors import INTERRUPTED, HotcoldError

if TYPE_CHECKING:
    from hotcold.engine.generate.generation import Engine, Generation
    from hotcold.gguf_io.convert.summary import ConvertSummary

UNEXPECTED, DOES_NOT_FIT = 1, 4

app = typer.Typer(
    help="Runs large language models that do not fit the GPU.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the `hotcold` command: usage errors come in one line, as all others do."""
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        # by its shape, since the class lies in click or in typer, as the version has it
        if error.__class__.__name__ == "Abort":  # what the library makes of Ctrl-C outside of a command
            sys.exit(INTERRUPTED)
        if not hasattr(error, "format_message"):
            raise
        message = " ".join(error.format_message().split())
        if error.__class__.__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
        else:
            note(f"error: {message.rstrip('.')}; see `{_command_of(error)} --help`")
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)


def _command_of(usage_error: Exception) -> str:
    """What was called: `hotcold`, or with the command whose options were wrong."""
    context = getattr(usage_error, "ctx", None)
    return "hotcold" if context is None or context.parent is None else f"hotcold {context.info_name}"


def show_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        import hotcold

        typer.echo(f"hotcold {hotcold.__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and end.")
]


@app.callback()
def hotcold_command(version: Version = False) -> None:
    """Options of the command itself."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn what ends a command early into one line on stderr and an exit code."""
    try:
        yield
    except typer.Exit:
        raise
    except HotcoldError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Nobody reads on: let the interpreter's last flush go nowhere, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except MemoryError as error:
        _fail(f"memory: used up ({error}); lower -c or -b, or take a smaller model", DOES_NOT_FIT)
    except Exception as error:  # noqa: BLE001 - the last resort: a user gets one line, not a traceback
        text = f"unexpected {type(error).__name__}: {error}; HOTCOLD_DEBUG=1 shows where"
        _fail(" ".join(text.split()), UNEXPECTED)


def _fail(text: str, exit_code: int) -> None:
    if os.environ.get("HOTCOLD_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    note(f"error: {text}")
    raise typer.Exit(exit_code) from None


def note(text: str) -> None:
    """One line on stderr."""
    typer.echo(f"hotcold: {text}", err=True)


@app.command()
@with_options
def generate(
    *,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to go on from.")] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="File with the prompt; - or nothing: from a pipe.")
    ] = None,
    n_predict: Annotated[
        int, typer.Option("-n", "--n-predict", help="Most tokens; -1: until the context is full.")
    ] = settings.DEFAULT_MAX_TOKENS,
    engine_options: EngineOptions,
    sampling: SamplingOptions,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt too.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    as_json: Json = False,
    version: Version = False,
) -> None:
    """Go on from a prompt. Text goes to stdout, statistics to stderr."""
    with reported():
        text = read_prompt(prompt, file)
        announce_compiling(quiet)
        with open_engine(engine_options, quiet) as engine:
            generation = engine.generate(text, n_predict, **vars(sampling))
            if not quiet:
                describe(engine, generation, verbose)
            shown = text.decode(errors="replace") if echo else ""
            stream(engine, generation, shown, as_json, quiet)


@app.command()
@with_options
def chat(
    *,
    system: Annotated[str, typer.Option("-s", "--system", help="What the model is told first.")] = "",
    chat_template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Jinja template. [default: the model's]")
    ] = None,
    n_predict: Annotated[
        int, typer.Option("-n", "--n-predict", help="Most tokens of an answer; -1: no such limit.")
    ] = -1,
    engine_options: EngineOptions,
    sampling: SamplingOptions,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Ask and answer. On a terminal, or a question a line from a pipe; /help lists its commands."""
    with reported():
        from hotcold.engine.chat.conversation import Chat
        from hotcold.engine.chat.template import load_template
        from hotcold.engine.commands.conversation import converse

        announce_compiling(quiet)
        with open_engine(engine_options, quiet) as engine:
            warn(engine, quiet)
            say = (lambda line: None) if quiet else note
            for line in engine.description() if verbose else ():
                say(line)
            template = load_template(engine.file, engine.tokenizer, chat_template)
            chat = Chat(engine, template, system=system, max_tokens=n_predict, notify=say, **vars(sampling))
            raise typer.Exit(converse(chat, say, verbose))


def open_engine(options: EngineOptions, quiet: bool = False) -> "Engine":
    """`hotcold.load`, imported when it is needed, with a bar while rows are copied to a device."""
    from hotcold.engine.generate.loading import load

    with progress_bar(not quiet and sys.stderr.isatty()) as bar:

        def advance(done: int, total: int, seconds: float) -> None:
            if bar is not None:
                bar(f"hot rows to the device, {done / max(seconds, 1e-9) / 1e9:.1f} GB/s", done, total)

        return load(**vars(options), progress=advance)


def announce_compiling(quiet: bool) -> None:
    """Say that the first run ever takes longer."""
    from hotcold.kernels.cpu import needs_compiling

    if not quiet and needs_compiling():
        note("compiling kernels, once; this takes some 20 seconds")


def warn(engine: "Engine", quiet: bool) -> None:
    """What a user should know of the file and the settings."""
    for warning in () if quiet else engine.warnings:
        note(f"warning: {warning}")


def describe(engine: "Engine", generation: "Generation", verbose: bool) -> None:
    """Warnings; with -v also what runs, and how; where everything is, if asked for by either name."""
    warn(engine, quiet=False)
    if verbose:
        for line in (*engine.description(), f"seed {generation.sampling.seed}"):
            note(line)
    if verbose or settings.offload_debug():
        from hotcold.engine.dump.inputs import short_lines

        for line in short_lines(engine):
            note(line)


def stream(engine: "Engine", generation: "Generation", shown: str, as_json: bool, quiet: bool) -> None:
    """Print pieces as they come, or one JSON object; statistics at the end, whatever ends it."""
    replace_unprintable()
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
    if not quiet:
        for line in generation.statistics.lines():
            note(line)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def report(engine: "Engine", generation: "Generation", text: str) -> dict[str, Any]:
    """What --json prints."""
    return {
        "text": text,
        "ids": generation.ids,
        "prompt_ids": generation.prompt_ids,
        "seed": generation.sampling.seed,
        "model": str(engine.file.path),
        "sparsity": engine.sparsity,
        **generation.statistics.numbers(),
    }


@app.command()
@with_options
def perplexity(
    file: Annotated[Path, typer.Option("-f", "--file", help="Text; - for a pipe.")],
    engine_options: PerplexityOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Perplexity of a text, by llama.cpp's definition."""
    with reported():
        from hotcold.engine.measure import perplexity as measure

        text = read_file(file)
        announce_compiling(quiet)
        with open_engine(engine_options, quiet) as engine:
            warn(engine, quiet)
            with progress_bar(not quiet and sys.stderr.isatty(), counted="chunks") as progress:

                def advance(done: int, total: int, value: float) -> None:
                    if progress is not None:
                        progress(f"perplexity {value:.2f}", done, total)

                result = measure.measure(engine, text, advance)
            if as_json:
                typer.echo(json.dumps(result.numbers()))
                return
            listed, firing = result.activity.shares(engine.model.n_ff)
            typer.echo(f"perplexity {result.value:.4f} +/- {result.deviation:.4f}")
            typer.echo(f"  {measure.DEFINITION}")
            typer.echo(f"  {len(result.chunk_nlls)} chunks of {result.n_ctx}, {result.n_scored} ids scored")
            mode = engine.sparsity if result.threshold is None else f"predictor >= {result.threshold:g}"
            if result.activity.of == "model":
                typer.echo(f"  sparsity {mode}: {listed:.1%} of neurons looked at, {firing:.1%} computed")
                typer.echo(f"  {result.activity.bytes_a_token / 1e6:.2f} MB of weights a token")
            elif result.activity.listed:
                looked = f"on the CPU {listed:.1%} of all neurons looked at, {firing:.1%} computed"
                typer.echo(f"  sparsity {mode}: {looked}")
            typer.echo(f"  {result.n_tokens / result.seconds:.0f} tokens/s")


@app.command()
@with_options
def bench(
    *,
    n_prompt: Annotated[int, typer.Option("-p", "--n-prompt", min=0, help="Prompt tokens; 0: none.")] = 256,
    n_gen: Annotated[int, typer.Option("-n", "--n-gen", min=0, help="Decoded tokens; 0: none.")] = 64,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Of each test.")] = 3,
    engine_options: BenchOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Prompt and decode speed, beside the memory's bandwidth."""
    with reported():
        from hotcold.engine.measure import benchmark

        announce_compiling(quiet)
        if engine_options.n_ctx is None:
            engine_options = replace(engine_options, n_ctx=max(n_prompt, n_gen, 1))
        with open_engine(engine_options, quiet) as engine:
            warn(engine, quiet)
            results = benchmark.run(engine, n_prompt, n_gen, repetitions)
            device = engine.executor.device
            head = {
                "model": engine.file.path.name,
                "device": "cpu" if device is None else device.name,
                "threads": engine.n_threads,
                "sparsity": engine.sparsity,
            }
            if as_json:
                typer.echo(json.dumps(head | {"tests": [result.numbers() for result in results]}))
            else:
                typer.echo(", ".join(f"{name} {value}" for name, value in head.items()))
                benchmark.show(results)


@app.command()
def devices(as_json: Json = False) -> None:
    """Devices that can be used, and what the others lack."""
    with reported():
        from hotcold.engine.device.devices import describe_devices, devices_json, render_devices

        found = describe_devices()
        typer.echo(json.dumps(devices_json(found)) if as_json else render_devices(found))


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(help="Directory as Hugging Face has it, or a GGUF file.")],
    outfile: Annotated[Path, typer.Option("--outfile", help="GGUF file to write.")],
    predictors: Annotated[
        Path | None, typer.Argument(help="Predictors: a safetensors file, or PowerInfer's directory.")
    ] = None,
    outtype: Annotated[
        str, typer.Option(metavar="{f32,f16,bf16,q8_0,q4_0}", help="Type of the matrices.")
    ] = "f16",
    force_pretokenizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How a BPE vocabulary cuts text. [default: the directory's]"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    quiet: Quiet = False,
    version: Version = False,
) -> None:
    """Make a GGUF file of a Hugging Face directory or GGUF file."""
    with reported(), unwound():
        from hotcold.gguf_io.convert.conversion import convert as convert_model

        with progress_bar(not quiet and sys.stderr.isatty()) as progress:
            summary = convert_model(
                model,
                predictors,
                outfile,
                outtype,
                force_pretokenizer=force_pretokenizer,
                force=force,
                progress=progress,
            )
        if not quiet:
            show_summary(summary, outtype)


@app.command("offload-dump")
@functools.wraps(dump_command.offload_dump)
def offload_dump(**options: Any) -> None:
    with reported():
        dump_command.offload_dump(**options)


@contextlib.contextmanager
def unwound() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the command as an exception, so that temporary files go."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    both = (signal.SIGTERM, signal.SIGHUP)
    wanted = [number for number in both if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores one
    for number in wanted:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in wanted:
            signal.signal(number, signal.SIG_DFL)


def show_summary(summary: "ConvertSummary", outtype: str) -> None:
    """What was written to stdout, warnings to stderr."""
    for warning in summary.warnings:
        note(f"warning: {warning}")
    how = "can run sparse" if summary.sparse else "runs dense"
    typer.echo(
        f"{summary.outfile}: {summary.n_tensors} tensors, {summary.n_bytes / 1e6:.1f} MB, "
        f"{summary.architecture}, {outtype}, {how}"
    )
    if summary.kept_f16:
        typer.echo(f"kept as f16, since {outtype} does not divide their rows: {', '.join(summary.kept_f16)}")


if __name__ == "__main__":
    main()
