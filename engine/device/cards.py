"""The devices of a plan together: the steps of a run over all of them, in the order of their layers.

Cards do not wait for each other. What one reads from another comes down to the host's arena, which is page-locked for
all of them; the host waits for it, and sends it up. So when a card begins, those before it have nothing under way that
reads or writes what it has.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.device import lowering as device_lowering
from hotcold.engine.device.records import DeviceLowering
from hotcold.engine.device.replay import Replays
from hotcold.engine.device.sending import with_sending
from hotcold.engine.device.side import DeviceSide
from hotcold.engine.device.steps import CopyDown, CopyUp, Launches, WaitFor, with_awaits
from hotcold.engine.device.store import DeviceStore
from hotcold.engine.graph.graph import tensors_of
from hotcold.engine.graph.pack import pack
from hotcold.engine.graph.placed import CPU, sides_of_results
from hotcold.engine.graph.segments import segments
from hotcold.engine.host.steps import Step, Walk
from hotcold.engine.host.stores import HostStore
from hotcold.engine.plan.plan import GraphPlan
from hotcold.kernels.cuda.device.buffers import Event, Stream
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.weight_table import QUANTISED


class Cards:
    """What the executor needs of its devices, one or several.

    Attributes:
        arena: the host's intermediates, page-locked for all devices.
        sides: each device's part, in the order of the layers.
    """

    def __init__(self, stores: Sequence[DeviceStore], arena_bytes: int, host: HostStore) -> None:
        """Allocate page-locked memory; DoesNotFitError leaves none behind."""
        first, *others = [store.device for store in stores]
        self.sides: list[DeviceSide] = []
        self.arena = first.pinned(arena_bytes, np.uint8, others)
        self._replays = Replays()
        try:
            for store in stores:
                self.sides.append(DeviceSide(store, self.arena, host))
        except BaseException:
            self.free_pinned()
            raise
        self._of = {side.store.card.side: side for side in self.sides}

    @property
    def devices(self) -> tuple[Device, ...]:
        """All of them."""
        return tuple(side.device for side in self.sides)

    def fill_tables(self, rope_table: NDArray[np.float32]) -> None:
        """See `DeviceSide.fill_tables`."""
        for side in self.sides:
            side.fill_tables(rope_table)

    def counts(self) -> NDArray[np.uint32]:
        """See `DeviceSide.counts`; each layer is on one card alone."""
        counts: NDArray[np.uint32] = np.add.reduce([side.counts() for side in self.sides], dtype=np.uint32)
        return counts

    def intermediate(self, side: str, offset: int, n_bytes: int) -> NDArray[np.uint8]:
        """Bytes of a card's arena, once all that is enqueued has run."""
        return self._of[side].intermediate(offset, n_bytes)

    def send_positions(self, positions: NDArray[np.integer], slots: Sequence[int]) -> None:
        """Enqueue the copies of the positions of a run's tokens, and of their slots."""
        for side in self.sides:
            side.send_positions(positions, slots)

    def steps(
        self, graph: GraphPlan, n_tokens: int, walks: Sequence[Walk], apart: bool = False
    ) -> list[Step]:
        """One run of n_tokens, at most the graph's, with the CPU's walks where they belong.

        Args:
            apart: whether each token is of another sequence.
        """
        placed, remaining = graph.placed, iter(walks)
        for name in self._of:
            placed = pack(placed, name, QUANTISED.__contains__)
        made_on = sides_of_results(placed)
        lows = {
            name: DeviceLowering(side.store, graph, n_tokens, placed, self.arena, apart)
            for name, side in self._of.items()
        }
        steps: list[Step] = []
        for kind, nodes in segments(placed):
            if kind == CPU:
                steps += self._waits(steps)
                steps.append(next(remaining))
            elif kind in self._of:
                steps += device_lowering.lower([p.node for p in nodes], lows[kind])
            elif kind == "logits":
                name = nodes[0].side
                steps.append(self._of[name].logits_of(lows[name], nodes))
            else:
                for p in nodes:
                    side = self._of[p.side if p.side != CPU else made_on[tensors_of(p.node)[0].name]]
                    if p.side != CPU:
                        steps += self._waits(steps, side.device)
                    steps.append(side.copy_of(p, graph, n_tokens))
        return with_awaits(steps)

    def steps_with_sending(self, graph: GraphPlan, n_tokens: int, walks: Sequence[Walk]) -> list[Step]:
        """A run whose cold rows are sent to the devices."""
        steps = self.steps(graph, n_tokens, walks)
        for side in self.sides:
            if side.sender is not None and side.sender.pieces:
                steps = with_sending(steps, side.sender)
        return steps

    def replayed(self, steps: Sequence[Step], n_tokens: int) -> Sequence[Step]:
        """A decode step's steps, as graphs where the devices are to have them."""
        has_graphs = any(device.has_graphs for device in self.devices)
        return self._replays.of(steps, n_tokens) if has_graphs else steps

    def drop_graphs(self) -> None:
        """Give back what is captured on devices that turned out, in a run that is over, to have no use for it."""
        for side in self.sides:
            if not side.device.has_graphs:
                self._replays.drop(side.device)

    def _waits(self, before: list[Step], but: Device | None = None) -> Iterator[WaitFor]:
        """The waits that are due before the host goes on: for copies down, and for what reads its arena behind them.

        Args:
            but: the device that goes on itself.
        """
        done, seen = [] if but is None else [but], list[Event | Stream]()
        for step in reversed(before):
            if isinstance(step, Walk):
                return
            if not isinstance(step, WaitFor | CopyDown | CopyUp | Launches) or step.device in done:
                continue
            if isinstance(step, WaitFor | CopyDown):  # it comes after all copies up and kernels before it
                done.append(step.device)
            if isinstance(step, WaitFor) or (isinstance(step, Launches) and not step.reads_host):
                continue
            place = step.device.compute if isinstance(step, Launches) else step.event
            if place not in seen:
                seen.append(place)
                yield WaitFor(step.device, place)

    def bus_speed(self) -> float:
        """Bytes a second to the slowest device, measured between two runs."""
        return min(side.bus_speed() for side in self.sides)

    def settle(self) -> None:
        """Wait until nothing is under way, on the others too where one card fails: all read the host's arena."""
        with ExitStack() as waits:
            for side in reversed(self.sides):
                waits.callback(side.settle)

    def free_pinned(self) -> None:
        """Give page-locked memory back."""
        for side in self.sides:
            side.free_pinned()
        self.arena.free()
