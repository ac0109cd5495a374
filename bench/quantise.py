"""Rounding to block types: numbers a second of each type on one core, beside ggml's own functions.

    pip install llama-cpp-python        (builds from source; without it only hotcold is measured)
    python bench/quantise.py [TYPE ...] [--rows 64]
    python bench/quantise.py --model q4_k_m [--folder FOLDER]

Both round the same normal numbers, in rows of 4096, and the blocks are compared. With --model a random model of 1.1
billion weights in F16 is written to the folder and converted to that outtype, by llama.cpp's own quantiser on as many
threads too, in turns; the seconds of all processors together are compared, which other work on the machine moves
less than those of the clock, and the tensors of both files. All files are removed.
"""

import argparse
import ctypes
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from random_model import LlamaShape, write

from hotcold.engine.host.machine import default_threads
from hotcold.gguf_io import blocks, open_gguf
from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.outtypes import OUTTYPES
from hotcold.gguf_io.quantise.rows import KERNELS, NOTHING

REPEATS, N = 5, 4096
TURNS = 2
PLAIN = ("f32", "f16", "bf16")


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


def peers_quantiser() -> Callable[[Path, Path, int], None]:
    """llama.cpp's: from, to, file type."""
    try:
        import llama_cpp
    except ImportError:
        sys.exit("--model needs llama.cpp: pip install llama-cpp-python")
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p())

    def quantise(source: Path, out: Path, file_type: int) -> None:
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype, parameters.nthread = file_type, default_threads()
        if failed := llama_cpp.llama_model_quantize(bytes(source), bytes(out), ctypes.byref(parameters)):
            sys.exit(f"llama.cpp's quantiser failed with {failed}")

    quantise.silent = silent  # type: ignore[attr-defined]  # kept alive as long as llama.cpp may call it
    return quantise


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of all processors, and of the clock."""
    begin = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - begin[0], time.perf_counter() - begin[1]


def n_different(one: Path, other: Path) -> tuple[int, int]:
    """How many tensors of two files differ in type or bytes, and how many there are."""
    with open_gguf(one) as a, open_gguf(other) as b:
        differ = [
            name
            for name, info in a.tensors.items()
            if name not in b.tensors
            or b.tensors[name].type is not info.type
            or not np.array_equal(a.data(name), b.data(name))
        ]
        return len(differ), len(a.tensors)


def measure_model(outtype: str, folder: Path) -> None:
    """Convert a whole model in turns, and print what both took."""
    peer, file_type = peers_quantiser(), int(OUTTYPES[outtype][1])
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        source, ours, theirs = (Path(inner) / f"{name}.gguf" for name in ("source", "ours", "theirs"))
        write(source, LlamaShape(), GGMLQuantizationType.F16)
        times: list[list[tuple[float, float]]] = [[], []]
        for _ in range(TURNS):
            times[0].append(timed(lambda: convert(source, None, ours, outtype, force=True)))
            times[1].append(timed(lambda: peer(source, theirs, file_type)))
        (cpu, wall), (peer_cpu, peer_wall) = (np.min(some, axis=0) for some in times)
        differ, n = n_different(ours, theirs)
    print(
        f"{outtype}: {default_threads()} threads, load average {os.getloadavg()[0]:.1f}; {differ} of {n} tensors differ"
    )
    print(f"processors: hotcold {cpu:.1f} s | llama.cpp {peer_cpu:.1f} s | {cpu / peer_cpu:.2f}")
    print(f"clock:      hotcold {wall:.1f} s | llama.cpp {peer_wall:.1f} s | {wall / peer_wall:.2f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("types", nargs="*", default=[kind.name for kind in KERNELS])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--model", choices=[name for name in OUTTYPES if name not in PLAIN])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    if arguments.model:
        measure_model(arguments.model, arguments.folder)
        return
    rows = np.random.default_rng(0).standard_normal((arguments.rows, N)).astype(np.float32)
    library = ggml()
    print("| type | hotcold, M/s | ggml, M/s | hotcold's time / ggml's | blocks that differ |")
    print("| --- | --- | --- | --- | --- |")
    for name in arguments.types:
        print(measure(GGMLQuantizationType[name.upper()], rows, library), flush=True)


if __name__ == "__main__":
    main()
