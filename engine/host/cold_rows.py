"""The rows of a split FFN that stay on the CPU, in the forms in which kernels take them.

Of experts that are divided by neurons each expert has a list and a mask of its own.
"""

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


@dataclass(frozen=True)
class ColdNeurons:
    """Cold rows of one layer's experts.

    Attributes:
        n: int64 [n_expert], how many each expert has.
        listed: int64 [n_expert, n_ff + 1], of each expert their number and then themselves, ascending.
        bits: uint64 [n_expert, words], each expert's as `ColdRows` has them.
    """

    n: NDArray[np.int64]
    listed: NDArray[np.int64]
    bits: NDArray[np.uint64]


def cold_rows(hot: NDArray[np.int32], n_ff: int) -> ColdRows:
    """The rows of 0 to n_ff - 1 that are not hot."""
    ids = np.flatnonzero(_is_cold(hot, n_ff))
    listed = np.concatenate([[ids.size], ids]).astype(np.int64)
    return ColdRows(listed, _bits(_is_cold(hot, n_ff)[None])[0])


def cold_neurons(hot: NDArray[np.int32], n_expert: int, n_ff: int) -> ColdNeurons:
    """The rows of each of n_expert experts that are not hot; neuron e n_ff + r is row r of expert e."""
    is_cold = _is_cold(hot, n_expert * n_ff).reshape(n_expert, n_ff)
    listed = np.zeros((n_expert, n_ff + 1), np.int64)
    for own, cold in zip(listed, is_cold, strict=True):
        ids = np.flatnonzero(cold)
        own[0], own[1 : 1 + ids.size] = ids.size, ids
    return ColdNeurons(listed[:, 0].copy(), listed, _bits(is_cold))


def _is_cold(hot: NDArray[np.int32], n: int) -> NDArray[np.bool_]:
    is_cold = np.ones(n, np.bool_)
    is_cold[hot] = False
    return is_cold


def _bits(of_rows: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Bits of several rows of booleans, each in words of its own: uint64 [rows, words]."""
    n_rows, n = of_rows.shape
    bits = program.aligned(n_rows * mask_bytes(n)).reshape(n_rows, -1)
    packed = np.packbits(of_rows, axis=1, bitorder="little")
    bits[:, : packed.shape[1]] = packed
    return bits.view(np.uint64)
