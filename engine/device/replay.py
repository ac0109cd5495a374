"""Decode steps as graphs: what the device's steps enqueue is captured once and launched as a whole.

A decode step is one token, or one of each of several sequences, and each number of tokens has graphs of its own. A
graph takes its arguments from where it was captured, and they are the same for every step: positions, slots, ids of
listed rows and all other numbers that change lie in memory of the device. It ends where the host has something to do:
at a wait, at a walk, at a copy up. The event that the host waits for lies inside of it, behind a copy down.

Grids are captured too, and those of attention follow the context's class (`formats.part_classes`): a graph with an
attention in it is captured anew when a token is of another class. So is the one with the head, when a token whose
logits nobody wants follows others, or the other way round; logits and candidates have one and the same. The one before
is gone by then, so that what graphs take of the device's memory depends neither on how long a context is nor on what is
wanted.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from hotcold.engine.device.steps import CopyDown, DeviceStep, Logits
from hotcold.engine.graph.graph import Node
from hotcold.engine.host.steps import Context, Step
from hotcold.engine.plan.graph_memory import OTHER_STEPS
from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.device import CapturedGraph, Device
from hotcold.kernels.cuda.device.driver import CaptureError

log = logging.getLogger("hotcold.engine")
WATCHED = 4  # launches of each stretch of steps
NOT_YET = 0xFF  # bytes of float32 that no kernel computes


@dataclass
class Replay:
    """Steps of the device, of which the last alone may have an end on the host; captured when their launches change.

    Attributes:
        steps: that it carries out.
    """

    device: Device
    steps: tuple[DeviceStep, ...]
    _graph: CapturedGraph | None = field(default=None, repr=False)
    _captured_for: tuple[int, bool] = field(default=(0, False), repr=False)
    _launched: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self._most_parts = max(step.most_parts for step in self.steps)
        self._copies = [step for step in self.steps if isinstance(step, CopyDown)]
        self._has_head = isinstance(self.steps[-1], Logits)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Of all its steps."""
        return tuple(node for step in self.steps for node in step.nodes)

    def run(self, context: Context) -> None:
        """Launch the graph, then do what the last step does on the host."""
        wanted = min(context.parts, self._most_parts), self._has_head and context.logits is not None
        if wanted != self._captured_for:
            self._graph, self._captured_for = None, wanted
        if self._graph is None and self.device.has_graphs:
            self._capture(context)
        if self._graph is None or not self.device.has_graphs:
            self._enqueue(context)
        elif self._launched < WATCHED:
            self._launch_watched(self._graph)
        else:
            self.device.run_graph(self._graph, self.device.compute)
        self.steps[-1].finish(context)

    def drop(self) -> None:
        """Give the graph's memory back; nothing of it may be under way."""
        self._graph = None

    def _launch_watched(self, graph: CapturedGraph) -> None:
        """One of the first: the host must not pass an event within the graph before the copy in front of it is there.

        That it waits for this launch, and not for what the event recorded before, is what CUDA's documentation lets
        expect, not what it says. A driver that has it otherwise would give wrong answers without a word, or refuse the
        wait.
        """
        self._launched += 1
        for copy in self._copies:
            copy.host.array.view(np.uint8)[:] = NOT_YET
        self.device.run_graph(graph, self.device.compute)
        started = perf_counter()
        seen = self._seen()
        if self._copies:
            self.device.driver.wait_stream(self.device.compute.raw)
        self.device.tally.waiting += perf_counter() - started
        if seen != [copy.host.array.tobytes() for copy in self._copies]:
            self.device.has_graphs = False
            for copy in self._copies:  # for who waits next, where the graph's record is of no use
                copy.event.record(self.device.crossing)
            log.warning(
                "without graphs, launches one by one: the host does not wait for an event within a graph here"
            )

    def _seen(self) -> list[bytes]:
        """What lies where copies go once their events let the host pass; nothing where it may not wait for them."""
        driver = self.device.driver
        try:
            for copy in self._copies:
                driver.wait_event(copy.event.raw)  # past the counters of calls: no part of a run
            return [copy.host.array.tobytes() for copy in self._copies]
        except DeviceError as refusal:
            try:
                driver.wait_stream(self.device.compute.raw)
            except DeviceError:
                raise refusal from None  # the device is lost, and the first error tells why
            return []

    def _enqueue(self, context: Context) -> None:
        for step in self.steps:
            step.enqueue(context)
        if self._copies:
            self.device.compute.follow(self.device.crossing)  # CUDA wants all streams of a graph joined

    def _capture(self, context: Context) -> None:
        """Make the graph; a device that has none goes on without, and that is said once."""
        try:
            self._graph = self.device.capture(lambda: self._enqueue(context), self.device.compute)
        except CaptureError as error:
            self.device.has_graphs = False
            log.warning("without graphs, launches one by one: %s", error)


class Replays:
    """The graphs of decode steps, by their number of tokens: of one, and of those others that were the last to run."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Sequence[Step], list[Step]]] = {}

    def of(self, steps: Sequence[Step], n_tokens: int) -> list[Step]:
        """A decode step's steps, as graphs where the devices are to have them; nothing may be under way."""
        found, replays = self._kept.pop(n_tokens, ((), []))
        if found is not steps:
            others = [n for n in self._kept if n > 1]
            if n_tokens > 1 and len(others) == OTHER_STEPS:
                del self._kept[others[0]]
            replays = in_graphs(steps)
        self._kept[n_tokens] = steps, replays  # behind all others
        return replays

    def drop(self, device: Device) -> None:
        """Give back what a device holds of them, when nothing is under way."""
        for _, replays in self._kept.values():
            for step in replays:
                if isinstance(step, Replay) and step.device is device:
                    step.drop()


def in_graphs(steps: Sequence[Step]) -> list[Step]:
    """The steps of a decode step, with those of a device together as far as one graph can hold them."""
    found: list[Step] = []
    part: list[DeviceStep] = []
    for step in steps:
        if not isinstance(step, DeviceStep):
            found += _replays(part)
            found.append(step)
            part = []
            continue
        if part and part[-1].device is not step.device:
            found += _replays(part)
            part = []
        part.append(step)
        if step.has_end:
            found += _replays(part)
            part = []
    return found + _replays(part)


def _replays(part: list[DeviceStep]) -> list[Step]:
    return [Replay(part[0].device, tuple(part))] if part else []
