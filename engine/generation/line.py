"""Threads that use one engine: one step at a time, and one text after the other as long as each goes on."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 1.0
"""Seconds that a text may rest before those who wait begin, which costs it a run of all its tokens."""


class Line:
    """Who uses an engine, and who waits: in the order in which they came.

    A text is a key. Whoever's steps follow each other is not disturbed by other threads; within one thread a later text
    takes the place of an earlier one at once, for nobody else could let that go on.
    """

    def __init__(self) -> None:
        self._changed, self._waiting = threading.Condition(), deque[object]()
        self._key: object = None  # whose turn it is
        self._thread, self._depth = 0, 0  # in which thread, and how many of its steps run, in each other
        self._left = 0.0  # when the last step ended, by time.monotonic

    @contextmanager
    def step(self, key: object, *, overtakes: bool = False) -> Iterator[None]:
        """Wait for the turn, and use the engine in the block.

        Args:
            overtakes: whether to wait for the step that runs alone.
        """
        me = threading.get_ident()
        with self._changed:
            if self._seconds(key, me, overtakes) or self._must_queue(key, me, overtakes):
                self._wait(key, me, overtakes)
            if not self._depth:
                self._key, self._thread = key, me
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:
                self._depth, self._left = self._depth - 1, time.monotonic()
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A step that nothing follows."""
        key = object()
        try:
            with self.step(key):
                yield
        finally:
            self.end(key)

    def advance(self, key: object, take: Callable[[], str]) -> str:
        """The next piece of a text, as a step of it; what `take` raises, as at the text's end, lets others begin."""
        try:
            with self.step(key):
                return take()
        except BaseException:
            self.end(key)
            raise

    def end(self, key: object) -> None:
        """Whoever waits may begin: no step of this text follows."""
        with self._changed:
            if self._key is key and not self._depth:
                self._key, self._thread = None, 0
                self._changed.notify_all()

    def _must_queue(self, key: object, me: int, overtakes: bool) -> bool:
        return bool(self._waiting) and not overtakes and self._key is not key and self._thread != me

    def _wait(self, key: object, me: int, overtakes: bool) -> None:
        ticket = object()
        if overtakes:
            self._waiting.appendleft(ticket)
        else:
            self._waiting.append(ticket)
        try:
            while seconds := self._seconds(key, me, overtakes) if self._waiting[0] is ticket else math.inf:
                self._changed.wait(None if seconds == math.inf else seconds)
        finally:
            self._waiting.remove(ticket)
            self._changed.notify_all()

    def _seconds(self, key: object, me: int, overtakes: bool) -> float:
        """How long to wait at least; infinite for what only another step's end can change."""
        if self._depth:
            return 0.0 if self._thread == me else math.inf
        if overtakes or self._key in (None, key) or self._thread == me:
            return 0.0
        return max(0.0, self._left + PATIENCE - time.monotonic())
