"""The device's steps of a run: launches, copies and waits, with walks of the CPU's team in between.

A step enqueues its copies and launches, and may have something to do behind them: record an event, wait. For one
token, the steps up to the next such end are captured once and replayed as one graph.

All work of the device goes to one stream, in the order of the nodes. So a copy down, the event behind it
and the hot rows' launches are enqueued first; then the host waits for the event alone, walks the cold
rows, and enqueues the copy up and the merge behind the hot rows.

A page-locked arena is written by the host again and again. Whatever the device has still to read from it
must be over before: the wait for a copy down is also one for every copy up before it, and where the host
would go on without such a wait, `WaitFor` stands in its way.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from hotcold.engine.graph.graph import Node
from hotcold.engine.host.steps import Context
from hotcold.kernels.cuda.device.buffers import Buffer, Event, Pinned
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

    def enqueue(self, context: Context) -> None:
        """The launches."""
        for launch in self.launches:
            self.device.run(launch, self.device.compute)


@dataclass(frozen=True)
class LaunchesByParts(Launches):
    """A single token's attention, whose grid follows the context: `launches` while that is one part.

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
    """From the device's arena to the host's; `event` is recorded behind it."""

    has_end: ClassVar[bool] = True
    device: Device
    nodes: tuple[Node, ...]
    host: Pinned
    buffer: Buffer
    event: Event

    def enqueue(self, context: Context) -> None:
        """The copy."""
        self.device.download(self.host, self.buffer, self.device.compute)

    def finish(self, context: Context) -> None:
        """Record the event."""
        self.event.record(self.device.compute)


@dataclass(frozen=True)
class CopyUp(DeviceStep):
    """From the host's arena to the device's."""

    device: Device
    nodes: tuple[Node, ...]
    host: Pinned
    buffer: Buffer

    def enqueue(self, context: Context) -> None:
        """The copy."""
        self.device.upload(self.buffer, self.host, self.device.compute)


@dataclass(frozen=True)
class WaitFor:
    """The host waits for copies; recorded here if nothing was recorded behind them."""

    device: Device
    event: Event
    record: bool = False
    nodes: tuple[Node, ...] = ()

    def run(self, context: Context) -> None:
        """Wait."""
        if self.record:
            self.event.record(self.device.compute)
        self.event.synchronize()


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
        """What comes before, and the first token's launches and copy."""
        if context.logits is None:
            return
        for launch in self.before:
            self.device.run(launch, self.device.compute)
        self._enqueue_token(context.n_tokens - len(context.logits), context.candidates is not None)

    def _enqueue_token(self, token: int, chooses: bool) -> None:
        for launch in self.launches(token) + (self.choosing if chooses else ()):
            self.device.run(launch, self.device.compute)
        if chooses:
            self.device.download(self.host_found, self.found, self.device.compute)
        else:
            self.device.download(self.host, self.buffer, self.device.compute)

    def _wait(self) -> None:
        self.event.record(self.device.compute)
        self.event.synchronize()

    def finish(self, context: Context) -> None:
        """Wait for the first token's logits, then take the others one by one."""
        if context.logits is None:
            return
        first, candidates = context.n_tokens - len(context.logits), context.candidates
        for i, row in enumerate(context.logits):
            if i > 0:
                self._enqueue_token(first + i, candidates is not None)
            self._wait()
            if candidates is not None:
                candidates[i] = self.host_found.array
                if not candidates[i, 0]:
                    continue
                self.device.download(
                    self.host, self.buffer, self.device.compute
                )  # to tell what is wrong with them
                self._wait()
            row[:] = self.host.array
