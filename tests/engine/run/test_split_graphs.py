"""Split runs as graphs: the bits of runs without, as few graphs as the host's waits allow, and a way back."""

import logging
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from split_runs import (
    IDS,
    Case,
    OpenEmulated,
    mixed_logits,
    model_of,
    on_device,
    plan_named,
)

from hotcold.engine.device import replay
from hotcold.engine.device.replay import Replay
from hotcold.engine.device.steps import CopyDown, DeviceStep, Logits
from hotcold.engine.plan.plan import Plan
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.trace import Tracing
from hotcold.errors import DeviceError, DoesNotFitError, HotcoldError
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.device import CapturedGraph, Device
from hotcold.kernels.cuda.device.driver import CaptureError
from hotcold.kernels.formats import CANDIDATE_WORDS

FILES = ("powerinfer/llama-f16.powerinfer", "powerinfer/opt-q4_0.powerinfer", "llamacpp/qwen3moe.f16")


@pytest.mark.sample(5)
@pytest.mark.parametrize("budget", ["half", "dense", "dense + 50%", "everything"])
@pytest.mark.parametrize("name", FILES)
def test_the_bits_of_a_run_without(name: str, budget: str, data: Path, open_emulated: OpenEmulated) -> None:
    with open_gguf(data / f"{name}.gguf") as file:
        model = model_of(file)
        plan = plan_named(model, Case("predictor" if "powerinfer" in name else "off"), budget)
        found = []
        for has_graphs in (False, True):
            device = open_emulated(build_kind="fast", policy="late")
            device.has_graphs = has_graphs
            with on_device(plan, file, device) as executor:
                found.append(mixed_logits(executor).tobytes())
            assert bool(device.counters.graph_launches) == has_graphs == device.has_graphs
    assert found[0] == found[1]


def graphs_of_a_token(executor: Executor, device: Device) -> list[int]:
    counted = []
    logits = np.empty((1, executor.model.n_vocab), np.float32)
    for i, wanted in enumerate((logits, logits, None)):
        before = device.counters.graph_launches
        executor.run(IDS[i : i + 1], i, wanted)
        counted.append(device.counters.graph_launches - before)
    return counted


def test_a_split_layer_is_one_graph(plan: Plan, file: GGUFFile, open_emulated: OpenEmulated) -> None:
    """From merge to merge, with the hot rows beside the cold ones; the head ends the last."""
    device = open_emulated(build_kind="fast")
    with on_device(plan, file, device) as executor:
        n = executor.model.n_layer
        assert graphs_of_a_token(executor, device) == [n + 1] * 3


def test_everything_on_the_device_is_one_graph(file: GGUFFile, open_emulated: OpenEmulated) -> None:
    device = open_emulated(build_kind="fast")
    with on_device(plan_named(model_of(file), Case("predictor"), "everything"), file, device) as executor:
        assert graphs_of_a_token(executor, device) == [1, 1, 1]


def captures_of(executor: Executor, device: Device, wanted: str) -> list[int]:
    """Of tokens of which l wants logits, c candidates, n neither."""
    counted = []
    logits = np.empty((1, executor.model.n_vocab), np.float32)
    found = np.empty((1, CANDIDATE_WORDS), np.int32)
    for i, each in enumerate(wanted):
        before = device.counters.graph_captures
        what = logits if each != "n" else None, found if each == "c" else None
        executor.run(IDS[i : i + 1], i, what[0], candidates=what[1])
        counted.append(device.counters.graph_captures - before)
    return counted


def test_all_who_want_the_head_have_the_same_graphs(
    plan: Plan, file: GGUFFile, open_emulated: OpenEmulated
) -> None:
    """And who does not has all but the last one, which takes the other's place."""
    device, n = open_emulated(build_kind="fast"), plan.model.n_layer
    with on_device(plan, file, device) as executor:
        assert captures_of(executor, device, "lclccnnlcn") == [n + 1, 0, 0, 0, 0, 1, 0, 1, 0, 1]


