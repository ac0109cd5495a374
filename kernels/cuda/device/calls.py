"""What was asked of a device: counted, and written down for who wants to read it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Counters:
    """What a device has done since it was opened.

    Attributes:
        h2d_calls, h2d_bytes, d2h_calls, d2h_bytes: copies up and down; the bytes up with those that kernels read from
            page-locked memory.
        launches: how often each kernel was launched, also as a part of graphs.
        graph_captures, graph_launches: how often a graph was made, and one was launched.
        graph_bytes: device memory that was no longer free when graphs had been made; the driver's, in no allocator.
        host_waits: how often the host waited for the device.
        waiting: seconds that it waited.
        stream_waits: how often a stream was told to wait for another.
        live_bytes, peak_bytes: device memory that the driver's allocator holds, and held at most.
        pinned_bytes: page-locked host memory that is allocated now.
    """

    h2d_calls: int = 0
    h2d_bytes: int = 0
    d2h_calls: int = 0
    d2h_bytes: int = 0
    launches: Counter[str] = field(default_factory=Counter)
    graph_captures: int = 0
    graph_launches: int = 0
    graph_bytes: int = 0
    host_waits: int = 0
    waiting: float = 0.0
    stream_waits: int = 0
    live_bytes: int = 0
    peak_bytes: int = 0
    pinned_bytes: int = 0

    def add_work(self, other: Counters, times: int) -> None:
        """Count another's copies and launches so many times."""
        self.h2d_calls += times * other.h2d_calls
        self.h2d_bytes += times * other.h2d_bytes
        self.d2h_calls += times * other.d2h_calls
        self.d2h_bytes += times * other.d2h_bytes
        for kernel, n in other.launches.items():
            self.launches[kernel] += times * n


@dataclass
class GraphWork:
    """What each launch of a graph does, and the launches that are still to be counted."""

    counted: Counters
    launched: int = 0


@dataclass(frozen=True)
class Call:
    """One thing that was asked of a device.

    Attributes:
        what: a kernel, "h2d", "d2h", "graph" (its parts come after it), "record", "wait" (a stream's) or "host waits".
        stream: its name.
        n_bytes: over the bus.
    """

    what: str
    stream: str
    n_bytes: int = 0
