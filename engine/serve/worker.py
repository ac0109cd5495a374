"""The thread that the engine belongs to: it takes tasks from a bounded queue and answers one after the other.

What a slot has run stays in the KV cache: a task that begins like the last one runs only the rest.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hotcold.closing import Closing
from hotcold.engine.generation.generation import Engine, Generation
from hotcold.engine.generation.logprobs import TokenLogprobs
from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.generation.statistics import Statistics
from hotcold.errors import HotcoldError

MAX_WAITING = 64  # requests beside the one that is answered


class Busy(HotcoldError):
    """The queue is full."""


class Closed(HotcoldError):
    """The server is ending."""


@dataclass(frozen=True)
class Piece:
    """Text that came, maybe none, and what is told of the tokens that brought it."""

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Done:
    """An answer's end.

    Attributes:
        statistics: of its generation.
        warnings: what a user should know, one line each.
    """

    statistics: Statistics
    warnings: tuple[str, ...] = ()


Event = Piece | Done | BaseException
Work = Callable[["Worker", "Task"], None]


@dataclass(eq=False)
class Task:
    """One thing to do for a request.

    Attributes:
        work: does it, in the worker's thread.
        deliver: hears of its events there; the last one is no Piece.
        is_stopped: whether nobody waits for it any more.
    """

    work: Work
    deliver: Callable[[Any], None]
    is_stopped: bool = False
    _stop: list[Callable[[], None]] = field(default_factory=list)

    def stop(self) -> None:
        """End it after the step that runs at this moment; from any thread."""
        self.is_stopped = True
        for stop in self._stop:
            stop()

    def stops(self, stop: Callable[[], None]) -> None:
        """What `stop` has to call as well from here on."""
        self._stop.append(stop)
        if self.is_stopped:
            stop()


class Worker(Closing):
    """Runs tasks in a thread of its own, in the order in which they came.

    Attributes:
        engine: which nobody else may run meanwhile.
        ended: hears of every generation that has ended.
    """

    def __init__(
        self,
        engine: Engine,
        max_waiting: int = MAX_WAITING,
        ended: Callable[[Generation], None] = lambda generation: None,
    ) -> None:
        self.engine, self.ended = engine, ended
        self._max_waiting, self._n_places = max_waiting, 0
        self._tasks, self._changed = deque[Task](), threading.Condition()
        self._running: Task | None = None
        self._is_closed = False
        self._last: Generation | None = None
        self._thread: threading.Thread | None = None

    def take_place(self) -> None:
        """Reserve a request's place, until `free_place`.

        Raises:
            Busy: all are taken. Closed: the server is ending.
        """
        with self._changed:
            if self._is_closed:
                raise Closed("server", "ending", "it takes no further requests", "ask again later")
            most = self._max_waiting + 1
            if self._n_places >= most:
                bound = f"at most {most} at a time"
                raise Busy("requests that wait or are answered", self._n_places, bound, "ask again later")
            self._n_places += 1

    def free_place(self) -> None:
        """Give a place back."""
        with self._changed:
            self._n_places -= 1

    @property
    def n_waiting(self) -> int:
        """Tasks that have not begun."""
        return len(self._tasks)

    @property
    def n_running(self) -> int:
        """Tasks that are under way."""
        return int(self._running is not None)

    def submit(self, task: Task) -> None:
        """Let a task wait for its turn.

        Raises:
            Closed: the server is ending.
        """
        with self._changed:
            if self._is_closed:
                raise Closed("server", "ending", "it takes no further requests", "ask again later")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hotcold-serve", daemon=True)
                self._thread.start()
            self._tasks.append(task)
            self._changed.notify()

    def close(self) -> None:
        """Stop what runs and what waits, and end the thread."""
        with self._changed:
            self._is_closed = True
            for task in (*self._tasks, *filter(None, (self._running,))):
                task.stop()
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while (task := self._next()) is not None:
            try:
                if task.is_stopped:
                    raise Closed("request", "stopped", "before its turn", "ask again")
                task.work(self, task)
            except BaseException as error:  # noqa: BLE001 - one task's failure is its own
                task.deliver(error)
            finally:
                self._running = None

    def _next(self) -> Task | None:
        with self._changed:
            while not self._tasks and not self._is_closed:
                self._changed.wait()
            self._running = self._tasks.popleft() if self._tasks else None
            return self._running

    def answer(self, task: Task, ids: Sequence[int], settings: GenerationSettings) -> None:
        """Let a prompt pass, and deliver what the model goes on with."""
        generation = self.engine.generate_with(ids, settings, self._last)
        self._last = generation
        task.stops(generation.stop)
        told = 0
        try:
            for text in generation:
                task.deliver(Piece(text, tuple(generation.logprobs[told:])))
                told = len(generation.logprobs)
        finally:
            self.ended(generation)
        if len(generation.logprobs) > told:
            task.deliver(Piece("", tuple(generation.logprobs[told:])))
        warnings = (*generation.warnings, *generation.findings)
        task.deliver(Done(generation.statistics, warnings))


def answering(ids: Sequence[int], settings: GenerationSettings) -> Work:
    """The work of one answer."""
    return lambda worker, task: worker.answer(task, ids, settings)
