"""A bug of the kernels' text: what it changes, who finds it, and what is said."""

from collections.abc import Sequence
from dataclasses import dataclass

from kernel_launches import Run

ORDERS = (0, 1, 7, 1234)


@dataclass(frozen=True)
class Bug:
    """`old` becomes `new` in the program of `file`.

    `said` is found in the error, and so is the line of each snippet of `lines`, `file:number`, as they stand after
    the edit. The program's kernels multiply matrices of `types`.
    """

    file: str
    run: Run
    old: str
    new: str
    said: str
    lines: Sequence[str] = ()
    build_kind: str = "races"
    orders: Sequence[int] = ORDERS
    types: Sequence[str] = ("f32", "f16")


BARRIER = "    __syncthreads();"
