"""One kernel at one size: its launches, its result, and what the oracle says.

Weights are random. Of a large result a sample of rows is worked out by the oracle, the rest is only timed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gpu_bed import Array, Bed
from numpy.typing import NDArray

from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Prepared
from hotcold.kernels.cuda.work import Work

FAITHFUL = 1e-5
"""Largest difference from the oracle, relative to its largest number."""
EXACT = 0.0
ONE_STEP = 1 / 127
"""A number that lies half way between two roundings may go either way."""
SAMPLE = 256
LISTED = 0.1
"""Share of neurons that masks list."""
EPS = 1e-5


@dataclass(frozen=True)
class Sizes:
    """Of a model, and of a batch of its tokens."""

    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_tokens: int
    n_ctx: int

    @property
    def head_dim(self) -> int:
        """Numbers a head."""
        return self.n_embd // self.n_head

    @property
    def heads(self) -> tuple[int, int, int]:
        """As kernels take them."""
        return self.n_head, self.n_head_kv, self.head_dim


@dataclass(frozen=True)
class Case:
    """One kernel at one size.

    Attributes:
        launches: the same work on different copies of the weights. The first is checked.
        got, want: the result, after the first launch, and the oracle's.
        bound: of the difference.
    """

    size: str
    work: Work
    launches: Sequence[Prepared]
    got: Callable[[], Array]
    want: Callable[[], Array]
    bound: float = FAITHFUL


def normal(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    """Random numbers."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def sample(n: int) -> NDArray[np.int64]:
    """Some of n rows, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).astype(np.int64))


def one(
    bed: Bed,
    size: str,
    work: Work,
    arguments: Sequence[Any],
    out: Buffer,
    want: Callable[[], Array],
    bound: float = FAITHFUL,
) -> Case:
    """A kernel without weights, whose result is one buffer."""
    return Case(size, work, [work.prepare(bed.device, arguments)], partial(bed.get, out), want, bound)


def joined(bed: Bed, buffers: Sequence[Buffer]) -> Array:
    """Several results in a row."""
    return np.concatenate([bed.get(buffer).ravel().astype(np.float64) for buffer in buffers])
