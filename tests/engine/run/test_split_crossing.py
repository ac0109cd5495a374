"""What crosses the bus beside the kernels: nothing is read before it is there, and nothing written too early.

Bugs are put in, one at a time, and each has to be seen: in the logits of some order of the streams, or as a graph that
cannot be made.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from split_runs import (
    Case,
    OpenEmulated,
    mixed_logits,
    model_of,
    on_device,
    plan_named,
    plan_with,
    some_neurons,
)
from stub_cupy import StubCupy

from hotcold.engine.device.cards import Cards
from hotcold.engine.device.records import DeviceLowering
from hotcold.engine.device.replay import Replay
from hotcold.engine.device.steps import AwaitUp, CopyDown, CopyUp, Launches, WaitFor
from hotcold.engine.graph import offsets
from hotcold.engine.graph.graph import Tensor
from hotcold.engine.host.steps import Context, Step, Walk
from hotcold.engine.plan.plan import Plan
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.buffers import Buffer, Pinned
from hotcold.kernels.cuda.device.cuda_driver import CudaDriver
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

WAITS, STEPS, WAIT, ADDEND = Cards._waits, Cards.steps, WaitFor.run, DeviceLowering.addend
Plant = Callable[[pytest.MonkeyPatch], None]


def nothing(self: object, context: object) -> None:
    """As if there were nothing to wait for."""


def waits_for_nothing(self: Cards, *arguments: object) -> list[WaitFor]:
    """As if nothing of the host's were under way."""
    return []


def merges_first(self: Cards, *arguments: object) -> list[Step]:
    """Merges before the walks that make what they read: they find what the last layer left."""
    steps = STEPS(self, *arguments)  # type: ignore[arg-type]
    for i in range(1, len(steps)):
        before, step = steps[i - 1 : i + 1]
        if isinstance(before, Walk) and isinstance(step, Launches) and step.reads_host:
            steps[i - 1 : i + 1] = step, before
    return steps


def walks_before_the_wait(self: Cards, *arguments: object) -> list[Step]:
    """The host goes on, and waits then."""
    steps = STEPS(self, *arguments)  # type: ignore[arg-type]
    for i in range(1, len(steps)):
        if isinstance(steps[i - 1], WaitFor) and isinstance(steps[i], Walk):
            steps[i - 1 : i + 1] = steps[i], steps[i - 1]
    return steps


def wipes_before_the_wait(patch: pytest.MonkeyPatch) -> None:
    """The host clears what it has handed over, and waits then."""
    handed: list[Pinned] = []

    def addend(self: DeviceLowering, tensor: Tensor) -> Buffer | Pinned:
        found = ADDEND(self, tensor)
        handed.extend([found] if isinstance(found, Pinned) else [])
        return found

    def wipe(self: WaitFor, context: Context) -> None:
        for each in handed:
            each.array[:] = np.nan
        WAIT(self, context)

    patch.setattr(DeviceLowering, "addend", addend)
    patch.setattr(WaitFor, "run", wipe)


def waits_for_the_other_way(self: Cards, *arguments: object) -> list[WaitFor]:
    """The event behind the last copy up in the place of the one behind the copy down."""
    up = {id(side.device): side.up for side in self.sides}
    return [WaitFor(step.device, up[id(step.device)]) for step in WAITS(self, *arguments)]  # type: ignore[arg-type]


def event_first(self: CopyDown, context: object) -> None:
    """The event before its copy."""
    crossing = self.device.crossing
    crossing.follow(self.device.compute)
    self.event.record(crossing)
    self.device.download(self.host, self.buffer, crossing)


def event_of_kernels(self: CopyDown, context: object) -> None:
    """The event in the kernels' stream."""
    crossing = self.device.crossing
    crossing.follow(self.device.compute)
    self.device.download(self.host, self.buffer, crossing)
    self.event.record(self.device.compute)


def no_fork(self: CopyDown, context: object) -> None:
    """A copy that does not wait for what it copies."""
    self.device.download(self.host, self.buffer, self.device.crossing)
    self.event.record(self.device.crossing)


def up_with_the_last_event(self: CopyUp, context: object) -> None:
    """The event before its copy: those who wait pass with the copy before."""
    self.event.record(self.device.crossing)
    self.device.upload(self.buffer, self.host, self.device.crossing)


def no_join(self: Replay, context: object) -> None:
    """A graph whose other stream is left alone."""
    for step in self.steps:
        step.enqueue(context)  # type: ignore[arg-type]


IN_BITS: dict[str, Plant] = {
    "the host waits for the copy up": lambda patch: patch.setattr(Cards, "_waits", waits_for_the_other_way),
    "the host waits for nothing": lambda patch: patch.setattr(Cards, "_waits", waits_for_nothing),
    "the host computes before it waits": lambda patch: patch.setattr(Cards, "steps", walks_before_the_wait),
    "the host writes what a merge has still to read": wipes_before_the_wait,
    "a merge reads what the last layer left": lambda patch: patch.setattr(Cards, "steps", merges_first),
    "the event of a copy down comes before it": lambda patch: patch.setattr(CopyDown, "enqueue", event_first),
    "the event of a copy down is the kernels'": lambda patch: patch.setattr(
        CopyDown, "enqueue", event_of_kernels
    ),
    "a copy down does not wait for the norm": lambda patch: patch.setattr(CopyDown, "enqueue", no_fork),
}
OF_COPIES_UP: dict[str, Plant] = {
    "kernels do not wait for the copy up": lambda patch: patch.setattr(AwaitUp, "enqueue", nothing),
    "the event of a copy up comes before it": lambda patch: patch.setattr(
        CopyUp, "run", up_with_the_last_event
    ),
    "a copy up takes bytes that kernels read": lambda patch: patch.setattr(
        offsets, "_last_waited", lambda placed, step: step
    ),
}
IN_CAPTURE: dict[str, tuple[Plant, str]] = {
    "no join": (lambda patch: patch.setattr(Replay, "_enqueue", no_join), "cudaErrorStreamCaptureUnjoined"),
    "no fork": (
        lambda patch: patch.setattr(CopyDown, "enqueue", no_fork),
        "of a stream that is not captured",
    ),
}


