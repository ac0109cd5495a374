"""The device's steps of a run: launches, copies and waits, with walks of the CPU's team in between.

A step enqueues its copies and launches, and may have something to do behind them: wait. Of one token, or one of each of
several slots, the steps up to where the host has something to do are captured once and replayed as one graph.

Kernels go to the compute stream, in the order of the nodes, and what crosses the bus between them to the crossing
stream, so that no kernel waits for the bus but those that read what comes:

* a copy down follows the compute stream (a fork), and the hot rows' launches do not wait for it. The host waits for
  the event behind the copy, and for nothing else, and walks the cold rows;
* a merge reads the cold rows' vector where the CPU has written it, in the page-locked arena: nothing is copied;
* a copy up, of what more than one kernel reads, follows nothing: `offsets` gives it bytes that nobody has used since
  the host last waited. The compute stream waits for the event behind it (`AwaitUp`) before the first of them.

A page-locked arena is written by the host again and again. Whatever the device has still to read from it must be over
before: the wait for a copy down is also one for every merge before it, which the copy follows, and for every copy up,
which is in one stream with it. Where the host would go on without such a wait, `WaitFor` stands in its way.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from hotcold.engine.graph.graph import Node
from hotcold.engine.host.steps import Context, Step
from hotcold.kernels.cuda.device.buffers import Buffer, Event, Pinned, Stream
from hotcold.kernels.cuda.device.device import Device, Prepared


class DeviceStep(ABC):
    """A step whose copies and launches are the same ones in every run, or in every one of as many parts.

    Attributes:
        device: that it is of.
        nodes: that it carries out.
        has_end: whether the host has something to do behind them.
    """

    device: Device
    nodes: tuple[Node, ...]
    has_end: ClassVar[bool] = False

    @property
    def most_parts(self) -> int:
        """For how many parts of the context its launches have blocks at most; up to that they follow the run's."""
        return 1

    @abstractmethod
    def enqueue(self, context: Context) -> None:
        """The copies and launches."""

    def finish(self, context: Context) -> None:  # noqa: B027 (most have no end)
        """What comes behind them, on the host."""

    def run(self, context: Context) -> None:
        """Both."""
        self.enqueue(context)
        self.finish(context)


@dataclass(frozen=True)
class Launches(DeviceStep):
    """Nodes that were fused, and their launches."""

    device: Device
    nodes: tuple[Node, ...]
    launches: tuple[Prepared, ...]

    @property
    def reads_host(self) -> bool:
        """Whether a kernel of them reads the host's arena."""
        return any(launch.host_bytes for launch in self.launches)

    def enqueue(self, context: Context) -> None:
        """The launches."""
        for launch in self.launches:
            self.device.run(launch, self.device.compute)


@dataclass(frozen=True)
class LaunchesByParts(Launches):
    """Attention of a decode step, whose grid follows the context: `launches` while that is one part.

    Attributes:
        by_parts: as many launches for each class of the context.
    """

    by_parts: Mapping[int, tuple[Prepared, ...]]

    @property
    def most_parts(self) -> int:
        """Of the largest class."""
        return max(self.by_parts)

    def enqueue(self, context: Context) -> None:
        """The launches of the run's class."""
        for launch in self.by_parts[min(context.parts, self.most_parts)]:
            self.device.run(launch, self.device.compute)


@dataclass(frozen=True)
class CopyDown(DeviceStep):
    """From the device's arena to the host's, beside the kernels that follow; `event` is recorded behind it."""

    device: Device
    nodes: tuple[Node, ...]
    host: Pinned
    buffer: Buffer
    event: Event

    def enqueue(self, context: Context) -> None:
        """The copy and its event."""
        crossing = self.device.crossing
        crossing.follow(self.device.compute)
        self.device.download(self.host, self.buffer, crossing)
        self.event.record(crossing)


