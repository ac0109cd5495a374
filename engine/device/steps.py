"""The device's steps of a run: launches, copies and waits, with walks of the CPU's team in between.

All work of the device goes to one stream, in the order of the nodes. So a copy down, the event behind it
and the hot rows' launches are enqueued first; then the host waits for the event alone, walks the cold
rows, and enqueues the copy up and the merge behind the hot rows.

A page-locked arena is written by the host again and again. Whatever the device has still to read from it
must be over before: the wait for a copy down is also one for every copy up before it, and where the host
would go on without such a wait, `WaitFor` stands in its way.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from hotcold.engine.graph.graph import Node
from hotcold.engine.host.steps import Context
from hotcold.kernels.cuda.device.buffers import Buffer, Event, Pinned
from hotcold.kernels.cuda.device.device import Device, Prepared


@dataclass(frozen=True)
class Launches:
    """Nodes that were fused, and their launches."""

    device: Device
    nodes: tuple[Node, ...]
    launches: tuple[Prepared, ...]

    def run(self, context: Context) -> None:
        """Enqueue them."""
        for launch in self.launches:
            self.device.run(launch, self.device.compute)


@dataclass(frozen=True)
class CopyDown:
    """From the device's arena to the host's; `event` is recorded behind it."""

    device: Device
    nodes: tuple[Node, ...]
    host: Pinned
    buffer: Buffer
    event: Event

    def run(self, context: Context) -> None:
        """Enqueue both."""
        self.device.download(self.host, self.buffer, self.device.compute)
        self.event.record(self.device.compute)


@dataclass(frozen=True)
class CopyUp:
    """From the host's arena to the device's."""

    device: Device
    nodes: tuple[Node, ...]
    host: Pinned
    buffer: Buffer

    def run(self, context: Context) -> None:
        """Enqueue it."""
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
class Logits:
    """The head on the device, for the tokens whose logits are wanted, and the copy to the run's array.

    One token at a time: the head is large, and mostly one is wanted.

    Attributes:
        rounding: launches for all tokens together, before the first.
        buffer: one token's logits.
        host: page-locked, where they arrive.
        event: behind the copy.
        launches: of one token, by its number in the batch; prepared once.
    """

    device: Device
    nodes: tuple[Node, ...]
    rounding: tuple[Prepared, ...]
    buffer: Buffer
    host: Pinned
    event: Event
    launches: Callable[[int], tuple[Prepared, ...]] = field(compare=False)

    def run(self, context: Context) -> None:
        """Wait for each token's logits."""
        if context.logits is None:
            return
        device, first = self.device, context.n_tokens - len(context.logits)
        for launch in self.rounding:
            device.run(launch, device.compute)
        for i, row in enumerate(context.logits):
            for launch in self.launches(first + i):
                device.run(launch, device.compute)
            device.download(self.host, self.buffer, device.compute)
            self.event.record(device.compute)
            self.event.synchronize()
            row[:] = self.host.array