@pytest.fixture
def make_plan(file: GGUFFile) -> Callable[[], Plan]:
    """Half of the neurons, planned anew: a bug may lie in the plan."""
    model = model_of(file)
    return lambda: plan_with(model, Case("predictor"), some_neurons(model, model.n_ff // 2))


def bits(plan: Plan, file: GGUFFile, open_emulated: OpenEmulated, policy: str, has_graphs: bool) -> bytes:
    """Logits of batches and of single tokens."""
    device = open_emulated(build_kind="fast", policy=policy, seed=2)
    device.has_graphs = has_graphs
    with on_device(plan, file, device) as executor:
        return mixed_logits(executor).tobytes()


def check_seen(
    plant: Callable[[], None],
    make_plan: Callable[[], Plan],
    file: GGUFFile,
    open_emulated: OpenEmulated,
    has_graphs: bool,
) -> None:
    """By an order that lets things be late, or early; `eager` sees what is never done, or enqueued too early."""
    wanted = bits(make_plan(), file, open_emulated, "eager", has_graphs)
    plant()
    plan, policies = make_plan(), ("late", "ahead", "eager")
    assert any(bits(plan, file, open_emulated, policy, has_graphs) != wanted for policy in policies)


@pytest.mark.sample(5)
@pytest.mark.parametrize("has_graphs", [False, True])
@pytest.mark.parametrize("bug", IN_BITS)
def test_a_bug_is_seen(
    bug: str,
    has_graphs: bool,
    make_plan: Callable[[], Plan],
    file: GGUFFile,
    open_emulated: OpenEmulated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_seen(lambda: IN_BITS[bug](monkeypatch), make_plan, file, open_emulated, has_graphs)


@pytest.mark.sample(5)
@pytest.mark.parametrize("has_graphs", [False, True])
@pytest.mark.parametrize("bug", OF_COPIES_UP)
def test_a_bug_of_a_copy_up_is_seen(
    bug: str, has_graphs: bool, data: Path, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All experts are the CPU's, the shared one is computed while theirs go up, and an addition reads them."""
    with open_gguf(data / "llamacpp" / "qwen2moe.q4_0.gguf") as file:
        model = model_of(file)
        check_seen(
            lambda: OF_COPIES_UP[bug](monkeypatch),
            lambda: plan_named(model, Case("off"), "dense"),
            file,
            open_emulated,
            has_graphs,
        )


def test_the_host_waits_for_a_merge_that_no_copy_down_follows(
    make_plan: Callable[[], Plan], file: GGUFFile, open_emulated: OpenEmulated
) -> None:
    """For its kernels themselves, where it would else go on while they read its arena."""
    device = open_emulated(build_kind="fast")
    with on_device(make_plan(), file, device) as executor:
        steps = executor.run_steps.of(1)
        at = next(i for i, s in enumerate(steps) if isinstance(s, Launches) and s.reads_host)
        merge, copy = steps[at], next(step for step in steps if isinstance(step, CopyDown))
        assert isinstance(steps[at - 1], Walk)
        waits = [
            [wait.place for wait in Cards._waits(executor._cards, some)]  # type: ignore[arg-type]
            for some in ([merge], [copy, merge], [merge, copy], [merge, WaitFor(device, device.compute)])
        ]
    assert waits == [[device.compute], [device.compute, copy.event], [copy.event], []]


@pytest.mark.parametrize("bug", IN_CAPTURE)
def test_a_graph_that_cuda_would_refuse_is_named(
    bug: str,
    make_plan: Callable[[], Plan],
    file: GGUFFile,
    open_emulated: OpenEmulated,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And the run goes on without graphs."""
    plant, said = IN_CAPTURE[bug]
    plant(monkeypatch)
    device = open_emulated(build_kind="fast")
    with (
        caplog.at_level(logging.WARNING, "hotcold.engine"),
        on_device(make_plan(), file, device) as executor,
    ):
        mixed_logits(executor)
    assert not device.has_graphs
    (record,) = caplog.records
    assert said in record.getMessage()


@pytest.mark.slow  # NVRTC compiles the kernels
def test_the_calls_to_cupy_give_the_same_bits(
    plan: Plan, file: GGUFFile, open_emulated: OpenEmulated
) -> None:
    """On its stand-in, with the driver's own call for the event that the host waits for."""
    wanted = bits(plan, file, open_emulated, "eager", has_graphs=True)
    for policy in ("late", "ahead"):
        cupy = StubCupy(EmulatedDriver(build_kind="fast", policy=policy))
        with (
            Device(CudaDriver(cupy=cupy, libcuda=cupy.libcuda)) as device,
            on_device(plan, file, device) as executor,
        ):
            assert mixed_logits(executor).tobytes() == wanted
            assert device.has_graphs and device.counters.graph_launches > 0
