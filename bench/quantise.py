"""Rounding to block types: numbers a second of each type on one core, beside ggml's own functions.

    pip install llama-cpp-python        (builds from source; without it only hotcold is measured)
    python bench/quantise.py [TYPE ...] [--rows 64]

Both round the same normal numbers, in rows of 4096, and the blocks are compared.
"""

import argparse
import ctypes
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.gguf_io import blocks
from hotcold.gguf_io.quantise.rows import KERNELS, NOTHING

REPEATS, N = 5, 4096


def ggml() -> ctypes.CDLL | None:
    """Its library, where llama-cpp-python is installed."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(str(Path(found.origin).parent / "lib" / "libggml-base.so"))
    pointer = ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, *[ctypes.c_int64] * 3, pointer]
    return library


def best_seconds(work: Callable[[], None]) -> float:
    """The least processor time of a few runs: another process's turn does not count."""
    times = []
    for _ in range(REPEATS):
        begin = time.thread_time()
        work()
        times.append(time.thread_time() - begin)
    return min(times)


def measure(kind: GGMLQuantizationType, rows: NDArray[np.float32], library: ctypes.CDLL | None) -> str:
    """One line of the table."""
    ours = np.empty((len(rows), blocks.row_bytes(kind, N)), np.uint8)
    theirs = np.empty_like(ours)
    KERNELS[kind](rows[:1], NOTHING, ours[:1])  # compiled, or read from the cache
    rate = rows.size / best_seconds(lambda: KERNELS[kind](rows, NOTHING, ours)) / 1e6
    if library is None:
        return f"| {kind.name} | {rate:.0f} | | |"

    def chunk() -> None:
        library.ggml_quantize_chunk(int(kind), rows.ctypes.data, theirs.ctypes.data, 0, *rows.shape, None)

    peer = rows.size / best_seconds(chunk) / 1e6
    size = blocks.type_size(kind)
    differ = (ours.reshape(-1, size) != theirs.reshape(-1, size)).any(1).sum()
    return f"| {kind.name} | {rate:.0f} | {peer:.0f} | {peer / rate:.2f} | {differ} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("types", nargs="*", default=[kind.name for kind in KERNELS])
    parser.add_argument("--rows", type=int, default=64)
    arguments = parser.parse_args()
    rows = np.random.default_rng(0).standard_normal((arguments.rows, N)).astype(np.float32)
    library = ggml()
    print("| type | hotcold, M/s | ggml, M/s | hotcold's time / ggml's | blocks that differ |")
    print("| --- | --- | --- | --- | --- |")
    for name in arguments.types:
        print(measure(GGMLQuantizationType[name.upper()], rows, library), flush=True)


if __name__ == "__main__":
    main()
