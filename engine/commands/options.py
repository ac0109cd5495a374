"""Options that several commands share, declared once: names, help, defaults. Light to import.

A command is a frozen dataclass: its fields are its options, `run` does it. Commands take shared options
over from the bases here; a dataclass lists the fields of its last base first and its own at the end, and so
does --help.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import typer

from hotcold.engine.commands.prompt_input import unescaped_text
from hotcold.engine.generation.run_options import RunOptions
from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.model.sparsity import THRESHOLD_VARIABLE

Settings = TypeVar("Settings", RunOptions, GenerationSettings)

ModelPath = Annotated[
    Path | None,
    typer.Option(
        "-m",
        "--model",
        help="GGUF file, any part of one, its directory, or hf:USER/REPO[:QUANT]. [default: the bundled model]",
    ),
]
NCtx = Annotated[
    int | None, typer.Option("-c", "--ctx-size", help="Positions. [default: the model's length, up to 4096]")
]
Threads = Annotated[int | None, typer.Option("-t", "--threads", help="[default: physical cores]")]
NBatch = Annotated[int, typer.Option("-b", "--batch-size", help="Prompt tokens that run together.")]
NSlots = Annotated[
    int, typer.Option("--slots", metavar="N", help="Answers at a time, each with a KV cache of its own.")
]
Draft = Annotated[
    str, typer.Option("--draft", metavar="{off,ngram}", help="Guess what a text repeats, to run it at once.")
]
ChatTemplateFile = Annotated[
    Path | None,
    typer.Option("--chat-template", metavar="FILE", help="Jinja template. [default: the model's]"),
]
StreamBatch = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Prompts of N tokens and more run on the GPU, rows are sent; 0: never. [default: measured]",
    ),
]
KVType = Annotated[str, typer.Option(metavar="{f16,f32,q8_0}", help="Numbers of the KV cache.")]
Sparsity = Annotated[
    str,
    typer.Option(
        metavar="{auto,exact,off,predictor,threshold}", help="Which neurons of the FFN are computed."
    ),
]
DeviceName = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="{auto,cuda[:N],emulated[:N],cpu}",
        help="What hot rows run on; of several cards, cuda:0,cuda:1.",
    ),
]
FFNActivation = Annotated[
    str | None,
    typer.Option(
        "--ffn-activation",
        metavar="{relu,silu,gelu}",
        help="The FFN's function, where the file is wrong about it. [default: the file's]",
    ),
]
ForcePretokenizer = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="How a BPE vocabulary cuts text into words. [default: the file's]"),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more on stderr.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing on stderr but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def show_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        from importlib import metadata  # takes a moment to import

        typer.echo(f"hotcold {metadata.version('hotcold')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and end.")
]


class Command(Protocol):
    """What a command line has been read to."""

    def run(self) -> None:
        """Do it."""


class ModelOptions(Protocol):
    """What every command that loads a model says of it."""

    @property
    def path(self) -> Path | None:
        """Where it is."""

    @property
    def n_ctx(self) -> int | None:
        """Positions."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What runs, and how: the arguments of `hotcold.load`, by its names."""

    path: ModelPath = None
    threads: Threads = RunOptions.threads
    n_ctx: NCtx = RunOptions.n_ctx
    n_batch: NBatch = RunOptions.n_batch
    kv_type: KVType = RunOptions.kv_type
    sparsity: Sparsity = RunOptions.sparsity
    sparse_pred_threshold: Annotated[
        float | None,
        typer.Option(
            "--sparse-pred-threshold",
            "--sparse-threshold",
            help="Predictor outputs at or above it count as active. "
            f"[default: {THRESHOLD_VARIABLE}, else the file's]",
        ),
    ] = RunOptions.sparse_pred_threshold
    force_pretokenizer: ForcePretokenizer = RunOptions.force_pretokenizer
    ffn_activation: FFNActivation = RunOptions.ffn_activation
    device: DeviceName = RunOptions.device
    vram_budget: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="GPU memory to use: 8 (GiB), 6000MiB, 80%, auto, or 0; of several cards, 8GB,6GB.",
        ),
    ] = str(RunOptions.vram_budget)
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse to run elsewhere, or with less, than was asked for.")
    ] = RunOptions.strict
    mlock: Annotated[bool, typer.Option("--mlock", help="Keep the weights that the CPU reads in memory.")] = (
        RunOptions.mlock
    )
    no_mmap: Annotated[
        bool, typer.Option("--no-mmap", help="Read the file into memory instead of mapping it.")
    ] = RunOptions.no_mmap
    no_graphs: Annotated[bool, typer.Option("--no-graphs", help="Launch each kernel of a GPU by itself.")] = (
        RunOptions.no_graphs
    )
    stream_batch: StreamBatch = RunOptions.stream_batch
    check_tensors: Annotated[
        bool,
        typer.Option("--check-tensors", help="Refuse a file with a NaN or infinite scale, by its block."),
    ] = RunOptions.check_tensors


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Which rows of the head are computed: an argument of `hotcold.load`."""

    head_sparsity: Annotated[
        str,
        typer.Option(metavar="{auto,off}", help="Compute the head's rows that a profile in the file lists."),
    ] = RunOptions.head_sparsity

    def head_rows(self, settings: GenerationSettings) -> str:
        """`head_sparsity`, where auto is "off" for texts that need the whole head."""
        return "off" if self.head_sparsity == "auto" and settings.needs_whole_head else self.head_sparsity


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How tokens are chosen and when a text ends: arguments of `Engine.generate`, by its names."""

    temp: Annotated[float, typer.Option(help="0 takes the most likely token.")] = GenerationSettings.temp
    top_k: Annotated[int, typer.Option(help="Keep the k most likely tokens; 0: all.")] = (
        GenerationSettings.top_k
    )
    top_p: Annotated[float, typer.Option(help="Keep tokens up to this sum; 1: all.")] = (
        GenerationSettings.top_p
    )
    min_p: Annotated[
        float, typer.Option(help="Keep tokens at least this likely against the likeliest; 0: all.")
    ] = GenerationSettings.min_p
    repeat_penalty: Annotated[float, typer.Option(help="Divides the logits of recent tokens; 1: off.")] = (
        GenerationSettings.repeat_penalty
    )
    repeat_last_n: Annotated[
        int, typer.Option(help="How many tokens are recent, for all penalties; -1: all.")
    ] = GenerationSettings.repeat_last_n
    presence_penalty: Annotated[
        float, typer.Option(help="Taken from the logits of recent tokens once; 0: off.")
    ] = GenerationSettings.presence_penalty
    frequency_penalty: Annotated[
        float, typer.Option(help="Taken from them as often as they occur; 0: off.")
    ] = GenerationSettings.frequency_penalty
    seed: Annotated[int | None, typer.Option(help="Same seed, same text. [default: random]")] = (
        GenerationSettings.seed
    )
    stop: Annotated[list[str] | None, typer.Option(help="Ends the text; may be repeated.")] = None
    escape: Annotated[
        bool, typer.Option("-e", "--escape", help=r"\n, \t, \xHH and so on in -p, -s and --stop as in C.")
    ] = False
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Never end the text by itself.")] = (
        GenerationSettings.ignore_eos
    )
    special: Annotated[
        bool, typer.Option("--special", help="Show control pieces, and what ends the text.")
    ] = GenerationSettings.special
    draft: Draft = GenerationSettings.draft

    def generation_settings(self) -> GenerationSettings:
        """As the engine has them."""
        stop = tuple(self.stop or ())
        if self.escape:
            stop = tuple(map(unescaped_text, stop))
        return part(GenerationSettings, self, stop=stop)


def part(kind: type[Settings], options: object, **others: Any) -> Settings:
    """Those of a command's options that one of the engine's own sets of settings has; None means its default."""
    given = {field.name: getattr(options, field.name, None) for field in fields(kind)} | others
    return kind(**{name: value for name, value in given.items() if value is not None})
