"""The rows of a split FFN that stay on the CPU, in the forms in which kernels take them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.kernels.cpu import program
from hotcold.kernels.formats import mask_bytes


@dataclass(frozen=True)
class ColdRows:
    """Cold rows of one layer.

    Attributes:
        listed: int64, their number and then themselves, ascending.
        bits: uint64, bit i % 64 of word i // 64 is set for cold row i.
    """

    listed: NDArray[np.int64]
    bits: NDArray[np.uint64]

    @property
    def list_fields(self) -> dict[str, int]:
        """The fields of a record that reads the list."""
        return {"listed": self.listed.ctypes.data + 8, "n_listed": self.listed.ctypes.data}


def cold_rows(hot: NDArray[np.int32], n_ff: int) -> ColdRows:
    """The rows of 0 to n_ff - 1 that are not hot."""
    is_cold = np.ones(n_ff, np.bool_)
    is_cold[hot] = False
    ids = np.flatnonzero(is_cold)
    listed = np.concatenate([[ids.size], ids]).astype(np.int64)
    bits = program.aligned(mask_bytes(n_ff))
    packed = np.packbits(is_cold, bitorder="little")
    bits[: packed.size] = packed
    return ColdRows(listed, bits.view(np.uint64))
