"""Graphs of the emulated device: what is written down while one is captured, and what CUDA demands of it.

A capture begins in one stream. Another one belongs to it from where it waits for an event that was recorded in it (a
fork); before the capture ends the first one has to wait for an event behind all that the other has (a join). A graph is
not in these streams when it is launched: the first one's work goes to the stream of the launch, and each other's to a
queue of the graph's own, which nothing orders but the events in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hotcold.kernels.cuda.device.driver import CaptureError
from hotcold.kernels.cuda.emulator.streams import Enqueue, Mark, Streams, WorkQueue


@dataclass
class Launched:
    """One launch of a graph: the queue of each stream of the capture, and what its events are this time."""

    queues: dict[WorkQueue, WorkQueue]
    marks: dict[Mark, Mark] = field(default_factory=dict)

    def record(self, event: Mark, stream: WorkQueue) -> None:
        """An event of the graph, in this launch alone."""
        self.marks[event] = Mark()
        self.marks[event].record(self.queues[stream])


Piece = Callable[[Launched], None]


@dataclass(frozen=True)
class Graph:
    """What was captured, in its order.

    Attributes:
        origin: the stream in which the capture began.
        branches: a queue for each other stream.
    """

    pieces: tuple[Piece, ...]
    origin: WorkQueue
    branches: dict[WorkQueue, WorkQueue]

    def launch(self, stream: WorkQueue) -> None:
        """Enqueue all of it."""
        launched = Launched({self.origin: stream, **self.branches})
        for piece in self.pieces:
            piece(launched)


class Capture:
    """A graph in the making.

    Attributes:
        pieces: so far.
        done: by stream, how many pieces of each stream come before its next one.
        seen: by event, the same of what comes before that.
    """

    def __init__(self, origin: WorkQueue) -> None:
        self.origin = origin
        self.pieces: list[Piece] = []
        self.done: dict[WorkQueue, Counter[WorkQueue]] = {origin: Counter()}
        self.seen: dict[Mark, Counter[WorkQueue]] = {}

    def add(self, stream: WorkQueue, enqueue: Enqueue) -> None:
        """Work of a stream."""
        self._append(stream, lambda launched: enqueue(launched.queues[stream]))

    def record(self, event: Mark, stream: WorkQueue) -> None:
        """An event that orders the graph's streams."""
        event.captured, self.seen[event] = True, self.done[stream].copy()
        self.pieces.append(lambda launched: launched.record(event, stream))

    def wait(self, stream: WorkQueue, event: Mark) -> None:
        """A stream waits for such an event, and belongs to the capture from here on if it did not before."""
        if event not in self.seen:
            raise CaptureError(
                "capture",
                "a wait for an event from outside",
                "CUDA calls it cudaErrorStreamCaptureIsolation",
                "make the event an external one",
            )
        self.done.setdefault(stream, Counter())
        self.done[stream] |= self.seen[event]
        self._append(stream, lambda launched: launched.queues[stream].wait(launched.marks[event]))

    def record_external(self, event: Mark, stream: WorkQueue) -> None:
        """An event that each launch records, for those outside."""
        self._append(stream, lambda launched: event.record(launched.queues[stream]))

    def wait_external(self, stream: WorkQueue, event: Mark) -> None:
        """A wait, at each launch, for what an event has recorded outside."""
        self._append(stream, lambda launched: launched.queues[stream].wait(event))

    def _append(self, stream: WorkQueue, piece: Piece) -> None:
        self.done[stream][stream] += 1
        self.pieces.append(piece)

    def end(self, stream: WorkQueue, streams: Streams) -> Graph:
        """The graph."""
        if stream is not self.origin:
            raise CaptureError("capture", "ended", "in another stream than it was begun in")
        joined = self.done[self.origin]
        others = [each for each in self.done if each is not self.origin]
        unjoined = sum(joined[each] < self.done[each][each] for each in others)
        if unjoined:
            raise CaptureError(
                "capture",
                f"{unjoined} stream not joined",
                "the stream it began in does not wait for all of their work (cudaErrorStreamCaptureUnjoined)",
                "let it follow them before the end",
            )
        return Graph(tuple(self.pieces), self.origin, {each: streams.new() for each in others})
