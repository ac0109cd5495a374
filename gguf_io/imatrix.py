"""The form of llama.cpp's importance matrices: how much an error in each column of a model's matrices weighs.

A GGUF file with general.type "imatrix", and for each matrix the sums of squares of its inputs, `NAME.in_sum2`
[1, columns], and how many were summed, `NAME.counts` [1, 1].
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
        sums: of squares of each column's input, float64 [columns], by matrix.
        n_tokens: that were summed, alike for all matrices.
        n_chunks: that they came in.
        n_ctx: most tokens of a chunk.
        texts: names of what was read.
    """

    architecture: str
    sums: Mapping[str, NDArray[np.float64]]
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
    tensors, n = [], np.array([importance.n_tokens], np.float32)
    for name, sums in sorted(importance.sums.items()):
        tensors += [_vector(name + SUMS, sums.astype(np.float32)), _vector(name + COUNTS, n)]
    return write_gguf(path, Contents(importance.architecture, metadata, tensors), force=force)


def _vector(name: str, numbers: NDArray[np.float32]) -> OutputTensor:
    def chunks() -> Iterator[NDArray[np.uint8]]:
        yield numbers.view(np.uint8)

    return OutputTensor(name, GGMLQuantizationType.F32, (numbers.size, 1), numbers.nbytes, chunks)
