"""Compile all kernels for a card, on all cores, so that what comes behind finds them in the cache.

python bench/compile_units.py                for the first card
python bench/compile_units.py --device cuda:1

A process a core, since a compiler may let one thread in at a time. Ends with 1 if something does not compile.
"""

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from hotcold.engine.device.devices import describe_devices
from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.nvrtc import build_code
from hotcold.kernels.cuda.device.units import all_units


def compile_one(architecture: int, number: int) -> str:
    """Compile the unit of this number, or find it compiled; why it does not compile, or nothing."""
    try:
        build_code(all_units()[number].source, architecture)
    except DeviceError as error:
        return str(error)
    return ""


def compile_units(architecture: int, numbers: Sequence[int], n_processes: int) -> list[str]:
    """What does not compile, in words."""
    with ProcessPoolExecutor(
        n_processes, get_context("spawn")
    ) as pool:  # what CUDA has begun is not to be forked
        return [problem for problem in pool.map(partial(compile_one, architecture), numbers) if problem]


def run(given: Sequence[str] | None = None) -> int:
    """Compile and say how long that took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:N")
    name, started = parser.parse_args(given).device, time.perf_counter()
    architecture = next((info.architecture for info in describe_devices() if info.name == name), 0)
    if not architecture:
        raise SystemExit(f"{name}: no such card, or it cannot be used; `hotcold devices` says why")
    numbers = range(len(all_units()))
    problems = compile_units(architecture, numbers, len(os.sched_getaffinity(0)))
    print("\n".join(problems) or f"{len(numbers)} units for sm_{architecture}", flush=True)
    print(f"{time.perf_counter() - started:.1f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(run())
