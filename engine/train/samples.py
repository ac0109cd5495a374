"""What a layer's predictor is trained on, out of files that are mapped: inputs, and which neurons fired."""

import mmap
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.train.arithmetic import Arithmetic, Array

ScalarT = TypeVar("ScalarT", bound=np.generic)
AT_ONCE = 256  # rows between two times that pages are given back


@dataclass(frozen=True)
class Samples:
    """Of one layer: float16 x [n_tokens, n_embd], and which neurons fired as bits, uint8 [n_tokens, n_ff / 8].

    Attributes:
        gives_back: whether pages of the files' maps leave this process's memory once they are read.
    """

    x: NDArray[np.float16]
    bits: NDArray[np.uint8]
    n_ff: int
    gives_back: bool = False

    def batch(self, which: NDArray[np.int64] | slice, on: Arithmetic) -> tuple[Array, Array]:
        """Some tokens: x by its root mean square, on which no predictor's sign depends, and what fired."""
        return self.inputs(which, on), on.bits(self._rows(self.bits, which), self.n_ff)

    def inputs(self, which: NDArray[np.int64] | slice, on: Arithmetic) -> Array:
        """`batch`'s x alone."""
        x = on.put(self._rows(self.x, which)).astype(np.float32)
        x /= on.xp.sqrt((x * x).mean(1, keepdims=True) + 1e-12)
        return x

    def _rows(self, array: NDArray[ScalarT], which: NDArray[np.int64] | slice) -> NDArray[ScalarT]:
        if not self.gives_back:
            return np.ascontiguousarray(array[which])
        ids = np.arange(len(array))[which]
        found = np.empty((ids.size, array.shape[1]), array.dtype)
        for at in range(0, ids.size, AT_ONCE):
            found[at : at + AT_ONCE] = array[ids[at : at + AT_ONCE]]
            give_back(array)
        return found


def give_back(array: NDArray[np.generic]) -> None:
    """Let pages of a mapped array leave this process's memory; they are still in the system's, or on the disk."""
    if isinstance(array.base, mmap.mmap):
        with suppress(OSError):
            array.base.madvise(mmap.MADV_DONTNEED)


def files_of(folder: Path, layer: int) -> tuple[Path, Path]:
    """Where a layer's x and bits are."""
    return folder / f"inputs_{layer}.npy", folder / f"fired_{layer}.npy"


def open_samples(folder: Path, layer: int, n_ff: int, gives_back: bool = False) -> Samples:
    """What `collect` wrote of a layer, mapped."""
    x, bits = (np.load(path, mmap_mode="r") for path in files_of(folder, layer))
    return Samples(x, bits, n_ff, gives_back)
