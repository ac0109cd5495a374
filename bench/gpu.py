"""What a device does: each kernel against its oracle and against a copy, and a model by budget, in Markdown.

    python bench/gpu.py > gpu.md                       the first card, a random ReLU model of 7 billion weights
    python bench/gpu.py --device emulated --shape tiny    that the bench itself works; the figures mean nothing

Needs no network and no model: a random one is written to --folder (4.1 GB in Q4_0) and deleted. Takes --minutes
at most, or a little longer. Ends with 1 if a kernel is farther from its oracle than its bound, or something failed.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gpu_bed import Array, Bed
from gpu_case import Case, Sizes
from gpu_kernels import groups_of_cases
from gpu_model import Limits, Row, listed_model, sweep
from planned import random_relu_model, shape_of
from random_model import LlamaShape

from hotcold.engine.device.choice import parse_device
from hotcold.engine.device.devices import describe_devices, open_device, render_devices
from hotcold.engine.host.machine import default_threads
from hotcold.engine.plan.wanted import Wanted
from hotcold.errors import HotcoldError
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.formats import POSITIONS_A_PART

RING_BYTES = 512 << 20
"""More than any card's cache."""
BYTES_A_TIMING = 4 << 30
MOST_REPEATS = 200
KERNELS_SHARE = 0.45
"""Of the time, for the kernels."""
DEFAULT_BUDGETS = ["0%", "25%", "50%", "75%", "90%", "all"]


MODEL_HEADS = "tokens/s", "by the model", "prompt, tokens/s", "by the model", "launches", "copies, KB"
"""The last two are a decoded token's."""
SPLIT_HEADS = "device alone, ms", "cold rows alone, ms", "sum, ms", "split layer, ms", "ratio"


@dataclass(frozen=True)
class MeasuredKernel:
    """One kernel: the difference from its oracle, and seconds a launch."""

    case: Case
    error: float
    seconds: float

    @property
    def good(self) -> bool:
        """Whether it is within its bound; NaN is not."""
        return self.error <= self.case.bound

    @property
    def rate(self) -> float:
        """Bytes read and written a second."""
        return (self.case.work.bytes_read + self.case.work.bytes_written) / self.seconds


def relative_error(got: Array, want: Array) -> float:
    """The largest difference, relative to the largest number wanted."""
    wide = np.asarray(want, np.float64)
    largest = float(np.abs(wide).max()) or 1.0
    return float(np.abs(np.asarray(got, np.float64).reshape(wide.shape) - wide).max() / largest)