@dataclass(frozen=True)
class CopyUp:
    """From the host's arena to the device's, beside the kernels before it; `event` is recorded behind it.

    It is in no graph: a graph's work begins when what is before it in its stream is done.
    """

    device: Device
    nodes: tuple[Node, ...]
    host: Pinned
    buffer: Buffer
    event: Event

    def run(self, context: Context) -> None:
        """The copy and its event."""
        self.device.upload(self.buffer, self.host, self.device.crossing)
        self.event.record(self.device.crossing)


@dataclass(frozen=True)
class AwaitUp(DeviceStep):
    """Kernels from here on come after the copies up."""

    device: Device
    event: Event
    nodes: tuple[Node, ...] = ()

    def enqueue(self, context: Context) -> None:
        """Let the compute stream wait."""
        self.device.compute.wait(self.event)


@dataclass(frozen=True)
class WaitFor:
    """The host waits for copies, or for the kernels of a stream that read its arena."""

    device: Device
    place: Event | Stream
    nodes: tuple[Node, ...] = ()

    def run(self, context: Context) -> None:
        """Wait."""
        self.place.synchronize()


def with_awaits(steps: Sequence[Step]) -> list[Step]:
    """The steps of a run, with the compute stream's wait for copies up before the first that may read them."""
    found: list[Step] = []
    due: dict[int, CopyUp] = {}
    for step in steps:
        if isinstance(step, CopyUp):
            due[id(step.device)] = step
        elif isinstance(step, DeviceStep) and (up := due.pop(id(step.device), None)) is not None:
            found.append(AwaitUp(up.device, up.event))
        found.append(step)
    return found


@dataclass(frozen=True)
class Logits(DeviceStep):
    """The head on the device, for the tokens whose logits are wanted, and the copy to the run's array.

    One token at a time: the head is large, and mostly one is wanted. Where the likeliest tokens are enough, they alone
    are copied.

    Attributes:
        before: launches for all tokens together, before the first: the rounding, and which rows are wanted.
        buffer: one token's logits.
        host: page-locked, where they arrive.
        found, host_found: the candidates among them, int32 [CANDIDATE_WORDS], and where those arrive.
        event: behind the copy.
        launches: of one token, by its number in the batch; prepared once.
        choosing: what finds the candidates behind them.
    """

    has_end: ClassVar[bool] = True
    device: Device
    nodes: tuple[Node, ...]
    before: tuple[Prepared, ...]
    buffer: Buffer
    host: Pinned
    found: Buffer
    host_found: Pinned
    event: Event
    choosing: tuple[Prepared, ...]
    launches: Callable[[int], tuple[Prepared, ...]] = field(compare=False)

    def enqueue(self, context: Context) -> None:
        """What comes before, and the first token's launches.

        A graph has the search for candidates too: it serves those who want logits, and copies what they want behind it.
        """
        if context.logits is None:
            return
        for launch in self.before:
            self.device.run(launch, self.device.compute)
        chooses = context.candidates is not None or self.device.is_capturing
        self._enqueue_token(context.n_tokens - len(context.logits), chooses)

    def _enqueue_token(self, token: int, chooses: bool) -> None:
        for launch in self.launches(token) + (self.choosing if chooses else ()):
            self.device.run(launch, self.device.compute)

    def _fetch(self, host: Pinned, buffer: Buffer) -> None:
        """Copy what was made, and wait for it."""
        self.device.download(host, buffer, self.device.compute)
        self.event.record(self.device.compute)
        self.event.synchronize()

    def finish(self, context: Context) -> None:
        """Take the first token's logits or candidates, then those of the others one by one."""
        if context.logits is None:
            return
        first, candidates = context.n_tokens - len(context.logits), context.candidates
        for i, row in enumerate(context.logits):
            if i > 0:
                self._enqueue_token(first + i, candidates is not None)
            if candidates is not None:
                self._fetch(self.host_found, self.found)
                candidates[i] = self.host_found.array
                if not candidates[i, 0]:
                    continue
            self._fetch(self.host, self.buffer)  # wanted, or to tell what is wrong with them
            row[:] = self.host.array
