"""What one run of a placed graph consists of, in order: walks of the CPU's team, launches, and copies.

All work of the device goes to one stream, in the order of the nodes. So a copy down, the event behind it
and the hot rows' launches are enqueued first; then the host waits for the event alone, walks the cold
rows, and enqueues the copy up and the merge behind the hot rows.

A page-locked arena is written by the host again and again. Whatever the device has still to read from it
must be over before: the wait for a copy down is also one for every copy up before it, and where the host
would go on without such a wait, `WaitFor` stands in its way.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from hotcold.engine.graph.graph import Node
from hotcold.engine.graph.placed import CPU, GPU, PlacedGraph, PlacedNode
from hotcold.engine.host.records import Record
from hotcold.kernels.cpu.team import Program
from hotcold.kernels.cuda.device.buffers import Buffer, Event, Pinned
from hotcold.kernels.cuda.device.device import Prepared


@dataclass(frozen=True)
class Walk:
    """Nodes of the CPU with their records, and the program of them all."""

    nodes: list[tuple[Node, list[Record]]]
    program: Program


@dataclass(frozen=True)
class Launches:
    """Nodes of the device, which were fused, and their launches."""

    nodes: tuple[Node, ...]
    launches: tuple[Prepared, ...]


@dataclass(frozen=True)
class CopyDown:
    """From the device's arena to the host's; `event` is recorded behind it."""

    node: Node
    host: Pinned
    buffer: Buffer
    event: Event


@dataclass(frozen=True)
class WaitFor:
    """The host waits for copies; recorded here if nothing was recorded behind them."""

    event: Event
    record: bool = False


@dataclass(frozen=True)
class CopyUp:
    """From the host's arena to the device's."""

    node: Node
    host: Pinned
    buffer: Buffer


@dataclass(frozen=True)
class Logits:
    """The head on the device, for the tokens whose logits are wanted, and the copy to the run's array.

    Attributes:
        rounding: launches for all tokens together, before the first. buffer: one token's logits.
        launches: prepares the launches of one token, by its number in the batch.
    """

    nodes: tuple[Node, ...]
    rounding: tuple[Prepared, ...]
    buffer: Buffer
    launches: Callable[[int], tuple[Prepared, ...]] = field(compare=False)


Step = Walk | Launches | CopyDown | WaitFor | CopyUp | Logits


def segments(placed: PlacedGraph) -> Iterator[tuple[str, list[PlacedNode]]]:
    """Runs of nodes of one kind, in order: "cpu", "gpu", "down", "up" or "logits" (of the device)."""
    for kind, nodes in groupby(placed.nodes, _kind):
        yield kind, list(nodes)


def _kind(p: PlacedNode) -> str:
    if p.node.attributes.get("own_array") or (p.node.op == "logits" and p.side == GPU):
        return "logits"
    if p.node.op == "copy":
        return "down" if p.side == CPU else "up"
    return p.side


def nodes_of(step: Step) -> tuple[Node, ...]:
    """The nodes of the device, or of the bus, that a step carries out."""
    if isinstance(step, Launches | Logits):
        return step.nodes
    return (step.node,) if isinstance(step, CopyDown | CopyUp) else ()
