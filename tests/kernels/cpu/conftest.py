"""What the CPU kernel tests share: the distance to an oracle, packing, and runs of op records."""

import ctypes
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.kernels.cpu import pack, program, sizes, team

LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def assert_near() -> Callable[[Any, Any], None]:
    """assert_near(got, wanted): no number is off by more than 1e-5 of the largest one wanted."""

    def check(got: Any, wanted: Any) -> None:
        assert np.shape(got) == np.shape(wanted)
        assert np.isfinite(got).all()
        error, bound = np.abs(np.asarray(got, np.float64) - wanted).max(), 1e-5 * np.abs(wanted).max()
        assert error <= bound

    return check


@pytest.fixture
def packed() -> Callable[[NDArray[np.float32]], NDArray[np.uint8]]:
    """packed(x): float32 [n_tokens, k] packed for block types, uint8 [n_tokens, packed_bytes(k)]."""

    def make(x: NDArray[np.float32]) -> NDArray[np.uint8]:
        n_tokens, k = x.shape
        # filled with ones, so that whatever packing leaves out shows
        out = program.aligned(n_tokens * sizes.packed_bytes(k)).reshape(n_tokens, -1)
        out[:] = 0xFF
        for source, target in zip(np.ascontiguousarray(x), out, strict=True):
            pack.pack_row(source.ctypes.data, k, target.ctypes.data)
        return out

    return make


@pytest.fixture
def scratch() -> NDArray[np.uint8]:
    """One thread's scratch memory, filled with ones: NaN as float32."""
    memory = program.aligned(program.THREAD_SCRATCH_BYTES)
    memory[:] = 0xFF
    return memory


@pytest.fixture
def run_ops() -> Callable[..., None]:
    """run_ops(ops, n_threads=1, **run): walk records once; run parameters by their name in lower case."""

    def run(ops: list[dict[str, Any]], n_threads: int = 1, **parameters: int) -> None:
        job = team.Program(ops)
        job.run[program.N_TOKENS] = 1
        for name, value in parameters.items():
            job.run[getattr(program, name.upper())] = value
        crew = team.Team(n_threads)
        try:
            crew.walk(job)
        finally:
            crew.close()

    return run


@pytest.fixture
def before_a_hole() -> Iterator[Callable[[NDArray[Any]], NDArray[Any]]]:
    """before_a_hole(array): a copy whose last byte is followed by memory that nobody may touch."""
    maps: list[tuple[mmap.mmap, int]] = []

    def place(array: NDArray[Any]) -> NDArray[Any]:
        size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = mmap.mmap(-1, size + mmap.PAGESIZE)
        view = np.frombuffer(pages, np.uint8)
        hole = view.ctypes.data + size
        if LIBC.mprotect(ctypes.c_void_p(hole), ctypes.c_size_t(mmap.PAGESIZE), 0):
            pytest.skip("mprotect is refused here")
        maps.append((pages, hole))
        copy = view[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy

    yield place
    for _, hole in maps:
        LIBC.mprotect(ctypes.c_void_p(hole), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE)
