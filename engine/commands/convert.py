"""`hotcold convert`: a GGUF file from what others publish."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotcold.engine.commands.options import FFNActivation, Quiet, Version
from hotcold.engine.commands.reports import note, unwound
from hotcold.engine.commands.terminal import progress_bar
from hotcold.errors import SettingError

if TYPE_CHECKING:
    from hotcold.gguf_io.convert.summary import ConvertSummary


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """Make a GGUF file of a Hugging Face directory or GGUF file."""

    model: Annotated[Path, typer.Argument(help="Directory as Hugging Face has it, or a GGUF file.")]
    outfile: Annotated[Path, typer.Option("--outfile", help="GGUF file to write.")]
    predictors: Annotated[
        Path | None, typer.Argument(help="Predictors: a safetensors file, or PowerInfer's directory.")
    ] = None
    outtype: Annotated[
        str, typer.Option(metavar="{f32,f16,bf16,q8_0,q4_0}", help="Type of the matrices.")
    ] = "f16"
    force_pretokenizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How a BPE vocabulary cuts text. [default: the directory's]"),
    ] = None
    split_max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Write parts of at most this size: 2 (GiB), 2GiB, 500MB."),
    ] = None
    ffn_activation: FFNActivation = None
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False
    quiet: Quiet = False
    version: Version = False

    def run(self) -> None:
        """Convert, with a bar, and say what was written."""
        with unwound():
            from hotcold.gguf_io.convert.conversion import convert

            with progress_bar(not self.quiet and sys.stderr.isatty()) as progress:
                summary = convert(
                    self.model,
                    self.predictors,
                    self.outfile,
                    self.outtype,
                    force_pretokenizer=self.force_pretokenizer,
                    ffn_activation=self.ffn_activation,
                    force=self.force,
                    progress=progress,
                    max_bytes=part_bytes(self.split_max_size),
                )
            if not self.quiet:
                show_summary(summary, self.outtype)


def part_bytes(size: str | None) -> int | None:
    """Most bytes of one part; None for one file."""
    if size is None:
        return None
    from hotcold.engine.plan.budget import parse_size

    n_bytes = parse_size(size, "--split-max-size")
    if not n_bytes:
        raise SettingError("--split-max-size", size, "above 0", "leave it out for one file")
    return n_bytes


def show_summary(summary: "ConvertSummary", outtype: str) -> None:
    """What was written to stdout, warnings to stderr."""
    for warning in summary.warnings:
        note(f"warning: {warning}")
    more = f" and {len(summary.files) - 1} more parts" if len(summary.files) > 1 else ""
    how = "can run sparse" if summary.sparse else "runs dense"
    typer.echo(
        f"{summary.files[0]}{more}: {summary.n_tensors} tensors, {summary.n_bytes / 1e6:.1f} MB, "
        f"{summary.architecture}, {outtype}, {how}"
    )
    if summary.kept_f16:
        typer.echo(f"kept as f16, since {outtype} does not divide their rows: {', '.join(summary.kept_f16)}")