def measure_case(bed: Bed, case: Case) -> MeasuredKernel:
    """Check the first launch, then time all."""
    bed.device.run(case.launches[0], bed.device.compute)
    error = relative_error(case.got(), case.want())
    n_bytes = case.work.bytes_read + case.work.bytes_written
    emulated = bed.device.facts.architecture == 0
    repeats = 1 if emulated else min(MOST_REPEATS, 1 + BYTES_A_TIMING // (n_bytes * len(case.launches)))
    return MeasuredKernel(case, error, bed.clock.seconds(case.launches, repeats))


def kernels_table(device: Device, sizes: Sizes, ring_bytes: int, deadline: float) -> bool:
    """Print a line for each kernel; whether all are within their bounds."""
    bed = Bed(device, ring_bytes)
    copy, good, seen = bed.clock.copy_bandwidth(), True, set()
    print(f"A copy within the device reads and writes {copy / 1e9:.0f} GB/s, both counted.\n")
    print(heads("kernel", "size", "error", "bound", "us", "GB/s", "of a copy"))
    for name, cases in groups_of_cases(sizes):
        if time.perf_counter() > deadline:
            print(f"| {name} | left out for want of time | | | | | |")
            continue
        try:
            for case in cases(bed):
                measured = measure_case(bed, case)
                seen.add(case.work.kernel)
                good &= measured.good
                print(kernel_line(measured, copy), flush=True)
        except HotcoldError as error:
            print(f"| {name} | FAILED: {error} | | | | | |", flush=True)
            good = False
        finally:
            bed.free()
    bed.close()
    missing = sorted(set(device.driver.signatures) - seen)
    if missing:
        print(f"\nNot measured: {', '.join(missing)}.")
    return good


def heads(*titles: str) -> str:
    """The first two lines of a table."""
    return "| " + " | ".join(titles) + " |\n| --- |" + " ---: |" * (len(titles) - 1)


def kernel_line(measured: MeasuredKernel, copy: float) -> str:
    """A row of the table."""
    case, wrong = measured.case, "" if measured.good else " WRONG"
    bound = f"{case.bound:.1e}" if case.bound else "exact"
    cells = [f"`{case.work.kernel}`", case.size, f"{measured.error:.1e}{wrong}", bound]
    cells += [f"{1e6 * measured.seconds:.1f}", f"{measured.rate / 1e9:.0f}", f"{measured.rate / copy:.2f}"]
    return "| " + " | ".join(cells) + " |"


def model_tables(rows: Iterator[Row]) -> bool:
    """Print what a model does with each budget, and its split layers; whether all went well."""
    print(heads("budget", "planned, MiB", "allocated", "load, GB/s", "FFN there", *MODEL_HEADS))
    done = []
    for row in rows:
        print(model_line(row), flush=True)
        done.append(row)
    print("\n" + heads("budget", "split layers", *SPLIT_HEADS))
    for row in done:
        if row.split is not None:
            times = row.split
            figures = (times.device, times.host, times.device + times.host, times.together)
            cells = " | ".join(f"{1e3 * value:.3f}" for value in figures)
            print(f"| {row.budget} | {row.n_split} | {cells} | {times.ratio:.2f} |", flush=True)
    return not any(row.failed or row.planned != row.allocated for row in done)


def model_line(row: Row) -> str:
    """A row of the table."""
    if row.error:
        return f"| {row.budget} | {row.error} | | | | | | | | | |"
    allocated = "the same" if row.planned == row.allocated else f"{row.allocated / 2**20:.3f} MiB"
    cells = [row.budget, f"{row.planned / 2**20:.1f}", allocated, f"{row.load_rate:.1f}"]
    cells += [f"{row.hot_share:.0%}", f"{row.decode:.1f}", f"{row.modelled:.1f}" if row.modelled else ""]
    cells += [f"{row.prompt:.0f}", f"{row.modelled_prompt:.0f}" if row.modelled_prompt else ""]
    cells += [f"{row.launches:.0f}", f"{row.copies:.0f}, {row.copied / 1e3:.0f}"]
    return "| " + " | ".join(cells) + " |"


def machine(name: str, n_threads: int) -> str:
    """The device, the CPU and the versions that matter."""
    found = [info for info in describe_devices() if info.name == name]
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    return f"{render_devices(found)}\n{cpu_name()}, {n_threads} threads; {versions}"


def cpu_name() -> str:
    """As Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def arguments_of(given: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or emulated")
    shapes = "tiny, 1b, 7b, 13b, or n_embd,n_ff,n_layer,n_head,n_head_kv"
    parser.add_argument("--shape", default="7b", help=shapes)
    parser.add_argument("--type", default="q4_0", help="of the model's weights")
    parser.add_argument("--rank", type=int, help="of the predictors; a quarter of n_embd by default")
    parser.add_argument("--listed", type=float, default=0.1, help="share of neurons that predictors list")
    parser.add_argument(
        "--budgets", nargs="*", default=DEFAULT_BUDGETS, help="sizes, shares, or all; none: kernels alone"
    )
    parser.add_argument("--no-kernels", action="store_true", help="the model alone")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which what is left is left out")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each figure of a budget, at most")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the model")
    return parser.parse_args(given)


def sizes_of(shape: LlamaShape, emulated: bool) -> Sizes:
    """Of the kernels: the model's, with a context that is long enough to be read in parts.

    The batch is smaller where a thread of the CPU stands for the card.
    """
    n_tokens, n_ctx = (5 if emulated else 256), max(shape.n_ctx, 4 * POSITIONS_A_PART + 76)
    return Sizes(shape.n_embd, shape.n_ff, shape.n_head, shape.n_head_kv, n_tokens, n_ctx)


def model_section(device: Device, shape: LlamaShape, arguments: argparse.Namespace, deadline: float) -> bool:
    """Write a random model, measure it with each budget, and delete it; whether all went well."""
    kind, rank = GGMLQuantizationType[arguments.type.upper()], arguments.rank or shape.n_embd // 4
    how = Wanted("predictor", min(shape.n_ctx, 512), 8 if device.facts.architecture == 0 else 64)
    with (
        tempfile.TemporaryDirectory(dir=arguments.folder) as folder,
        random_relu_model(Path(folder), shape, kind, rank) as (file, model),
    ):
        print(f"\nA random model in {kind.name}, {shape}; context {how.n_ctx}, batches of {how.n_batch}.")
        print(f"Predictors of rank {rank} list about {arguments.listed:.0%} of the neurons.\n")
        model = listed_model(model, file, arguments.listed, arguments.threads)
        limits = Limits(deadline, arguments.seconds)
        rows = sweep(model, file, device, how, arguments.budgets, arguments.threads, limits)
        return model_tables(rows)


def run(given: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    arguments, started = arguments_of(given), time.perf_counter()
    shape = shape_of(arguments.shape)
    device = open_device(parse_device(arguments.device))
    if device is None:
        raise SystemExit("--device cpu: nothing to measure")
    deadline = started + 60 * arguments.minutes
    with device:
        emulated = device.facts.architecture == 0
        print(f"```\n{machine(device.name, arguments.threads)}\n```\n")
        ring_bytes = 1 if emulated else RING_BYTES
        share, good = KERNELS_SHARE if arguments.budgets else 1.0, True
        if not arguments.no_kernels:
            until = started + share * 60 * arguments.minutes
            good = kernels_table(device, sizes_of(shape, emulated), ring_bytes, until)
        if arguments.budgets:
            good &= model_section(device, shape, arguments, deadline)
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes.")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(run())
