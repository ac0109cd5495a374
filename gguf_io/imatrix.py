"""The form of llama.cpp's importance matrices: how much an error in each column of a model's matrices weighs.

A GGUF file with general.type "imatrix", and for each matrix the sums of squares of its inputs, `NAME.in_sum2`
[1, columns], and how many were summed, `NAME.counts` [1, 1]. A tensor of experts' matrices has a row of each for
every expert, since each sees tokens of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from hotcold.gguf_io.writer import Contents, MetadataValue, OutputTensor, array, string, uint32, write_gguf

KIND, SUMS, COUNTS = "general.type", ".in_sum2", ".counts"
IMATRIX = "imatrix"


@dataclass(frozen=True)
class Importance:
    """What was summed up.

    Attributes:
        architecture: of the model.
        sums: of squares of each column's input, float64 [matrices, columns], by tensor.
        counts: of the inputs that were summed, float64 [matrices], by tensor.
        n_tokens: that passed.
        n_chunks: that they came in.
        n_ctx: most tokens of a chunk.
        texts: names of what was read.
    """

    architecture: str
    sums: Mapping[str, NDArray[np.float64]]
    counts: Mapping[str, NDArray[np.float64]]
    n_tokens: int
    n_chunks: int
    n_ctx: int
    texts: Sequence[str]


def write_imatrix(path: Path, importance: Importance, *, force: bool = False) -> int:
    """Write `path` whole or not at all; its size in bytes.

    Raises:
        FileError, SettingError, DoesNotFitError: as `write_gguf`.
    """
    metadata: dict[str, MetadataValue] = {
        KIND: string(IMATRIX),
        "imatrix.datasets": array(list(importance.texts), GGUFValueType.STRING),
        "imatrix.chunk_count": uint32(importance.n_chunks),
        "imatrix.chunk_size": uint32(importance.n_ctx),
    }
    tensors = []
    for name, sums in sorted(importance.sums.items()):
        tensors += [_rows(name + SUMS, sums), _rows(name + COUNTS, importance.counts[name][:, None])]
    return write_gguf(path, Contents(importance.architecture, metadata, tensors), force=force)


def _rows(name: str, rows: NDArray[np.float64]) -> OutputTensor:
    numbers = np.ascontiguousarray(rows, np.float32)

    def chunks() -> Iterator[NDArray[np.uint8]]:
        yield numbers.view(np.uint8)

    return OutputTensor(name, GGMLQuantizationType.F32, numbers.shape[::-1], numbers.nbytes, chunks)