def test_who_looks_at_single_steps_gets_them(plan: Plan, file: GGUFFile, open_emulated: OpenEmulated) -> None:
    device, heard = open_emulated(build_kind="fast"), list[str]()
    with on_device(plan, file, device) as executor:
        executor.taking = Tracing(executor, lambda taken: heard.append(taken.node.name))
        executor.run(IDS[:1], 0, np.empty((1, executor.model.n_vocab), np.float32))
    assert device.counters.graph_launches == 0
    assert heard == [p.node.name for p in plan.decode.placed.nodes]


@pytest.mark.parametrize(
    "call, error",
    [
        ("begin_capture", CaptureError("driver", "old", "it has no graphs")),
        ("end_capture", DoesNotFitError("memory of a card", "it has no graphs' room")),
    ],
)
def test_a_device_without_graphs_runs_without_and_says_so_once(
    call: str,
    error: HotcoldError,
    plan: Plan,
    file: GGUFFile,
    open_emulated: OpenEmulated,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One whose memory is full is such a device too: what it has is enough for launches."""
    logits = []
    for refuses in (False, True):
        device = open_emulated(build_kind="fast")
        if refuses:
            setattr(device.driver, call, refusing(getattr(device.driver, call), error))
        with on_device(plan, file, device) as executor, caplog.at_level(logging.WARNING, "hotcold.engine"):
            logits.append(mixed_logits(executor).tobytes())
        assert device.has_graphs != refuses
    assert logits[0] == logits[1]
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("without graphs, launches one by one") and "it has no graphs" in said


@pytest.mark.parametrize("refuses", [False, True])
def test_a_driver_whose_events_within_graphs_are_of_no_use_gets_none(
    refuses: bool,
    plan: Plan,
    file: GGUFFile,
    open_emulated: OpenEmulated,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They let the host pass, or may not be waited for: right answers, a line, and plain launches from there on."""
    logits = []
    monkeypatch.setattr(replay, "WATCHED", 1)
    for passes in (False, True):
        device = open_emulated(build_kind="fast", policy="late")
        if passes:
            let_pass(device, refuses)
        held = captured_by(device)
        with on_device(plan, file, device) as executor, caplog.at_level(logging.WARNING, "hotcold.engine"):
            logits.append(mixed_logits(executor).tobytes())
            assert bool(held) and any(graph() for graph in held) != passes
        assert device.has_graphs != passes
    assert logits[0] == logits[1]
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("without graphs, launches one by one") and "an event within a graph" in said


@pytest.mark.parametrize("found", [1, 3])
def test_who_gets_no_more_graphs_gives_those_back_that_are_there(
    found: int, plan: Plan, file: GGUFFile, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the end of the run in which the first one, or the last, is found to be of no use."""
    monkeypatch.setattr(replay, "WATCHED", 1)
    device, seen = open_emulated(build_kind="fast", policy="late"), Replay._seen
    held, times = captured_by(device), iter(range(1, 100))

    def sees(self: Replay) -> list[bytes]:
        return (
            seen(self) if next(times) != found else [b"what was there before" for _ in self._copies] or [b""]
        )

    monkeypatch.setattr(Replay, "_seen", sees)
    with on_device(plan, file, device) as executor:
        executor.run(IDS[:1], 0, np.empty((1, executor.model.n_vocab), np.float32))
        assert len(held) == found and not device.has_graphs
        assert not any(graph() for graph in held)


def captured_by(device: Device) -> list[weakref.ref[CapturedGraph]]:
    """All graphs of a device, for as long as somebody holds them."""
    held, capture = list[weakref.ref[CapturedGraph]](), device.capture

    def captured(*arguments: Any) -> CapturedGraph:
        graph = capture(*arguments)
        held.append(weakref.ref(graph))
        return graph

    patched: Any = device
    patched.capture = captured
    return held


def let_pass(device: Device, refuses: bool) -> None:
    """The host does not wait for events whose last record is within a graph, or is refused when it wants to."""
    driver, within = device.driver, set[int]()
    record_external, record, wait = driver.record_external, driver.record, driver.wait_event

    def externally(event: object, stream: object) -> None:
        within.add(id(event))
        record_external(event, stream)

    def plainly(event: object, stream: object) -> None:
        within.discard(id(event))
        record(event, stream)

    def wait_for(event: object) -> None:
        if id(event) not in within:
            wait(event)
        elif refuses:
            raise DeviceError("event", "recorded within a capture")

    patched: Any = driver
    patched.record_external, patched.record, patched.wait_event = externally, plainly, wait_for


def refusing(call: Callable[[object], object], error: HotcoldError) -> Callable[[object], None]:
    """The end of a capture comes all the same, as CUDA ends one that it cannot make a graph of."""

    def refuse(stream: object) -> None:
        if call.__name__ == "end_capture":
            call(stream)
        raise error

    return refuse


# Bugs that are put in, each of which has to be seen


def finish_nothing(self: DeviceStep, context: object) -> None:
    """As if the host had nothing to do."""


def copy_alone(self: CopyDown, context: object) -> None:
    """As if nobody waited for it."""
    crossing = self.device.crossing
    crossing.follow(self.device.compute)
    self.device.download(self.host, self.buffer, crossing)


def all_in_one(steps: Sequence[object]) -> list[object]:
    """Over the walks, as if the cold rows came from nowhere."""
    of_device = tuple(step for step in steps if isinstance(step, DeviceStep))
    rest = [step for step in steps if not isinstance(step, DeviceStep)]
    return [*rest, Replay(of_device[0].device, of_device)]


def walks_first(steps: Sequence[object]) -> list[object]:
    """The graphs in their order, but behind the walks between them."""
    replays = CORRECT(steps)  # type: ignore[arg-type]
    return sorted(replays, key=lambda step: isinstance(step, Replay))


def without_the_last_of_each(steps: Sequence[object]) -> list[object]:
    """Graphs that lack their last piece, whose end on the host is kept."""
    replays = CORRECT(steps)  # type: ignore[arg-type]
    for step in replays:
        if isinstance(step, Replay):
            step._enqueue = lambda context, step=step: [s.enqueue(context) for s in step.steps[:-1]]  # type: ignore
    return list(replays)


def captured_anew(self: Replay, context: object) -> None:
    """The first run's work is done twice: captured, and once more beside the graph."""
    CAPTURE(self, context)  # type: ignore[arg-type]
    self._enqueue(context)  # type: ignore[arg-type]


CORRECT, CAPTURE, SEEING = replay.in_graphs, Replay._capture, Replay.__post_init__
Plant = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, Plant] = {
    "no event behind a copy down": lambda patch: patch.setattr(CopyDown, "enqueue", copy_alone),
    "nobody waits for the logits": lambda patch: patch.setattr(Logits, "finish", finish_nothing),
    "one graph over the walks": lambda patch: patch.setattr(
        "hotcold.engine.device.replay.in_graphs", all_in_one
    ),
    "walks before the graphs": lambda patch: patch.setattr(
        "hotcold.engine.device.replay.in_graphs", walks_first
    ),
    "a graph lacks its last piece": lambda patch: patch.setattr(
        "hotcold.engine.device.replay.in_graphs", without_the_last_of_each
    ),
    "the first run is done twice": lambda patch: patch.setattr(Replay, "_capture", captured_anew),
    "a graph without the head serves who wants it": lambda patch: patch.setattr(
        Replay, "__post_init__", without_a_head
    ),
}


def without_a_head(self: Replay) -> None:
    """As if it did not matter whether logits are wanted."""
    SEEING(self)
    self._has_head = False


def bits(plan: Plan, file: GGUFFile, device: Device) -> tuple[bytes, int]:
    """Logits of some tokens, of which the first has nobody who wants its own; and the launches."""
    logits = np.full((4, plan.model.n_vocab), np.nan, np.float32)
    with on_device(plan, file, device) as executor:
        executor.run(IDS[:1], 0, None)
        for i in range(1, 5):
            executor.run(IDS[i : i + 1], i, logits[i - 1 : i])
    return logits.tobytes(), sum(device.counters.launches.values())


@pytest.mark.sample(3)
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_the_graphs_is_seen(
    bug: str, plan: Plan, file: GGUFFile, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = bits(plan, file, open_emulated(build_kind="fast", policy="late"))
    BUGS[bug](monkeypatch)
    found = bits(plan, file, open_emulated(build_kind="fast", policy="late"))
    assert found != wanted
