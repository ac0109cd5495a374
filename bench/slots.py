"""Tokens a second of 1, 2 and 4 sequences that decode together, and whether each has the bits that it has alone.

python bench/slots.py                        the bundled model, all of it on the first card
python bench/slots.py --shape 1b             a random model
python bench/slots.py --device emulated --shape tiny --tokens 2    that the bench itself works

Ends with 1 if any sequence's numbers depend on its company.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from planned import plan_for, random_relu_model, shape_of, whole_plan

from hotcold.engine.device.choice import parse_device
from hotcold.engine.device.devices import open_device
from hotcold.engine.device.store import loaded_stores
from hotcold.engine.host.machine import default_threads
from hotcold.engine.model.load import load_model
from hotcold.engine.model.model import Model
from hotcold.engine.model.model_path import model_path
from hotcold.engine.model.sparsity import resolve_sparsity
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.formats import CANDIDATE_WORDS

SLOTS = 1, 2, 4
CHECKED = 6
"""Tokens whose logits are compared."""
WARM_TOKENS = 2
RANK = 256
"""Of a random model's predictors."""
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Row:
    """So many sequences that decode together.

    Attributes:
        rate: tokens a second, of all together.
        wrong: sequences that have other numbers than alone.
    """

    n: int
    rate: float
    wrong: int


def prompts(n_vocab: int, n_ctx: int) -> list[Ids]:
    """Of as many sequences as there may be, each of another length."""
    dice, most = np.random.default_rng(5), n_ctx // 4
    return [dice.integers(0, n_vocab, 1 + most * i // max(SLOTS)).astype(np.int32) for i in range(max(SLOTS))]


def greedy(executor: Executor, each: Sequence[Ids], n_tokens: int) -> list[list[bytes]]:
    """Of sequences that pass together, the logits after the prompt and after each of the likeliest tokens."""
    n_vocab = executor.model.n_vocab
    logits, found = np.empty((len(each), n_vocab), np.float32), list[list[bytes]]()
    for slot, ids in enumerate(each):
        prompt(executor, ids, slot, logits[slot : slot + 1])
        found.append([logits[slot].tobytes()])
    for i in range(n_tokens):
        step(executor, logits.argmax(1).astype(np.int32), [ids.size + i for ids in each], logits)
        for row, before in zip(logits, found, strict=True):
            before.append(row.tobytes())
    return found


def prompt(executor: Executor, ids: Ids, slot: int, logits: NDArray[np.float32]) -> None:
    """Let a prompt pass in a slot."""
    for first in range(0, ids.size, executor.n_batch):
        some = ids[first : first + executor.n_batch]
        executor.run(some, first, logits if first + some.size == ids.size else None, slot)


def step(
    executor: Executor,
    ids: Ids,
    n_past: list[int],
    logits: NDArray[np.float32],
    candidates: NDArray[np.int32] | None = None,
) -> None:
    """A token of each sequence."""
    if ids.size == 1:
        executor.run(ids, n_past[0], logits, candidates=candidates)
    else:
        executor.run_apart(ids, n_past, range(ids.size), logits, candidates)


def rate(executor: Executor, each: Sequence[Ids], n_tokens: int) -> float:
    """Tokens a second of all sequences; only candidates come back where the device has the head."""
    logits = np.empty((len(each), executor.model.n_vocab), np.float32)
    found = np.empty((len(each), CANDIDATE_WORDS), np.int32) if executor.gives_candidates else None
    ids, starts, times = (
        np.arange(3, 3 + len(each), dtype=np.int32),
        [ids.size for ids in each],
        list[float](),
    )
    for i in range(WARM_TOKENS + n_tokens):
        started = time.perf_counter()
        step(executor, ids, [start + i for start in starts], logits, found)
        times.append(time.perf_counter() - started)
    return len(each) / float(np.median(times[WARM_TOKENS:]))


def rows(executor: Executor, n_tokens: int) -> Iterator[Row]:
    """One for each number of sequences."""
    every = prompts(executor.model.n_vocab, executor.n_ctx)
    alone = [greedy(executor, [ids], CHECKED)[0] for ids in every]
    for n in SLOTS:
        found = greedy(executor, every[:n], CHECKED)
        wrong = sum(a != b for a, b in zip(found, alone, strict=False))
        yield Row(n, rate(executor, every[:n], n_tokens), wrong)


@contextmanager
def opened(shape: str | None, path: Path | None) -> Iterator[tuple[GGUFFile, Model]]:
    """A file, by default the bundled one, or a random model."""
    if shape is None:
        with open_gguf(model_path(path)) as file:
            yield file, load_model(file)
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        random_relu_model(Path(folder), shape_of(shape), GGMLQuantizationType.Q4_0, RANK) as found,
    ):
        yield found


def executor_of(model: Model, file: GGUFFile, device: Device, n_tokens: int) -> Executor:
    """All of it on the device, with as many slots as are wanted and a context that holds the tokens."""
    longest = min(model.n_ctx_train, 1024)
    n_ctx = longest if device.facts.architecture else min(longest, 64)
    sparsity, _ = resolve_sparsity(model, "auto")
    how = Wanted(sparsity, max(n_ctx, 2 * (n_tokens + WARM_TOKENS)), 32, n_slots=max(SLOTS))
    plan = plan_for(model, device, how, whole_plan(model, device, how).totals.used)
    return Executor(plan, file, default_threads(), loaded_stores((device,), plan, file))


def run(given: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a sequence has other numbers in company."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or emulated")
    parser.add_argument("-m", dest="path", type=Path, help="a file; the bundled model by default")
    parser.add_argument(
        "--shape", help="or a random model: tiny, 1b, 7b, or numbers as bench/gpu.py takes them"
    )
    parser.add_argument("--tokens", type=int, default=200, help="that each sequence decodes")
    arguments = parser.parse_args(given)
    device = open_device(parse_device(arguments.device))
    if device is None:
        raise SystemExit("--device cpu: nothing to measure")
    with device, opened(arguments.shape, arguments.path) as (file, model):
        print(f"{device.facts.description}, {file.path.name}\n\n| sequences | tokens/s | times one | bits |")
        print("| ---: | ---: | ---: | --- |")
        found = list[Row]()
        with executor_of(model, file, device, arguments.tokens) as executor:
            for row in rows(executor, arguments.tokens):
                found.append(row)
                said = f"OTHERS THAN ALONE in {row.wrong}" if row.wrong else "as alone"
                print(f"| {row.n} | {row.rate:.1f} | {row.rate / found[0].rate:.2f} | {said} |", flush=True)
    return 1 if any(row.wrong for row in found) else 0


if __name__ == "__main__":
    raise SystemExit(run())
