"""Where a layer's arithmetic runs: NumPy on threads of this processor, or CuPy on a card. It is written once for both.

On the processor products and what goes by rows are cut into blocks of fixed sizes: the same bits by any number of
threads. BLAS left to itself cuts products where its number of threads says, and sums differ in their last bits with
that. So it has one thread here, and each block is a product of its own. A card takes all blocks as one.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hotcold.engine.device.choice import DeviceChoice
from hotcold.errors import SettingError

ResultT = TypeVar("ResultT")
Array = Any
"""Of NumPy or of CuPy."""
F32 = NDArray[np.float32]


class Each(Protocol):
    """Calls a function with each block of `n` things, `size` in a block; what it gives, in their order."""

    def __call__(self, function: Callable[[slice], ResultT], n: int, size: int) -> list[ResultT]:
        """Blocks write what is theirs alone."""


@dataclass(frozen=True)
class Arithmetic:
    """An array module, and who does a block.

    Attributes:
        xp: numpy, or a module of its functions for arrays elsewhere.
        n_threads: that have blocks in work.
    """

    xp: Any = np
    each: Each = lambda function, n, size: list(map(function, blocks(n, size)))
    n_threads: int = 1

    def put(self, numbers: NDArray[Any]) -> Array:
        """Numbers of this machine's memory as an array of the module."""
        return self.xp.asarray(numbers)

    def get(self, array: Array) -> NDArray[Any]:
        """An array of the module in this machine's memory."""
        return np.asarray(array) if self.xp is np else np.asarray(self.xp.asnumpy(array))

    def bits(self, packed: NDArray[np.uint8], n: int) -> Array:
        """Bool [rows, n] of bits [rows, bytes], the lowest first."""
        flat = self.xp.unpackbits(self.put(packed).reshape(-1), bitorder="little")
        return flat.reshape(len(packed), -1)[:, :n].view(np.bool_)


ALONE = Arithmetic()
"""NumPy on this thread."""


def blocks(n: int, size: int) -> list[slice]:
    """Of `size`, the last one smaller."""
    return [slice(at, min(at + size, n)) for at in range(0, n, size)]


@contextmanager
def threads(n: int) -> Iterator[Arithmetic]:
    """NumPy on so many threads, with one of BLAS in each."""
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(n) as pool:

        def each(function: Callable[[slice], ResultT], n: int, size: int) -> list[ResultT]:
            return list(pool.map(function, blocks(n, size)))

        yield Arithmetic(np, each, n)


def on_card(cupy: Any) -> Arithmetic:
    """CuPy on its current device."""
    return Arithmetic(cupy, lambda function, n, size: [function(slice(0, n))])


@contextmanager
def arithmetic_on(choice: DeviceChoice, n_threads: int) -> Iterator[Arithmetic]:
    """The arithmetic of a device; "auto" is the first card that multiplies, else this processor.

    Raises:
        SettingError: the emulated device, which runs kernels and no arrays. DeviceError: a card that cannot be used.
    """
    if choice.kind == "emulated":
        bound = "predictors are trained on arrays, which it has none of"
        raise SettingError("device", choice.kind, bound, "use --device cpu, or a card")
    with ExitStack() as stack:
        cupy = None
        if choice.kind != "cpu":
            from hotcold.engine.device.card_arrays import card_arrays  # which takes a moment

            cupy = stack.enter_context(card_arrays(choice))
        yield on_card(cupy) if cupy is not None else stack.enter_context(threads(n_threads))
