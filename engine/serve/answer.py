"""One task of the worker as a coroutine hears it: its events as they come, and its end when nobody waits."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.serve.worker import Continuation, Done, Event, Piece, Task, Wanted, Worker


class Heard:
    """The events of a task, for one coroutine."""

    def __init__(self, worker: Worker, wanted: Wanted) -> None:
        """Let it wait for its turn.

        Raises:
            Closed: the server is ending.
        """
        self._events = asyncio.Queue[Any]()
        loop = asyncio.get_running_loop()

        def deliver(event: Any) -> None:
            with suppress(RuntimeError):  # the loop may have ended
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._task = Task(wanted, deliver)
        worker.submit(self._task)

    def stop(self) -> None:
        """End it after the step that runs at this moment."""
        self._task.stop()

    async def next(self) -> Any:
        """The next event.

        Raises:
            HotcoldError: the task failed.
        """
        event = await self._events.get()
        if isinstance(event, BaseException):
            raise event
        return event


class Answer(Heard):
    """One answer to one prompt.

    Attributes:
        done: its end, once it has come.
    """

    def __init__(self, worker: Worker, ids: Sequence[int], settings: GenerationSettings) -> None:
        """Let it wait for its turn."""
        super().__init__(worker, Continuation(ids, settings))
        self.done: Done | None = None

    async def pieces(self) -> AsyncIterator[Piece]:
        """What comes, until the end.

        Raises:
            HotcoldError: the engine failed.
        """
        while self.done is None:
            event: Event = await self.next()
            if isinstance(event, Done):
                self.done = event
            elif isinstance(event, Piece):
                yield event


async def merged(answers: Sequence[Answer]) -> AsyncIterator[tuple[int, Piece | None]]:
    """Pieces of several answers as they come, with the answer's number; None at its end.

    Raises:
        HotcoldError: the engine failed; all answers are stopped then, as when nobody listens on.
    """
    running = {i: aiter(answer.pieces()) for i, answer in enumerate(answers)}
    coming = {asyncio.ensure_future(anext(pieces, None)): i for i, pieces in running.items()}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=coming.__getitem__):
                i, piece = coming.pop(task), task.result()
                if piece is not None:
                    coming[asyncio.ensure_future(anext(running[i], None))] = i
                yield i, piece
    finally:
        for answer in answers:
            answer.stop()
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
