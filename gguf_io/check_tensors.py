"""Looks at every block of a file for a scale, or at every float for a number, that is NaN or infinite.

One such scale makes a whole block NaN, and then every logit of every token. Damage elsewhere in a block gives
other finite numbers, which nothing can tell from right ones.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io import blocks
from hotcold.gguf_io.reader import GGUFFile
from hotcold.gguf_io.residency import ReadProgress
from hotcold.gguf_io.tensors import TensorInfo

T = GGMLQuantizationType
SLAB_BYTES = 1 << 20  # so much stays in a core's cache between two looks at it
EXPONENTS = {T.F32: 0x7F800000, T.F16: 0x7C00, T.BF16: 0x7F80}  # all ones: NaN or infinite
E8M0_NAN = 0xFF
CHECKED = frozenset({*EXPONENTS, *blocks.SCALE_BYTES})


@dataclass(frozen=True)
class _Slab:
    """Blocks of one tensor: uint8 [n_blocks, bytes a block], `first` of which precede them."""

    tensor: TensorInfo
    first: int
    data: NDArray[np.uint8]


def check_tensors(
    file: GGUFFile, n_threads: int, progress: ReadProgress | None = None, slab_bytes: int = SLAB_BYTES
) -> None:
    """Read every tensor whose type is in `CHECKED`, over some threads.

    Args:
        progress: hears of bytes looked at, bytes in all, seconds.

    Raises:
        FileError: a scale or number that is NaN or infinite; the first one, by tensor, row and block.
    """
    started, done = time.perf_counter(), 0
    total = sum(info.n_bytes for info in file.tensors.values() if info.type in CHECKED)
    pool = ThreadPoolExecutor(n_threads)  # NumPy lets go of the interpreter while it looks
    try:
        for slab, bad in pool.map(_first_bad, _slabs(file, slab_bytes)):
            if bad is not None:
                raise _damage(file, slab, bad)
            done += slab.data.size
            if progress is not None:
                progress(done, total, time.perf_counter() - started)
    finally:
        pool.shutdown(cancel_futures=True)


def _slabs(file: GGUFFile, slab_bytes: int) -> Iterator[_Slab]:
    for info in file.tensors.values():
        if info.type in CHECKED and info.n_bytes:
            data = file.data(info.name).reshape(-1, blocks.type_size(info.type))
            step = max(1, slab_bytes // data.shape[1])
            for first in range(0, len(data), step):
                yield _Slab(info, first, data[first : first + step])


def _first_bad(slab: _Slab) -> tuple[_Slab, int | None]:
    """The first of its blocks with a number or scale that is NaN or infinite."""
    kind = slab.tensor.type
    bits, exponent = _bits(slab.data, kind), EXPONENTS.get(kind, EXPONENTS[T.F16])
    bad = bits == E8M0_NAN if kind is T.MXFP4 else (bits & exponent) == exponent
    return slab, int(bad.any(1).argmax()) if bad.any() else None


def _bits(data: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[Any]:
    """The floats of each block as unsigned numbers, [n_blocks, how many]; of MXFP4 its exponents, uint8."""
    if kind in EXPONENTS:
        return data.view("<u4" if kind is T.F32 else "<u2")
    if kind is T.MXFP4:
        return data[:, :1]
    if kind is T.IQ1_M:  # four bits of the half float on top of each of the last four numbers
        tops = data[:, 48:].view("<u2") & 0xF000
        half: NDArray[np.uint16] = (tops >> np.array([12, 8, 4, 0], np.uint16)).sum(1, dtype=np.uint16)
        return half[:, None]
    return data[:, blocks.SCALE_BYTES[kind]].view("<u2")


def _damage(file: GGUFFile, slab: _Slab, bad: int) -> FileError:
    info, size = slab.tensor, blocks.block_size(slab.tensor.type)
    row, block = divmod(slab.first + bad, info.ne[0] // size)
    what = "block" if size > 1 else "number"
    bound = f"NaN or infinite {'scale' if size > 1 else 'number'} in {info.type.name}"
    where = f"{file.path_of(info.name).name}: tensor {info.name}"
    return FileError(
        where, f"row {row}, {what} {block}", bound, "the file is damaged: fetch or convert it again"
    )
