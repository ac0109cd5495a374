"""Streams and events of the emulated device: queues, and four ways to run them.

`eager` runs work when it is enqueued, as a naive mock would. `late` runs it only when somebody waits
for it, and then only what that needs: a forgotten wait reads poison or old values. `ahead` lets all streams but the
first do their work at once and the first one be late: copies that do not wait for kernels come too early. `random`
gives each stream a pace of its own.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from hotcold.errors import SettingError

POLICIES = ("eager", "late", "ahead", "random")
Work = Callable[[], None]
Enqueue = Callable[["WorkQueue"], None]
"""Adds work to a stream."""


class Streams:
    """The streams of one device, and when their work runs."""

    def __init__(self, policy: str, seed: int) -> None:
        if policy not in POLICIES:
            raise SettingError("policy of the emulated device", policy, f"one of {', '.join(POLICIES)}")
        self.policy, self.random = policy, random.Random(seed)
        self.all: list[WorkQueue] = []

    def new(self) -> WorkQueue:
        """Another stream, ordered with no other."""
        self.all.append(WorkQueue(self, self.random.choice((0.0, 0.3, 1.0))))
        return self.all[-1]

    def run_some(self) -> None:
        """Let every stream run a random part of its queue, or nothing."""
        for stream in self.random.sample(self.all, len(self.all)):
            if self.random.random() < stream.eagerness:
                stream.run_to(stream.n_run + self.random.randint(0, len(stream.queue)))

    def drop(self) -> None:
        """Forget all enqueued work, as a lost device does."""
        for stream in self.all:
            stream.n_run = stream.n_added
            stream.queue.clear()


class WorkQueue:
    """Work in order; `n_added` and `n_run` count it from the beginning."""

    def __init__(self, streams: Streams, eagerness: float) -> None:
        self.streams, self.eagerness = streams, eagerness
        self.queue: deque[Work] = deque()
        self.n_run = 0

    @property
    def n_added(self) -> int:
        """Not counted apart: a Ctrl-C between two statements would leave a piece behind for ever."""
        return self.n_run + len(self.queue)

    def enqueue(self, work: Work) -> None:
        """Add work; the policy says whether some runs now."""
        self.queue.append(work)
        policy = self.streams.policy
        if policy == "eager" or (policy == "ahead" and self is not self.streams.all[0]):
            self.run_to(self.n_added)
        elif policy == "random":
            self.streams.run_some()

    def run_to(self, count: int) -> None:
        """Run until `count` pieces of work have started; one may run other streams by waiting."""
        while self.n_run < count and self.queue:
            self.n_run += 1
            self.queue.popleft()()

    def wait(self, event: Mark) -> None:
        """Later work here runs after what the event has recorded up to now."""
        stream, count = event.stream, event.count
        if stream is not None:
            self.enqueue(lambda: stream.run_to(count))


class Mark:
    """A place in a stream; one that was never recorded is passed at once, as in CUDA.

    Attributes:
        captured: whether it was recorded last within a capture: then it is a place in a graph.
    """

    def __init__(self) -> None:
        self.stream: WorkQueue | None = None
        self.count = 0
        self.captured = False

    def record(self, stream: WorkQueue) -> None:
        """Mark the stream's end as it is now."""
        self.stream, self.count, self.captured = stream, stream.n_added, False

    def synchronize(self) -> None:
        """Run what lies before the mark."""
        if self.stream is not None:
            self.stream.run_to(self.count)
