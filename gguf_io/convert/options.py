"""How a model is converted: what every step of a conversion may want to know."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotcold.gguf_io.writer import WriteProgress


@dataclass(frozen=True)
class ConvertOptions:
    """What is to be made, and how.

    Attributes:
        outtype: of the matrices, one of OUTTYPES.
        force_pretokenizer: how a BPE vocabulary cuts text into words, whatever a directory says.
        ffn_activation: what the FFN has, whatever the source says; the file then says so.
        sparse_layout: give the down projection a row a neuron, whatever the FFN's function is.
        max_bytes: splits the model into files whose tensors take no more; None for one file.
        imatrix: an importance matrix, llama.cpp's GGUF file, which says how much an error in each column of a
            matrix weighs.
        force: write over a file that exists.
        dry_run: check and plan all, and write nothing.
        progress: hears tensor name, bytes done, bytes in all.
    """

    outtype: str
    force_pretokenizer: str | None = None
    ffn_activation: str | None = None
    sparse_layout: bool = False
    max_bytes: int | None = None
    imatrix: Path | None = None
    force: bool = False
    dry_run: bool = False
    progress: "WriteProgress | None" = None
