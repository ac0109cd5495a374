"""Weights and inputs for the kernels' tests, on the host and on a device."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from random_weights import random_weights

from hotcold.kernels import ref
from hotcold.kernels.cuda import planes
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.quantise import quantise
from hotcold.kernels.cuda.weights import weight_planes
from hotcold.kernels.formats import mask_words
from hotcold.kernels.weight_table import QUANTISED, WEIGHT_TYPES, device_row_bytes

Array = NDArray[Any]
Put = Callable[[Device, Array], Buffer]
Get = Callable[[Device, Buffer], Array]
Type = GGMLQuantizationType


QUICK_TYPES = (Type.F16, Type.Q8_0, Type.Q4_0, Type.Q6_K)
"""Those on which all kernels are tested in a quick run; how the others are read is tested in test_weights.py."""


def each_type(*without: Type, quick: Collection[Type] = QUICK_TYPES) -> list[Any]:
    """Every type that the device has, as a parameter of a test; slow but for some."""
    return [
        pytest.param(kind, id=kind.name, marks=[] if kind in quick else [pytest.mark.slow])
        for kind in WEIGHT_TYPES
        if kind not in without
    ]


def listing(device: Device, put: Put, listed: Array, neurons: Array) -> tuple[Buffer, Buffer]:
    """Masks of neurons, bool [n_tokens, n_ff], and the bits of those whose rows are here, all past the end."""
    n_ff, held = listed.shape[1], np.zeros((1, listed.shape[1]), bool)
    held[0, neurons] = True
    past = (0, 0), (0, 32 * mask_words(n_ff) - n_ff)
    masks, here = np.pad(listed, past, constant_values=True), np.pad(held, past)
    return put(device, ref.mask_bits(masks)), put(device, ref.mask_bits(here)[0])


def block_of(weight_type: Type) -> int:
    """Weights of a block, of which rows of the tests have whole numbers: 32 for types without blocks."""
    return max(32, GGML_QUANT_SIZES[weight_type][0])


@dataclass(frozen=True)
class Matrix:
    """Random weights of a type: the file's rows and the numbers that they stand for."""

    type: Type
    rows: Array
    values: NDArray[np.float32]

    def planes(self, device: Device, put: Put) -> tuple[Buffer, ...]:
        n_rows, n = self.values.shape
        held = np.empty(n_rows * device_row_bytes(self.type, n), np.uint8)
        planes.to_planes(self.rows, self.type, held)
        return weight_planes(put(device, held), self.type, n_rows, n)


def random_matrix(weight_type: Type, n_rows: int, n: int, seed: int = 0) -> Matrix:
    return Matrix(weight_type, *random_weights(weight_type, n_rows, n, np.random.default_rng(seed)))


def normal(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def error(got: Array, want: Array) -> float:
    """Relative RMS error."""
    return float(np.sqrt(((got - want) ** 2).sum() / (want**2).sum()))


def worst_error(got: Array, want: Array) -> float:
    """The largest difference, relative to the largest number wanted."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def empty_quantised(device: Device, n_tokens: int, n: int) -> tuple[Buffer, Buffer, Buffer]:
    blocks = n_tokens * n // 32
    return device.empty(n_tokens * n, "i1"), device.empty(blocks, "f4"), device.empty(blocks, "i4")


def inputs(device: Device, put: Put, weight_type: Type, x: NDArray[np.float32]) -> tuple[Buffer, ...]:
    """What a kernel of this type takes for x: x itself, or x quantised on the device."""
    given = put(device, x)
    if weight_type not in QUANTISED:
        return (given,)
    out = empty_quantised(device, *x.shape)
    quantise(*x.shape).launch(device, (given, *out, x.size // 32), device.compute)
    return out
