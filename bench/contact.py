"""The first minutes on a card: everything that has to be seen there, as one script, most important first.

    python bench/contact.py > contact.md                            the first card; nine minutes at most
    python bench/contact.py --steps kernels model > more.md         then what had no time, or is to be seen again
    python bench/contact.py --device emulated                       that the script itself works, without a card

Each step is a process of its own with a limit of seconds, since an error of a kernel sticks to its process. What it
prints goes to a file of --folder; standard output gets a table, what benches print, and the last lines of what failed.
Ends with 1 if a step failed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
    *("scale", "rope", "candidates", "keep_some", "slots"),
)
RUN_TESTS = (
    *("split_logits", "split_counters", "slots_on_device", "split_types", "same_bits_split", "split_experts"),
    *("split_order", "split_golden", "split_use", "split_mixed_types", "split_expert_neurons"),
    *("exact_layers", "windows"),
)
SANITIZED = (
    ("memcheck", "attention", "test_windows_sinks_and_scale and 0.12-True"),
    ("memcheck", "compact", ""),
    ("racecheck", "matmul", "test_long_rows or test_epilogue"),
)
"""Of compute-sanitizer the tool, the file of tests, and which of them: under it they take many times as long."""
KERNEL_PATHS = tuple(f"tests/kernels/cuda/test_{name}.py" for name in KERNEL_TESTS)
RUN_PATHS = (
    *(f"tests/engine/run/test_{name}.py" for name in RUN_TESTS),
    "tests/engine/calibrate/test_threshold_split.py",
)
AT_ONCE = max(4, min(8, (os.cpu_count() or 1) // 2))
"""Steps that run beside each other, of those that may."""
SPLIT = ("--vram-budget", "6MiB", "-c", "256", "-b", "64")
"""A card for the bundled model that holds some neurons of every layer, and not all."""
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
        told: whether standard output gets all that it prints.
        says: what of its output stands in the table.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    check: Check = lambda printed: ""
    needs: str = ""
    beside: bool = False
    told: bool = False
    says: Check = lambda printed: ""


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


def tests(path: str, which: str = "") -> tuple[str, ...]:
    """The tests of a file that need a card, or those whose names have these words."""
    chosen = ("-k", which) if which else ()
    return (
        *(sys.executable, "-m", "pytest", "-q", "-n0", "-m", "gpu and not slow", "-rs"),
        *(*chosen, str(ROOT / path)),
    )


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


def tokens_a_second(printed: str) -> str:
    """Of a text."""
    return f"{json.loads(printed)['decode_tokens_per_second']:.0f} tokens/s"


def planned_is_used(printed: str) -> str:
    """The plan's bytes are those that the device gave."""
    answer = json.loads(printed)
    if answer["vram_planned"] == answer["vram_used"]:
        return ""
    return f"planned {answer['vram_planned']} bytes, used {answer['vram_used']}"


def is_split(printed: str) -> str:
    """So are they of a plan that has neurons on both sides; one that has not shows nothing of how they meet."""
    share = json.loads(printed)["ffn_device_share"]
    return planned_is_used(printed) if 0 < share < 1 else _not_split(share)


def _not_split(share: float) -> str:
    return f"no layer is split: {share:.0%} of the neurons are on the device"


def graphs_as_assumed(printed: str) -> str:
    """Graphs take no more of the card than plans leave for them."""
    row = _row(printed, "graphs")
    if row["measured"] <= row["planned"]:
        return ""
    return f"graphs take {row['measured']} bytes, plans leave {row['planned']}"


def sides_work(printed: str) -> str:
    """Both have neurons, and graphs take no more than is left for them."""
    share = _row(printed, "neurons")["measured"]
    return graphs_as_assumed(printed) if 0 < share < 1 else _not_split(share)


def _row(printed: str, beginning: str) -> dict[str, float]:
    """Of the table of `offload-dump --run`."""
    (row,) = (row for row in json.loads(printed)["run"] if row["name"].startswith(beginning))
    return dict(row)


