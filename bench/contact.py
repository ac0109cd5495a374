"""The first minutes on a card: everything that has to be seen there, as one script, most important first.

    python bench/contact.py > contact.md              the first card; about eight minutes
    python bench/contact.py --device emulated         that the script itself works, without a card

Each step is a process of its own with a limit of seconds, since an error of a kernel sticks to its process. What it
prints goes to a file of --folder; standard output gets a table, and the last lines of what failed. Ends with 1 if
a step failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNEL_TESTS = (
    *("quantise", "add", "norms", "compact", "matvec", "ffn", "attention", "matmul", "dense_gated_ffn"),
    *(
        "order_of_sums",
        "attention_tiles",
        "matmul_few",
        "graphs",
        "hidden_masked",
        "matmul_transposed",
        "experts",
        "host_memory",
    ),
    *("scale", "rope", "candidates", "keep_some"),
)
SPLIT_TESTS = (
    "split_logits",
    "split_counters",
    "split_types",
    "same_bits_split",
    "split_experts",
    "split_order",
)
AT_ONCE = 4
"""Steps that run beside each other, of those that may."""
SHOWN_LINES = 12
"""Of the output of a step that failed."""

Check = Callable[[str], str]
"""What is wrong with a step's output, or nothing."""


@dataclass(frozen=True)
class Step:
    """A command, and what has to be so afterwards.

    Attributes:
        name: also of its file.
        command: without a shell.
        seconds: after which it is ended.
        check: looks at what it printed, if it ended well.
        needs: a program without which it is left out.
        beside: whether it may run beside its neighbours that may too, since nothing of it is timed.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    check: Check = lambda printed: ""
    needs: str = ""
    beside: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a step; `problem` is empty if all was well."""

    step: Step
    seconds: float
    problem: str
    printed: str


def hotcold(*arguments: str) -> tuple[str, ...]:
    """A command of the installed program."""
    return sys.executable, "-m", "hotcold", *arguments


def tests(path: str) -> tuple[str, ...]:
    """The tests of a file that need a card."""
    return sys.executable, "-m", "pytest", "-q", "-n0", "-m", "gpu and not slow", "-rs", str(ROOT / path)


def bench(name: str, *arguments: str) -> tuple[str, ...]:
    """Another bench."""
    return sys.executable, str(ROOT / "bench" / name), *arguments


def nothing_skipped(printed: str) -> str:
    """A skip on a machine with a card hides something."""
    return "tests were skipped" if "SKIPPED" in printed else ""


def no_spills(printed: str) -> str:
    """bench/launches.py says so."""
    return "" if "local memory (none is right): none" in printed else "kernels spill"


def generate(device: str, *more: str) -> tuple[str, ...]:
    """The bundled model's likeliest text, as JSON."""
    return hotcold(
        "generate",
        "-p",
        "Once upon a time",
        "-n",
        "48",
        "--temp",
        "0",
        "--json",
        "-q",
        "--device",
        device,
        *more,
    )


def planned_is_used(printed: str) -> str:
    """The plan's bytes are those that the device gave."""
    answer = json.loads(printed)
    if answer["vram_planned"] == answer["vram_used"]:
        return ""
    return f"planned {answer['vram_planned']} bytes, used {answer['vram_used']}"


def graphs_as_assumed(printed: str) -> str:
    """Graphs take no more of the card than plans leave for them."""
    (row,) = (row for row in json.loads(printed)["run"] if row["name"].startswith("graphs"))
    if row["measured"] <= row["planned"]:
        return ""
    return f"graphs take {row['measured']} bytes, plans leave {row['planned']}"


def facts() -> Iterator[Step]:
    """The machine, and what a launch costs."""
    query = "name,driver_version,compute_cap,memory.free,compute_mode,pcie.link.gen.current"
    yield Step("card", ("nvidia-smi", f"--query-gpu={query}", "--format=csv"), 15, needs="nvidia-smi")
    versions = "import cupy, numba, numpy; print(cupy.__version__, numba.__version__, numpy.__version__)"
    yield Step("versions", (sys.executable, "-c", versions), 60)
    yield Step("devices", hotcold("devices"), 30)


def texts(device: str, budget: str) -> Iterator[Step]:
    """The bundled model on the CPU, all of it on the device, and split."""
    yield Step("text-cpu", generate("cpu"), 90)
    yield Step("text-device", generate(device), 60, planned_is_used)
    yield Step("text-split", generate(device, "--strict", "--vram-budget", budget), 60, planned_is_used)
    run = hotcold("offload-dump", "--run", "--json", "--device", device, "--vram-budget", budget, "-q")
    yield Step("sides", run, 60, graphs_as_assumed)


def test_step(path: str) -> Step:
    """The tests of a file, on a card."""
    name = Path(path).stem.removeprefix("test_")
    return Step(f"test-{name}", tests(path), 90, nothing_skipped, beside=True)


