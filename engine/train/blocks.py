"""A layer's arithmetic in blocks of fixed sizes, on several threads: the same bits by any number of them.

BLAS left to itself cuts products where its number of threads says, and sums differ in their last bits with that. So
it has one thread here, and each block is a product of its own.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

from threadpoolctl import threadpool_limits

ResultT = TypeVar("ResultT")


class Each(Protocol):
    """Calls a function with each block of `n` things, `size` in a block; what it gives, in their order."""

    def __call__(self, function: Callable[[slice], ResultT], n: int, size: int) -> list[ResultT]:
        """Blocks write what is theirs alone."""


def blocks(n: int, size: int) -> list[slice]:
    """Of `size`, the last one smaller."""
    return [slice(at, min(at + size, n)) for at in range(0, n, size)]


def in_turn(function: Callable[[slice], ResultT], n: int, size: int) -> list[ResultT]:
    """An `Each` of this thread alone."""
    return list(map(function, blocks(n, size)))


@contextmanager
def threads(n: int) -> Iterator[Each]:
    """An `Each` of so many threads, with one of BLAS in each."""
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(n) as pool:

        def each(function: Callable[[slice], ResultT], n: int, size: int) -> list[ResultT]:
            return list(pool.map(function, blocks(n, size)))

        yield each
