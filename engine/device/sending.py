"""What the device lacks for a prompt, on its way there: the steps between those of the run.

There are two staging buffers. While the kernels read one piece from one of them, the copy stream fills the other with
the next. Four things keep the order:

* the compute stream waits for a piece's last copy before its first kernel (`Await`),
* the copy stream waits for a piece's last kernel (`Release`) before it writes there again,
* the host waits for the copy of a part of the page-locked memory before the team fills it again (`Staging`),
* a piece is enqueued before the host waits for anything that lies behind the one before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.device.matrix import DeviceMatrix
from hotcold.engine.device.staging import Staging
from hotcold.engine.device.steps import Launches, WaitFor
from hotcold.engine.device.store import DeviceStore, rows_of_units, thresholds_of
from hotcold.engine.graph.graph import Node, weights_of
from hotcold.engine.host.steps import Context, Step, Walk
from hotcold.engine.host.stores import HostStore
from hotcold.engine.plan.plan import Ids, SentPiece, SentRows, Streaming
from hotcold.kernels.cpu.team import Team


class Sender:
    """Sends pieces, one after the other, into two buffers in turn.

    Attributes:
        staging: page-locked memory on the way.
        sent_bytes: over the bus, so far.
    """

    def __init__(self, store: DeviceStore, host: HostStore, streaming: Streaming) -> None:
        """Allocate; DoesNotFitError without page-locked memory."""
        self.store, self.host, self.pieces = store, host, streaming.pieces_of(store.card.layers)
        device = store.device
        self.device = device
        self.staging = Staging(device, streaming.buffer_bytes(store.card.layers))
        self.filled, self.read = ([device.event(), device.event()] for _ in range(2))
        self.sent_bytes = 0

    def send(self, number: int, team: Team) -> None:
        """Enqueue a piece behind the kernels that read what lies in its buffer."""
        piece = self.pieces[number]
        self.device.copy.wait(self.read[number % 2])
        for each in piece.sent:
            for n_bytes in self.staging.send(team, *self._rows(piece, each)):
                self.sent_bytes += n_bytes
        if piece.index is not None:
            self.staging.copy(piece.index, self.store.neurons(piece.layer, piece.rows))
        if piece.units is not None and piece.n_thresholds:
            least = thresholds_of(self.store.plan, piece.layer, piece.units, self.host)
            to = self.store.thresholds(piece.layer, piece.rows)
            assert to is not None  # the piece has room for them
            self.staging.copy(least, to)
        self.filled[number % 2].record(self.device.copy)

    def _rows(self, piece: SentPiece, each: SentRows) -> tuple[NDArray[np.uint8], Ids | None, DeviceMatrix]:
        """Rows of the file, which of them, and where they go."""
        cold = None
        if each.n_rows < each.weight.n_rows and piece.units is not None:
            cold = rows_of_units(piece.units, each.n_rows // piece.units.size)
        return self.host.rows(each.weight), cold, self.store.matrix(each.weight, rows=each.rows)


@dataclass(frozen=True)
class Send:
    """A piece begins its way."""

    sender: Sender
    number: int
    nodes: tuple[Node, ...] = ()

    def run(self, context: Context) -> None:
        """Fill and enqueue."""
        self.sender.send(self.number, context.team)


@dataclass(frozen=True)
class Await:
    """Kernels from here on come after a piece's copies."""

    sender: Sender
    number: int
    nodes: tuple[Node, ...] = ()

    def run(self, context: Context) -> None:
        """Let the compute stream wait."""
        device = self.sender.device
        device.compute.wait(self.sender.filled[self.number % 2])


@dataclass(frozen=True)
class Release:
    """No kernel from here on reads a piece."""

    sender: Sender
    number: int
    nodes: tuple[Node, ...] = ()

    def run(self, context: Context) -> None:
        """Record that."""
        self.sender.read[self.number % 2].record(self.sender.device.compute)


def with_sending(steps: Sequence[Step], sender: Sender) -> list[Step]:
    """The steps of a run, and what brings the pieces for them, each while the one before it is being read."""
    uses = _pieces_of(steps, sender.pieces)
    last_use = {number: i for i, number in enumerate(uses) if number is not None}
    found: list[Step] = [Send(sender, 0)]
    current, n_sent = -1, 1
    for i, (step, number) in enumerate(zip(steps, uses, strict=True)):
        # what the host does now the bus need not wait for
        if current >= 0 and isinstance(step, WaitFor | Walk):
            n_sent = _send_up_to(found, sender, n_sent, current + 1)
        if number is not None and number != current:
            n_sent, current = _send_up_to(found, sender, n_sent, number), number
            found.append(Await(sender, number))
        found.append(step)
        if number is not None and last_use[number] == i:
            found.append(Release(sender, number))
            n_sent = _send_up_to(found, sender, n_sent, number + 1)
    return found


def _send_up_to(found: list[Step], sender: Sender, n_sent: int, number: int) -> int:
    """Append the sending of all pieces up to this one; how many are sent then."""
    wanted = min(number + 1, len(sender.pieces))
    found += [Send(sender, each) for each in range(n_sent, wanted)]
    return max(n_sent, wanted)


def _pieces_of(steps: Sequence[Step], pieces: Sequence[SentPiece]) -> list[int | None]:
    """Of each step, which piece it reads, if any."""
    numbers = {
        (each.weight.name, each.weight.first_row, each.rows): number
        for number, piece in enumerate(pieces)
        for each in piece.sent
    }

    def piece_of(step: Step) -> int | None:
        if not isinstance(step, Launches):
            return None
        keys = ((w.name, w.first_row, node.rows) for node in step.nodes for w in weights_of(node))
        return next((numbers[key] for key in keys if key in numbers), None)

    return [piece_of(step) for step in steps]
