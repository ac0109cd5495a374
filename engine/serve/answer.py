"""Tasks of the worker as a coroutine hears them: their events as they come, and their end when nobody waits."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.serve.worker import Continuation, Done, Piece, Task, Wanted, Worker


class Post:
    """Takes events from the worker's thread into a loop's: all of a round at once, for each wakes the loop.

    It keeps no loop alive.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._events = ref(loop), deque[tuple[Callable[[Any], None], Any]]()
        self._is_called = False

    def put(self, hear: Callable[[Any], None], event: Any) -> None:
        """Have `hear` called in the loop after the next `wake`; from any thread."""
        self._events.append((hear, event))

    def wake(self) -> None:
        """Have everything given out that was put; from any thread."""
        if not self._is_called and (loop := self._loop()) is not None:
            self._is_called = True
            with suppress(RuntimeError):  # the loop may have ended
                loop.call_soon_threadsafe(self._give_out)

    def _give_out(self) -> None:
        self._is_called = False  # before: what is put from here on is woken for again
        while self._events:
            hear, event = self._events.popleft()
            hear(event)


_posts: WeakKeyDictionary[asyncio.AbstractEventLoop, Post] = WeakKeyDictionary()


def post_of(loop: asyncio.AbstractEventLoop) -> Post:
    """The one of a loop."""
    if loop not in _posts:
        _posts[loop] = Post(loop)
    return _posts[loop]


class Heard:
    """The events of some tasks, for one coroutine."""

    def __init__(self, worker: Worker, some: Sequence[Wanted]) -> None:
        """Let them wait for their turns.

        Raises:
            Closed: the server is ending.
        """
        self._events, self._tasks = asyncio.Queue[tuple[int, Any]](), list[Task]()
        post = post_of(asyncio.get_running_loop())
        try:
            for i, wanted in enumerate(some):
                deliver = partial(post.put, partial(self._hear, i))
                worker.submit(task := Task(wanted, deliver, post.wake))
                self._tasks.append(task)
        except BaseException:
            self.stop()
            raise

    def _hear(self, i: int, event: Any) -> None:
        self._events.put_nowait((i, event))

    def stop(self, *which: int) -> None:
        """End them, or those of these numbers, after the step that runs at this moment."""
        for i in which or range(len(self._tasks)):
            self._tasks[i].stop()

    async def next(self) -> tuple[int, Any]:
        """The next event, behind its task's number.

        Raises:
            HotcoldError: the task failed.
        """
        i, event = await self._events.get()
        if isinstance(event, BaseException):
            raise event
        return i, event


class Answers(Heard):
    """Answers to some prompts.

    Attributes:
        ends: of each, once it has come.
    """

    def __init__(self, worker: Worker, some: Sequence[tuple[Sequence[int], GenerationSettings]]) -> None:
        """Let them wait for their turns: ids of each prompt, and how it goes on."""
        super().__init__(worker, [Continuation(ids, settings) for ids, settings in some])
        self.ends: list[Done | None] = [None] * len(some)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece | None]]:
        """What comes, with the answer's number, until all have ended; None at the end of each.

        Raises:
            HotcoldError: the engine failed; who listens no longer has to `stop` what goes on.
        """
        while None in self.ends:
            i, event = await self.next()
            if isinstance(event, Done):
                self.ends[i] = event
            yield i, event if isinstance(event, Piece) else None
