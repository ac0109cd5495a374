"""`hotcold convert`: a GGUF file from what others publish."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotcold.engine.commands.options import FFNActivation, Quiet, Version
from hotcold.engine.commands.reports import note, unwound
from hotcold.engine.commands.terminal import progress_bar, write_line
from hotcold.errors import SettingError

if TYPE_CHECKING:
    from hotcold.gguf_io.convert.summary import ConvertSummary

MAX_LISTED = 8  # matrices that fell back to one type


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """Make a GGUF file, of a directory or another GGUF file."""

    model: Annotated[Path, typer.Argument(help="Directory as Hugging Face has it, or a GGUF file.")]
    outfile: Annotated[Path, typer.Option("--outfile", help="GGUF file to write.")]
    predictors: Annotated[
        Path | None, typer.Argument(help="Predictors: a safetensors file, or PowerInfer's directory.")
    ] = None
    outtype: Annotated[
        str, typer.Option(metavar="TYPE", help="Type of the matrices: f16, q8_0, q4_k_m... (README has all).")
    ] = "f16"
    force_pretokenizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How a BPE vocabulary cuts text. [default: the directory's]"),
    ] = None
    split_max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Write parts of at most this size: 2 (GiB), 2GiB, 500MB."),
    ] = None
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="How much an error in each column weighs: llama.cpp's imatrix."),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the size and every tensor's type; write nothing.")
    ] = False
    ffn_activation: FFNActivation = None
    sparse_layout: Annotated[
        bool, typer.Option("--sparse-layout", help="Store a row a neuron of the down projection.")
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False
    quiet: Quiet = False
    version: Version = False

    def run(self) -> None:
        """Convert, with a bar, and say what was written."""
        with unwound():
            from hotcold.gguf_io.convert.conversion import convert_with
            from hotcold.gguf_io.convert.options import ConvertOptions

            with progress_bar(not self.quiet and sys.stderr.isatty()) as progress:
                options = ConvertOptions(
                    self.outtype,
                    force_pretokenizer=self.force_pretokenizer,
                    ffn_activation=self.ffn_activation,
                    sparse_layout=self.sparse_layout,
                    max_bytes=part_bytes(self.split_max_size),
                    imatrix=self.imatrix,
                    force=self.force,
                    dry_run=self.dry_run,
                    progress=progress,
                )
                summary = convert_with(self.model, self.predictors, self.outfile, options)
            if self.dry_run:
                show_tensors(summary)
            if not self.quiet:
                show_summary(summary, self.outtype, "would be written: " if self.dry_run else "")


def part_bytes(size: str | None) -> int | None:
    """Most bytes of one part; None for one file."""
    if size is None:
        return None
    from hotcold.engine.plan.budget import parse_size

    n_bytes = parse_size(size, "--split-max-size")
    if not n_bytes:
        raise SettingError("--split-max-size", size, "above 0", "leave it out for one file")
    return n_bytes


def show_summary(summary: "ConvertSummary", outtype: str, begin: str = "") -> None:
    """What was written to stdout, warnings to stderr."""
    for warning in summary.warnings:
        note(f"warning: {warning}")
    if sys.stdout is None:  # the file is there, whoever hears of it
        return
    more = f" and {len(summary.files) - 1} more parts" if len(summary.files) > 1 else ""
    how = "can run sparse" if summary.sparse else "runs dense"
    write_line(
        f"{begin}{summary.files[0]}{more}: {summary.n_tensors} tensors, {summary.n_bytes / 1e6:.1f} MB, "
        f"{summary.architecture}, {outtype}, {how}"
    )
    for (wanted, got), names in summary.fell_back.items():
        listed = ", ".join(names[:MAX_LISTED]) + (
            f" and {left} more" if (left := len(names) - MAX_LISTED) > 0 else ""
        )
        write_line(f"{got.name}, since blocks of {wanted.name} do not divide their rows: {listed}")


def show_tensors(summary: "ConvertSummary") -> None:
    """Every tensor with its shape, type and bytes."""
    width = max((len(tensor.name) for tensor in summary.tensors), default=0)
    for tensor in summary.tensors:
        shape = " x ".join(str(n) for n in tensor.ne)
        write_line(f"{tensor.name:{width}}  {shape:>16}  {tensor.type.name:6}  {tensor.n_bytes:>14}")