def facts() -> Iterator[Step]:
    """The machine, and what a launch costs."""
    query = "name,driver_version,compute_cap,memory.free,compute_mode,pcie.link.gen.current"
    yield Step("card", ("nvidia-smi", f"--query-gpu={query}", "--format=csv"), 15, needs="nvidia-smi")
    versions = "import sys, numpy, gguf, cupy, numba; print(sys.version, numpy.__version__, cupy.__version__, numba.__version__)"
    yield Step("versions", (sys.executable, "-c", versions), 60, says=str.strip)
    yield Step("devices", hotcold("devices"), 60, told=True)


def texts(device: str) -> Iterator[Step]:
    """The bundled model all on the device, and split."""
    yield Step("text-device", generate(device), 60, planned_is_used, says=tokens_a_second)
    yield Step("text-split", generate(device, "--strict", *SPLIT), 60, is_split, says=tokens_a_second)
    run = hotcold("offload-dump", "--run", "--json", "--device", device, *SPLIT, "-q")
    yield Step("sides", run, 60, sides_work)


def test_step(path: str) -> Step:
    """The tests of a file, on a card."""
    name = Path(path).stem.removeprefix("test_")
    return Step(f"test-{name}", tests(path), 180, nothing_skipped, beside=True)


def last_line(printed: str) -> str:
    """As pytest counts."""
    return "".join(printed.strip().splitlines()[-1:]).strip("= ")


def steps_of_a_card(device: str, minutes: float) -> Iterator[Step]:
    """In the order of what one learns from them."""
    yield from facts()
    yield Step("compile", bench("compile_units.py", "--device", device), 120, beside=True)
    yield Step("text-cpu", generate("cpu"), 120, beside=True)
    yield Step("launches", bench("launches.py", "--device", device), 90, no_spills, told=True)
    yield from texts(device)
    for model in ((), ("--shape", "1b")):
        name = "-".join(("slots", *model[1:]))
        yield Step(name, bench("slots.py", "--device", device, *model), 60, told=True)
    yield from map(test_step, (*KERNEL_PATHS, *RUN_PATHS))
    for tool, name, which in SANITIZED:
        quiet = (
            ("--report-api-errors", "no") if tool == "memcheck" else ()
        )  # what the driver answers is ours to judge
        checked = ("compute-sanitizer", "--tool", tool, *quiet, "--error-exitcode", "9")
        command = (*checked, *tests(f"tests/kernels/cuda/test_{name}.py", which))
        yield Step(f"{tool}-{name}", command, 60, nothing_skipped, needs="compute-sanitizer", says=last_line)
    for n_threads in ("1", "2", "4", "8", "16"):
        split = generate(device, *SPLIT, "-t", n_threads)
        yield Step(f"threads-{n_threads}", split, 30, is_split, says=tokens_a_second)
    yield Step("trouble", bench("trouble.py", "--device", device), 120, told=True)
    measured = bench("gpu.py", "--device", device, "--minutes", str(minutes))
    yield Step("kernels", (*measured, "--budgets"), 60 * minutes + 60, told=True)
    whole = (*measured, "--no-kernels", "--budgets", "75%", "all")  # half of its bytes are 5 % of its neurons
    yield Step("model", whole, 60 * minutes + 60, told=True)


def steps_without_one(device: str) -> Iterator[Step]:
    """The same as far as it goes on the emulated device."""
    yield from facts()
    yield Step("text-cpu", generate("cpu"), 120, says=tokens_a_second)
    launches = bench("launches.py", "--device", device, "--repeats", "2")
    yield Step("launches", launches, 120, no_spills, told=True)
    yield from texts(device)
    slots = bench("slots.py", "--device", device, "--shape", "tiny", "--tokens", "2")
    yield Step("slots", slots, 120, told=True)
    yield Step("trouble", bench("trouble.py", "--device", device), 60)


