"""A token's attention has the blocks of its context's class, as graphs and without, and the same bits in all."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from split_runs import (
    Case,
    OpenEmulated,
    model_of,
    on_device,
    plan_named,
    plan_with,
    some_neurons,
    split_plan,
)

from hotcold.engine.device.replay import Replay
from hotcold.engine.plan.plan import Plan
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.buffers import Stream
from hotcold.kernels.cuda.device.device import CapturedGraph, Device, Prepared
from hotcold.kernels.formats import parts_for

Logits = NDArray[np.float32]

N_CTX, SHORT, N_BATCH = 1100, 800, 512
BORDERS = 256, 512
PLENTY = 1 << 30
FILES = {
    "llamacpp/gemma3.q4_0": ("off", "everything"),  # most of its layers have a window
    "powerinfer/llama-q4_0.powerinfer": ("predictor", "dense + 50%"),
}


@pytest.fixture
def llama(data: Path) -> Iterator[GGUFFile]:
    with open_gguf(data / "llamacpp/llama.q8_0.gguf") as opened:
        yield opened


def all_on_device(file: GGUFFile, n_ctx: int) -> Plan:
    """One layer, and the head: a token is one graph."""
    return split_plan(model_of(file, 1), Case("off", "f16", n_ctx, N_BATCH), PLENTY)


def tokens(n: int) -> NDArray[np.int32]:
    return np.random.default_rng(0).integers(3, 200, n).astype(np.int32)


def across(executor: Executor, borders: Sequence[int], alone: bool) -> Logits:
    """Logits of the two tokens on either side of each border, one by one or together; batches fill up between."""
    n, ids, out = executor.model.n_vocab, tokens(borders[-1] + 2), []
    start = 0
    for border in borders:
        while start < border - 2:
            end = min(start + N_BATCH, border - 2)
            executor.run(ids[start:end], start, None)
            start = end
        logits = np.empty((4, n), np.float32)
        for i in range(4) if alone else (slice(None),):
            some = slice(i, i + 1) if isinstance(i, int) else i
            executor.run(ids[start : start + 4][some], start + (some.start or 0), logits[some])
        start += 4
        out.append(logits)
    return np.concatenate(out)


def bits(plan: Plan, file: GGUFFile, device: Device, alone: bool = True) -> bytes:
    with on_device(plan, file, device) as executor:
        return across(executor, BORDERS, alone).tobytes()


def of_all_kinds(plan: Plan, file: GGUFFile, open_emulated: OpenEmulated) -> set[bytes]:
    """Of graphs, of single launches, and of a batch, which knows no classes."""
    found = set()
    for has_graphs in (True, False):
        device = open_emulated(build_kind="fast", policy="late")
        device.has_graphs = has_graphs
        found.add(bits(plan, file, device))
    return found | {bits(plan, file, open_emulated(build_kind="fast"), alone=False)}


def test_bits_are_the_same_on_either_side_of_a_border(llama: GGUFFile, open_emulated: OpenEmulated) -> None:
    assert len(of_all_kinds(all_on_device(llama, SHORT), llama, open_emulated)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_so_they_are_with_windows_and_beside_the_cpu(
    name: str, recorded: Callable[[str], Path], open_emulated: OpenEmulated
) -> None:
    sparsity, budget = FILES[name]
    with open_gguf(recorded(name)) as file:
        plan = plan_named(model_of(file), Case(sparsity, "f16", SHORT, N_BATCH), budget)
        assert len(of_all_kinds(plan, file, open_emulated)) == 1


def grids(device: Device) -> list[int]:
    """How many parts each launch of a single token's attention has blocks for, as they are enqueued or captured."""
    of, seen, prepare, run = dict[int, int](), list[int](), device.prepare, device.run

    def prepared(kernel: str, grid: tuple[int, int], *rest: Any) -> Prepared:
        made = prepare(kernel, grid, *rest)
        if kernel.startswith("attention"):
            of[id(made)] = grid[0] if "part" in kernel else 1
        return made

    def runs(launch: Prepared, stream: Stream) -> None:
        seen.extend([of[id(launch)]] if id(launch) in of else [])
        run(launch, stream)

    device.prepare, device.run = prepared, runs  # type: ignore[assignment, method-assign]
    return seen


