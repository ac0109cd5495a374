"""Options that several commands share, declared once: names, help, defaults. Light to import."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hotcold.engine import settings

DEFAULTS = settings.SamplingSettings()

ModelPath = Annotated[
    Path | None,
    typer.Option(
        "-m", "--model", help="GGUF file, or a directory that holds one. [default: the bundled model]"
    ),
]
NCtx = Annotated[
    int | None, typer.Option("-c", "--ctx-size", help="Positions. [default: the model's length, up to 4096]")
]
NBatch = Annotated[int, typer.Option("-b", "--batch-size", help="Prompt tokens that run together.")]
KVType = Annotated[str, typer.Option(metavar="{f16,f32}", help="Numbers of the KV cache.")]
Sparsity = Annotated[
    str, typer.Option(metavar="{auto,exact,off,predictor}", help="Which neurons of the FFN are computed.")
]
DeviceName = Annotated[
    str, typer.Option("--device", metavar="{auto,cuda[:N],emulated,cpu}", help="What hot rows run on.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more on stderr.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing on stderr but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@dataclass(frozen=True)
class EngineOptions:
    """What runs, and how: the arguments of `hotcold.load`, by its names."""

    path: ModelPath = None
    threads: Annotated[int | None, typer.Option("-t", "--threads", help="[default: physical cores]")] = None
    n_ctx: NCtx = None
    n_batch: NBatch = settings.DEFAULT_N_BATCH
    kv_type: KVType = "f16"
    sparsity: Sparsity = "auto"
    sparse_pred_threshold: Annotated[
        float | None,
        typer.Option(
            "--sparse-pred-threshold",
            "--sparse-threshold",
            help="Predictor outputs at or above it count as active. "
            f"[default: {settings.THRESHOLD_VARIABLE}, else the file's]",
        ),
    ] = None
    force_pretokenizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How a BPE vocabulary cuts text into words. [default: the file's]"),
    ] = None
    device: DeviceName = "auto"
    vram_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="GPU memory to use: 8 (GiB), 6000MiB, 80%, auto, or 0.")
    ] = "auto"
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse to run elsewhere, or with less, than was asked for.")
    ] = False


@dataclass(frozen=True)
class PerplexityOptions(EngineOptions):
    """An engine whose context is one chunk of a text."""

    n_ctx: Annotated[int, typer.Option("-c", "--ctx-size", help="Ids of a chunk.")] = 512


@dataclass(frozen=True)
class BenchOptions(EngineOptions):
    """An engine whose context is what its tests need."""

    n_ctx: Annotated[
        int | None, typer.Option("-c", "--ctx-size", help="Positions. [default: what the tests need]")
    ] = None


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen and when a text ends: arguments of `Engine.generate`, by its names."""

    temp: Annotated[float, typer.Option(help="0 takes the most likely token.")] = DEFAULTS.temp
    top_k: Annotated[int, typer.Option(help="Keep the k most likely tokens; 0: all.")] = DEFAULTS.top_k
    top_p: Annotated[float, typer.Option(help="Keep tokens up to this sum; 1: all.")] = DEFAULTS.top_p
    min_p: Annotated[
        float, typer.Option(help="Keep tokens at least this likely against the likeliest; 0: all.")
    ] = DEFAULTS.min_p
    repeat_penalty: Annotated[float, typer.Option(help="Makes the last 64 tokens less likely; 1: off.")] = (
        DEFAULTS.repeat_penalty
    )
    seed: Annotated[int | None, typer.Option(help="Same seed, same text. [default: random]")] = None
    stop: Annotated[list[str], typer.Option(help="Ends the text; may be repeated.")] = field(
        default_factory=list
    )
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Never end the text by itself.")] = False


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it: each parameter that is a group of options gives way to its fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {
        name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)
    }
    fields = {name: get_type_hints(group, include_extras=True) for name, group in groups.items()}
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        shown = [parameter.replace(annotation=hints[parameter.name])]
        if parameter.name in groups:
            defaults = groups[parameter.name]()
            shown = [
                parameter.replace(name=name, annotation=hint, default=getattr(defaults, name))
                for name, hint in fields[parameter.name].items()
            ]
        parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in shown]

    @functools.wraps(command)
    def grouped(**values: Any) -> None:
        made = {
            name: group(**{option: values.pop(option) for option in fields[name]})
            for name, group in groups.items()
        }
        command(**made, **values)

    del grouped.__wrapped__  # typer would look through it
    grouped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    grouped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return grouped