def run_step(step: Step, folder: Path, left: float) -> Outcome:
    """Run it for as long as it may, and what it has begun; its output goes to a file."""
    if step.needs and shutil.which(step.needs) is None:
        return Outcome(step, 0.0, f"left out: no {step.needs}", "")
    if left <= 0:
        return Outcome(step, 0.0, "left out for want of time", "")
    started = time.perf_counter()
    environment = os.environ | {"HOTCOLD_REQUIRE_GPU": "1", "PYTHONUNBUFFERED": "1"}
    path, late = folder / f"{step.name}.txt", False
    with (
        path.open("wb") as file,
        subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            process.wait(min(step.seconds, left))
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with suppress(ProcessLookupError):  # nobody of its group is left
                os.killpg(process.pid, signal.SIGKILL)
    printed, code = path.read_text(errors="replace"), process.returncode
    problem = "took too long" if late else f"exit code {code}" if code else checked(step, printed)
    return Outcome(step, time.perf_counter() - started, problem, printed)


def checked(step: Step, printed: str) -> str:
    """What is wrong with the output of a step that ended well; one that cannot be read is wrong."""
    try:
        return step.check(printed)
    except (ValueError, KeyError) as error:
        return f"its output is not as expected: {error}"


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


def compared(outcomes: Sequence[Outcome]) -> tuple[str, bool]:
    """What the texts of the CPU, the device and both have in common, in words, and whether they are one text."""
    answers = {
        outcome.step.name.removeprefix("text-"): json.loads(outcome.printed)["ids"]
        for outcome in outcomes
        if outcome.step.name.startswith("text-") and not outcome.problem
    }
    if len(answers) < 2:
        return "", True
    first = "cpu" if "cpu" in answers else next(iter(answers))
    wrong = [name for name, ids in answers.items() if ids != answers[first]]
    if wrong:
        return f"Other ids than {first}: {', '.join(wrong)}.", False
    return f"One text: {', '.join(answers)}.", True


def run(given: Sequence[str] | None = None) -> int:
    """Run the steps and print the table; 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or emulated")
    parser.add_argument("--folder", type=Path, default=Path("contact"), help="for what each step prints")
    parser.add_argument("--minutes", type=float, default=9.0, help="in all; what is left is left out")
    parser.add_argument(
        "--bench-minutes", type=float, default=2.5, help="of them, for each table of bench/gpu.py"
    )
    parser.add_argument("--steps", nargs="+", default=[""], help="only those whose names begin so")
    arguments = parser.parse_args(given)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    deadline = time.perf_counter() + 60 * arguments.minutes
    emulated = arguments.device == "emulated"
    steps = (
        steps_without_one(arguments.device)
        if emulated
        else steps_of_a_card(arguments.device, arguments.bench_minutes)
    )
    wanted = [step for step in steps if step.name.startswith(tuple(arguments.steps))]
    if not wanted:
        parser.error(f"--steps {' '.join(arguments.steps)}: no step's name begins so")
    outcomes = []
    print("| step | seconds | |\n| --- | ---: | --- |")
    for outcome in run_steps(wanted, arguments.folder, deadline):
        outcomes.append(outcome)
        print(f"| {outcome.step.name} | {outcome.seconds:.1f} | {said_of(outcome)} |", flush=True)
    for outcome in outcomes:
        show(outcome)
    said, is_one = compared(outcomes)
    if said:
        print(f"\n{said}")
    again = [outcome.step.name for outcome in outcomes if outcome.problem]
    if again:
        print(f"\nAgain: --steps {' '.join(again)}")
    failed = any(outcome.problem and not outcome.problem.startswith("left out") for outcome in outcomes)
    return 1 if failed or not is_one else 0


def said_of(outcome: Outcome) -> str:
    """What the table says: what is wrong, or what there is to know."""
    return outcome.problem or ", ".join(filter(None, ("well", outcome.step.says(outcome.printed))))


def show(outcome: Outcome) -> None:
    """Print what a bench has printed, or the end of what failed."""
    lines = outcome.printed.splitlines()
    if outcome.problem and lines:
        last = "\n".join(lines[-SHOWN_LINES:])
        print(f"\n{outcome.step.name}: {outcome.problem}\n```\n{last}\n```")
    elif outcome.step.told:
        print(f"\n{outcome.step.name}\n\n{outcome.printed.strip()}")


if __name__ == "__main__":
    raise SystemExit(run())