def steps_of_a_card(device: str, minutes: float) -> Iterator[Step]:
    """In the order of what one learns from them."""
    yield from facts()
    yield Step("launches", bench("launches.py", "--device", device), 90, no_spills)
    yield from texts(device, "6MiB")
    for name in KERNEL_TESTS:
        yield test_step(f"tests/kernels/cuda/test_{name}.py")
    for name in SPLIT_TESTS:
        yield test_step(f"tests/engine/run/test_{name}.py")
    for tool, name in (("memcheck", "attention"), ("memcheck", "compact"), ("racecheck", "matmul")):
        checked = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9")
        command = (*checked, *tests(f"tests/kernels/cuda/test_{name}.py"))
        yield Step(f"{tool}-{name}", command, 60, needs="compute-sanitizer")
    for n_threads in ("1", "2", "4", "8", "16"):
        split = generate(device, "--vram-budget", "6MiB", "-t", n_threads)
        yield Step(f"threads-{n_threads}", split, 30, planned_is_used)
    yield Step("trouble", bench("trouble.py", "--device", device), 90)
    yield Step(
        "kernels",
        bench("gpu.py", "--device", device, "--minutes", str(minutes), "--budgets"),
        60 * minutes + 60,
    )


def steps_without_one(device: str) -> Iterator[Step]:
    """The same as far as it goes on the emulated device."""
    yield from facts()
    yield Step("launches", bench("launches.py", "--device", device, "--repeats", "2"), 120, no_spills)
    yield from texts(device, "6MiB")
    yield Step("trouble", bench("trouble.py", "--device", device), 60)


def run_step(step: Step, folder: Path, left: float) -> Outcome:
    """Run it for as long as it may; its output goes to a file."""
    if step.needs and shutil.which(step.needs) is None:
        return Outcome(step, 0.0, f"left out: no {step.needs}", "")
    if left <= 0:
        return Outcome(step, 0.0, "left out for want of time", "")
    started = time.perf_counter()
    environment = os.environ | {"HOTCOLD_REQUIRE_GPU": "1"}
    try:
        done = subprocess.run(
            step.command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=min(step.seconds, left),
            text=True,
            errors="replace",
        )
        printed = done.stdout
        problem = f"exit code {done.returncode}" if done.returncode else step.check(printed)
    except subprocess.TimeoutExpired as error:
        printed = (error.output or b"").decode(errors="replace")
        problem = "took too long"
    (folder / f"{step.name}.txt").write_text(printed)
    return Outcome(step, time.perf_counter() - started, problem, printed)


def run_steps(steps: Iterable[Step], folder: Path, deadline: float) -> Iterator[Outcome]:
    """What becomes of each, in their order; neighbours that may run beside each other do.

    Args:
        deadline: seconds of `time.perf_counter`.
    """

    def taken(step: Step) -> Outcome:
        return run_step(step, folder, deadline - time.perf_counter())

    for beside, some in groupby(steps, lambda step: step.beside):
        with ThreadPoolExecutor(AT_ONCE if beside else 1) as pool:
            yield from pool.map(taken, some)


def ids_differ(outcomes: Sequence[Outcome]) -> str:
    """The texts of the CPU, the device and both are one text."""
    answers = {}
    for outcome in outcomes:
        if outcome.step.name.startswith("text-") and not outcome.problem:
            answers[outcome.step.name] = json.loads(outcome.printed)["ids"]
    wrong = [name for name, ids in answers.items() if ids != answers.get("text-cpu", ids)]
    return f"{', '.join(wrong)}: other ids than the CPU's" if wrong else ""


def run(given: Sequence[str] | None = None) -> int:
    """Run the steps and print the table; 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or emulated")
    parser.add_argument("--folder", type=Path, default=Path("contact"), help="for what each step prints")
    parser.add_argument("--minutes", type=float, default=9.0, help="in all; what is left is left out")
    parser.add_argument("--bench-minutes", type=float, default=2.5, help="of them, for the table of kernels")
    arguments = parser.parse_args(given)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    deadline = time.perf_counter() + 60 * arguments.minutes
    emulated = arguments.device == "emulated"
    steps = (
        steps_without_one(arguments.device)
        if emulated
        else steps_of_a_card(arguments.device, arguments.bench_minutes)
    )
    outcomes = []
    print("| step | seconds | |\n| --- | ---: | --- |")
    for outcome in run_steps(steps, arguments.folder, deadline):
        outcomes.append(outcome)
        print(f"| {outcome.step.name} | {outcome.seconds:.1f} | {outcome.problem or 'well'} |", flush=True)
    for outcome in outcomes:
        if outcome.problem and outcome.printed:
            last = "\n".join(outcome.printed.splitlines()[-SHOWN_LINES:])
            print(f"\n{outcome.step.name}: {outcome.problem}\n```\n{last}\n```")
    difference = ids_differ(outcomes)
    print(f"\n{difference}" if difference else "\nOne text on the CPU, on the device and split.")
    failed = any(outcome.problem and not outcome.problem.startswith("left out") for outcome in outcomes)
    return 1 if failed or difference else 0


if __name__ == "__main__":
    raise SystemExit(run())
