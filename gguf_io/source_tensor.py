"""A tensor of the model that is being converted: where its numbers lie, not the numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io.torch_pickle import TorchTensor

STORED_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
BYTES = "U8"
"""Of MXFP4's blocks and scales, which are no numbers yet."""


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a source file.

    Attributes:
        name: as the source file has it.
        shape: NumPy order, row length last.
        dtype: "F32", "F16" or "BF16".
        read: reads the whole tensor, shape `shape`, in `STORED_TYPES[dtype]` (BF16 as its 16 bits).
        read_entries: reads entries first to last - 1 of its first dimension; None where the file can be read in one
            piece alone.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], NDArray[Any]]
    read_entries: Callable[[int, int], NDArray[Any]] | None = None

    def entries(self, first: int, last: int) -> NDArray[Any]:
        """Entries first to last - 1 of the first dimension."""
        return self.read()[first:last] if self.read_entries is None else self.read_entries(first, last)


def as_float32(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """`stored` (numbers of `SourceTensor.read`, any shape) as C-contiguous float32 of the same shape.

    A BF16 number is the upper half of a float32, so its bits move up by 16.
    """
    if dtype == "BF16":
        return (np.ascontiguousarray(stored).astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(stored, dtype=np.float32)


def of_torch(name: str, tensor: TorchTensor) -> SourceTensor:
    """A tensor of a `.pt` or `.bin` file under the name `name`; FileError if it holds no floats."""
    if tensor.dtype not in STORED_TYPES:
        raise FileError(
            f"{tensor.path}: {name}", f"element type {tensor.dtype}", "F32, F16 or BF16", "save it as one"
        )
    return SourceTensor(name, tensor.shape, tensor.dtype, tensor.read)
