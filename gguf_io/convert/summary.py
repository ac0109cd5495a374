"""The end of every conversion: the file is written, and what was written is told."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType

from hotcold.gguf_io import blocks
from hotcold.gguf_io.convert.options import ConvertOptions
from hotcold.gguf_io.outtypes import Recipe, intended_type
from hotcold.gguf_io.split_writer import planned, write_model
from hotcold.gguf_io.writer import Contents, OutputTensor

T = GGMLQuantizationType


@dataclass(frozen=True)
class ConvertSummary:
    """What was written.

    Attributes:
        files: what was written: `outfile`, or the parts that it is split into.
        n_bytes: of all of them.
        tensors: all of them, in order.
        fell_back: matrices whose rows the wanted type does not divide, by that type and the one they got.
        warnings: one line each.
        sparse: the file can run sparse: a ReLU model.
    """

    outfile: Path
    architecture: str
    n_bytes: int
    files: tuple[Path, ...]
    tensors: tuple[OutputTensor, ...]
    fell_back: Mapping[tuple[T, T], tuple[str, ...]]
    warnings: tuple[str, ...]
    sparse: bool

    @property
    def n_tensors(self) -> int:
        """How many tensors the file has."""
        return len(self.tensors)


def write(
    outfile: Path,
    contents: Contents,
    recipe: Recipe,
    options: ConvertOptions,
    warnings: Iterable[str],
    sparse: bool,
) -> ConvertSummary:
    """Write a model, or with `dry_run` only plan it; its summary, each warning once.

    Args:
        recipe: by which the types of its matrices were chosen. sparse: whether it can run sparse.

    Raises:
        FileError, SettingError, DoesNotFitError: as `write_model`.
    """
    if options.dry_run:
        files, n_bytes = planned(outfile, contents.tensors, options.max_bytes)
    else:
        files, n_bytes = write_model(
            outfile,
            contents,
            force=options.force,
            progress=options.progress,
            max_bytes=options.max_bytes,
        )
    return ConvertSummary(
        outfile=outfile,
        architecture=contents.architecture,
        n_bytes=n_bytes,
        files=tuple(files),
        tensors=tuple(contents.tensors),
        fell_back=_fell_back(contents.tensors, recipe),
        warnings=tuple(dict.fromkeys(warnings)),
        sparse=sparse,
    )


def _fell_back(tensors: Sequence[OutputTensor], recipe: Recipe) -> dict[tuple[T, T], tuple[str, ...]]:
    found: dict[tuple[T, T], tuple[str, ...]] = {}
    for tensor in tensors:
        if len(tensor.ne) > 1 and tensor.name.endswith("weight"):
            wanted = intended_type(tensor.name, tensor.ne[0], recipe)
            if tensor.ne[0] % blocks.block_size(wanted):
                key = wanted, tensor.type
                found[key] = (*found.get(key, ()), tensor.name)
    return found
