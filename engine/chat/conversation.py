"""A conversation with a model: its turns, the prompt they make, and what happens when they no longer fit."""

import bisect
from collections.abc import Callable, Iterator
from typing import Any

from hotcold.engine.chat.prompt import ChatPrompt
from hotcold.engine.chat.template import ChatTemplate, Message, load_template
from hotcold.engine.generate.generation import Engine, Generation
from hotcold.engine.generate.settings import GenerationSettings
from hotcold.engine.text.stop_strings import StopStrings, checked_stops


class Chat:
    """Questions and answers. Each prompt holds the whole conversation; only what is new in it runs.

    Attributes:
        messages: the turns so far, without the system's: a question, its answer, and so on.
        last: the last answer's generation, with its statistics.
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate | None = None,
        *,
        system: str = "",
        max_tokens: int = -1,
        notify: Callable[[str], None] = lambda line: None,
        seed: int | None = None,
        **generating: Any,
    ) -> None:
        """Start with no turns.

        Args:
            template: how turns become text; None takes the model's own.
            system: what the model is told in front of all turns; "" for nothing.
            max_tokens: most tokens of an answer; -1: until the model ends it, or the context is full.
            notify: hears a line when turns are dropped or an answer is cut.
            seed: of the first answer; each further one counts one up.
            generating: settings of `Engine.generate`.

        Raises:
            FileError: a template that is missing or does not work.
            SettingError: a setting out of its bounds.
        """
        self._engine, self._notify = engine, notify
        template = template or load_template(engine.file, engine.tokenizer)
        self._prompt = ChatPrompt(engine.tokenizer, template)
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self._settings = GenerationSettings(max_tokens=max_tokens, seed=seed, **generating).checked()
        self.messages: list[Message] = []
        self.last: Generation | None = None
        self._stopped = False
        # a bad template or setting is to show before the first question
        self._generation(self._ids([self._question("")]))

    def ask(self, text: str) -> Iterator[str]:
        """The answer, piece by piece; question and answer become part of the conversation.

        Raises:
            DoesNotFitError: a question that does not fit the context on its own.
            FileError: a template that refuses the turns.
        """
        self._engine.check_length(text)
        self._stopped = False
        question = self._question(text)
        ids, n_dropped = self._fitting(question)
        self.last = self._generation(ids, self.last)
        self._drop(n_dropped)
        if self._stopped:
            self.last.stop()
        self._settings = self._settings.with_next_seed()
        pieces: list[str] = []
        try:
            for piece in self.last:
                pieces.append(piece)
                yield piece
        finally:
            answer = self._without_marks(self.last) if self._settings.special else "".join(pieces)
            self.messages += [question, {"role": "assistant", "content": answer}]
            self._prompt.remember(self.last, answer)
        if self.last.statistics.stop_reason == "context":
            self._notify(f"the context of {self._engine.n_ctx} is full, the answer ends here; -c sets more")

    def _without_marks(self, answered: Generation) -> str:
        """An answer as it is without the control pieces that were shown in it."""
        pieces = b"".join(self._engine.tokenizer.piece(token) for token in answered.ids)
        stops = StopStrings(checked_stops(self._settings.stop))
        return stops.feed(pieces.decode(errors="replace")) + stops.end()

    def stop(self) -> None:
        """End the answer that is being given, or made ready."""
        self._stopped = True
        if self.last is not None:
            self.last.stop()

    def clear(self) -> None:
        """Forget all turns."""
        self.messages.clear()

    @staticmethod
    def _question(text: str) -> Message:
        return {"role": "user", "content": text}

    def _ids(self, turns: list[Message]) -> list[int]:
        return self._prompt.ids([*self._system, *turns])

    def _generation(self, ids: list[int], after: Generation | None = None) -> Generation:
        return self._engine.generate_with(ids, self._settings, after)

    def _fitting(self, question: Message) -> tuple[list[int], int]:
        """The next prompt, and how many turns it leaves out: the oldest, if no quarter of the context is free.

        Half of the context is kept free then, so that not every further question has to drop some and
        run the rest again.
        """
        n_ctx, turns = self._engine.n_ctx, self.messages
        ids = self._ids([*turns, question])
        if not turns or len(ids) <= n_ctx - n_ctx // 4:
            return ids, 0

        def fits(n_dropped: int) -> bool:
            return len(self._ids([*turns[2 * n_dropped :], question])) <= n_ctx // 2

        n_dropped = 1 + bisect.bisect_left(range(1, len(turns) // 2), True, key=fits)
        return self._ids([*turns[2 * n_dropped :], question]), n_dropped

    def _drop(self, n_dropped: int) -> None:
        if not n_dropped:
            return
        n_turns, n_ctx = len(self.messages) // 2, self._engine.n_ctx
        del self.messages[: 2 * n_dropped]
        self._notify(f"the context of {n_ctx} is full: the oldest {n_dropped} of {n_turns} turns are dropped")
