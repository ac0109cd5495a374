"""What crosses the bus beside the kernels: nothing is read before its event, and nothing written too early.

Bugs are put in, one at a time, and each has to be seen: in the logits of some order of the streams, or as a graph that
cannot be made.
"""

import logging
from collections.abc import Callable

import pytest
from split_runs import Case, OpenEmulated, mixed_logits, model_of, on_device, plan_with, some_neurons
from stub_cupy import StubCupy

from hotcold.engine.device.cards import Cards
from hotcold.engine.device.replay import Replay
from hotcold.engine.device.steps import AwaitUp, CopyDown, CopyUp, WaitFor
from hotcold.engine.graph import offsets
from hotcold.engine.plan.plan import Plan
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.cuda.device.cuda_driver import CudaDriver
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

WAITS = Cards._waits
Plant = Callable[[pytest.MonkeyPatch], None]


def nothing(self: object, context: object) -> None:
    """As if there were nothing to wait for."""


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
    "the merge does not wait for the copy up": lambda patch: patch.setattr(AwaitUp, "enqueue", nothing),
    "the event of a copy up comes before it": lambda patch: patch.setattr(
        CopyUp, "run", up_with_the_last_event
    ),
    "the host waits for the copy up": lambda patch: patch.setattr(Cards, "_waits", waits_for_the_other_way),
    "the event of a copy down comes before it": lambda patch: patch.setattr(CopyDown, "enqueue", event_first),
    "the event of a copy down is the kernels'": lambda patch: patch.setattr(
        CopyDown, "enqueue", event_of_kernels
    ),
    "a copy down does not wait for the norm": lambda patch: patch.setattr(CopyDown, "enqueue", no_fork),
    "a copy up takes bytes that the hot rows read": lambda patch: patch.setattr(
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
    """By an order that lets copies be late, or one that lets them be early; `eager` sees only what is never done."""
    wanted = bits(make_plan(), file, open_emulated, "eager", has_graphs)
    IN_BITS[bug](monkeypatch)
    plan = make_plan()
    found = {policy: bits(plan, file, open_emulated, policy, has_graphs) for policy in ("late", "ahead")}
    assert set(found.values()) != {wanted}


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
