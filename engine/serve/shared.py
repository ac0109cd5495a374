"""One engine for several threads and coroutines: as many answers at a time as it has slots, the others wait."""

import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from hotcold.closing import Closing
from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.serve.answer import Answers
from hotcold.engine.serve.worker import Continuation, Event, Piece, Task, Worker

Prompt = str | bytes | Sequence[int]


class Shared(Closing):
    """An engine that anybody in this process may ask, and nobody otherwise runs meanwhile.

    Closing it, or leaving it as a context manager, stops what runs; the engine stays open.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._worker = engine, Worker(engine)

    def generate(self, prompt: Prompt, **settings: Any) -> "Pieces":
        """Text that goes on from `prompt`, in pieces; from any thread. Who stops to listen ends it.

        It begins at once, whether somebody listens yet or not.

        Args:
            settings: of `Engine.generate`.

        Raises:
            SettingError, DoesNotFitError: see `Engine.generate`, before the first piece.
            Closed: it is closed.
        """
        events = SimpleQueue[Event]()
        task = Task(self._wanted(prompt, settings), events.put)
        self._worker.submit(task)
        return Pieces(task, events)

    async def stream(self, prompt: Prompt, **settings: Any) -> AsyncIterator[str]:
        """The same for a coroutine."""
        wanted = self._wanted(prompt, settings)
        answers = Answers(self._worker, [(wanted.ids, wanted.settings)])
        try:
            async for _, piece in answers.pieces():
                if piece is not None and piece.text:
                    yield piece.text
        finally:
            answers.stop()

    def _wanted(self, prompt: Prompt, settings: dict[str, Any]) -> Continuation:
        checked = self._engine.checked_settings(GenerationSettings(**settings))
        if isinstance(prompt, str | bytes):
            ids = self._engine.prompt_ids(prompt, parse_special=checked.parse_special)
        else:
            ids = self._engine.checked_prompt(prompt)
        return Continuation(ids, checked)

    def close(self) -> None:
        """End what runs and what waits."""
        self._worker.close()


class Pieces(Iterator[str]):
    """The text of one `Shared.generate`. Dropped or closed it ends, within a step of the model's."""

    def __init__(self, task: Task, events: "SimpleQueue[Event]") -> None:
        self._events, self._is_over = events, False
        self._stop = weakref.finalize(
            self, task.stop
        )  # no generator's `finally`: one that never began has none

    def __next__(self) -> str:
        while not self._is_over:
            event = self._events.get()
            self._is_over = not isinstance(event, Piece)
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Piece) and event.text:
                return event.text
        raise StopIteration

    def close(self) -> None:
        """End it; nothing comes any more."""
        self._is_over = True
        self._stop()
