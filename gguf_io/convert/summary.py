"""What a conversion has written."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType

from hotcold.gguf_io.convert.outtypes import OUTTYPES
from hotcold.gguf_io.writer import OutputTensor


@dataclass(frozen=True)
class ConvertSummary:
    """What was written.

    Attributes:
        files: what was written: `outfile`, or the parts that it is split into. n_bytes: of all of them.
        kept_f16: matrices whose rows the wanted type does not divide, so they are F16.
        warnings: one line each.
        sparse: the file can run sparse: a ReLU model.
    """

    outfile: Path
    architecture: str
    n_tensors: int
    n_bytes: int
    files: tuple[Path, ...]
    kept_f16: tuple[str, ...]
    warnings: tuple[str, ...]
    sparse: bool


def summary_of(
    outfile: Path,
    architecture: str,
    outtype: str,
    tensors: Sequence[OutputTensor],
    written: tuple[Sequence[Path], int],
    warnings: Iterable[str],
    sparse: bool,
) -> ConvertSummary:
    """The summary of a file with these tensors; each warning once."""
    kept = [tensor.name for tensor in tensors if tensor.type is GGMLQuantizationType.F16]
    return ConvertSummary(
        outfile=outfile,
        architecture=architecture,
        n_tensors=len(tensors),
        n_bytes=written[1],
        files=tuple(written[0]),
        kept_f16=() if OUTTYPES[outtype][0] is GGMLQuantizationType.F16 else tuple(kept),
        warnings=tuple(dict.fromkeys(warnings)),
        sparse=sparse,
    )