POSITIONS = (0, 1, 254, 255, 256, 257, 511, 512, 1023, 1024, 1099, 300, 3, 0)
WANTED = [1, 1, 1, 1, 2, 2, 2, 4, 4, 5, 5, 2, 1, 1]


def tokens_at(executor: Executor, positions: Sequence[int]) -> None:
    """Single tokens, each in a cache that holds what was there before."""
    logits = np.empty((1, executor.model.n_vocab), np.float32)
    for position in positions:
        executor.slots.take(0, position or 1, 0)
        executor.run(tokens(1), position, logits)


def test_a_launch_has_the_blocks_of_its_class(llama: GGUFFile, open_emulated: OpenEmulated) -> None:
    device = open_emulated(build_kind="fast")
    device.has_graphs, seen = False, grids(device)
    with on_device(all_on_device(llama, N_CTX), llama, device) as executor:
        tokens_at(executor, POSITIONS)
    assert seen == WANTED


def test_a_graph_is_captured_when_the_class_changes(
    llama: GGUFFile, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also back to a smaller one; the one before is gone by then."""
    device, held = open_emulated(build_kind="fast"), list[weakref.ref[CapturedGraph]]()
    seen, capture = grids(device), device.capture

    def captured(*arguments: Any) -> CapturedGraph:
        assert not any(graph() for graph in held)
        graph = capture(*arguments)
        held.append(weakref.ref(graph))
        return graph

    monkeypatch.setattr(device, "capture", captured)
    with on_device(all_on_device(llama, N_CTX), llama, device) as executor:
        tokens_at(executor, POSITIONS)
    assert seen == [parts for parts, _ in groupby(WANTED)] == [1, 2, 4, 5, 2, 1]
    assert (device.counters.graph_captures, device.counters.graph_launches) == (6, len(POSITIONS))


def test_a_graph_without_an_attention_stays(plan: Plan, file: GGUFFile, open_emulated: OpenEmulated) -> None:
    """Of a split token the last one: behind the last layer's cold rows."""
    model, device = plan.model, open_emulated(build_kind="fast")
    longer = plan_with(model, Case("predictor", "f16", 600, 8), some_neurons(model, model.n_ff // 2))
    with on_device(longer, file, device) as executor:
        counted = []
        for position in (255, 256, 257, 255):
            before = device.counters.graph_captures
            tokens_at(executor, [position])
            counted.append(device.counters.graph_captures - before)
    assert counted == [model.n_layer + 1, model.n_layer, 0, model.n_layer]


# Bugs that are put in, each of which has to be seen in the bits


def too_small(n_positions: int, n_ctx: int) -> int:
    """The class below; in the smallest one block takes any number of parts, and nothing shows."""
    return max(1, parts_for(n_positions, n_ctx) // 2)


def of_those_before(n_positions: int, n_ctx: int) -> int:
    """As if a token did not read its own position."""
    return parts_for(max(1, n_positions - 1), n_ctx)


def blind(patch: pytest.MonkeyPatch) -> None:
    """The first class is kept."""
    seeing = Replay.__post_init__

    def made(self: Replay) -> None:
        seeing(self)
        self._most_parts = 2

    patch.setattr(Replay, "__post_init__", made)


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a class too small": lambda patch: patch.setattr("hotcold.engine.run.executor.parts_for", too_small),
    "the position itself forgotten": lambda patch: patch.setattr(
        "hotcold.engine.run.executor.parts_for", of_those_before
    ),
    "a graph that is not captured anew": blind,
}


@pytest.fixture(scope="module")
def right() -> dict[str, bytes]:
    return {}


@pytest.mark.sample(5)
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_the_classes_is_seen(
    bug: str,
    right: dict[str, bytes],
    llama: GGUFFile,
    open_emulated: OpenEmulated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not right:
        right["bits"] = bits(all_on_device(llama, SHORT), llama, open_emulated(build_kind="fast"))
    BUGS[bug](monkeypatch)
    assert bits(all_on_device(llama, SHORT), llama, open_emulated(build_kind="fast")) != right["bits"]
