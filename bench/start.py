"""Seconds from the start of the process to the first text of the bundled model.

    python bench/start.py [--runs 5] [--cold-runs 2] [--model FILE]

Cold: an empty folder for compiled kernels, as in the first run ever. Warm: the folder that a cold run
filled. Each run is a process of its own, and the clock stops at the first byte on its stdout. The page
cache is left as it is, so the files of Python and of the model are read from memory. Goals, on an idle
machine: cold under 14 s, warm under 0.6 s. Ends with exit code 1 when a median misses its goal.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "It is a truth universally acknowledged"
COLD_GOAL, WARM_GOAL = 14.0, 0.6  # seconds


def first_text(folder: Path, model: Path | None) -> float:
    """Seconds until a new process, whose compiled kernels lie in `folder`, prints its first byte.

    Raises:
        SystemExit: the process fails, with what it wrote to stderr, or prints nothing.
    """
    command = [sys.executable, "-m", "hotcold", "generate", "-p", PROMPT, "-n", "8", "--temp", "0", "-q"]
    command += ["-m", str(model)] if model else []
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, bufsize=0)
        first = os.read(process.stdout.fileno(), 1) if process.stdout else b""
        seconds = time.perf_counter() - start
        process.communicate()
        if process.returncode or not first:
            errors.seek(0)
            sys.exit(errors.read().decode(errors="replace") or "no text came")
    return seconds


def report(what: str, seconds: list[float], goal: float) -> bool:
    """Print one row; whether the median meets the goal."""
    low, median, high = min(seconds), statistics.median(seconds), max(seconds)
    met = median < goal
    figures = f"{low:8.2f}{median:8.2f}{high:8.2f}{goal:8.1f}"
    print(f"{what}{len(seconds):5}{figures}  {'met' if met else 'missed'}", flush=True)
    return met


def at_least_one(text: str) -> int:
    """A number of runs."""
    if (n := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return n


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=at_least_one, default=5, help="warm runs")
    parser.add_argument("--cold-runs", type=at_least_one, default=2)
    parser.add_argument("--model", type=Path, help="another file than the bundled model")
    arguments = parser.parse_args()
    print("seconds runs     min  median     max    goal")
    with tempfile.TemporaryDirectory() as parent:
        folders = [Path(parent) / str(i) for i in range(arguments.cold_runs)]
        cold = [first_text(folder, arguments.model) for folder in folders]
        met = report("cold   ", cold, COLD_GOAL)
        warm = [first_text(folders[-1], arguments.model) for _ in range(arguments.runs)]
        met &= report("warm   ", warm, WARM_GOAL)
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
