"""A conversation with a model: its turns, the prompt they make, and what happens when they no longer fit."""

import bisect
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from hotcold.engine.chat.channels import as_thoughts, writes_channels
from hotcold.engine.chat.prompt import ChatPrompt, folded, system_message
from hotcold.engine.chat.template import ChatTemplate, Message, load_template
from hotcold.engine.chat.thoughts import without_thoughts
from hotcold.engine.generation.generation import ROLLED_OVER, Engine, Generation
from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.tokenizer.stop_strings import StopStrings, checked_stops


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
        hide_thoughts: bool = False,
        seed: int | None = None,
        **generating: Any,
    ) -> None:
        """Start with no turns.

        Args:
            template: how turns become text; None takes the model's own.
            system: what the model is told in front of all turns; "" for nothing.
            max_tokens: most tokens of an answer; -1: until the model ends it, or the context is full.
            notify: hears a line when turns are dropped, an answer is cut, or the template has no system role.
            hide_thoughts: whether what stands between marks such as `<think>` and `</think>` is left out.
            seed: of the first answer; each further one counts one up.
            generating: settings of `Engine.generate`.

        Raises:
            FileError: a template that is missing or does not work.
            SettingError: a setting out of its bounds.
        """
        self._engine, self._notify = engine, notify
        template = template or load_template(engine.file, engine.tokenizer)
        self._prompt = ChatPrompt(engine.tokenizer, template)
        self._system, self._hides = system, hide_thoughts
        self._folds = bool(system) and not self._prompt.keeps_system(system)
        if self._folds:
            notify(
                "the chat template has no system role: the system's text goes in front of the first question"
            )
        settings = GenerationSettings(max_tokens=max_tokens, seed=seed, **generating).checked()
        self._shows_marks = settings.special
        self._has_channels = writes_channels(template.source) and not settings.special
        self._settings = replace(settings, special=True) if self._has_channels else settings
        self.messages: list[Message] = []
        self.last: Generation | None = None
        self._stopped = False
        # a bad template or setting is to show before the first question, of which some templates make no token
        if ids := self._ids([self._question("")]):
            self._generation(ids)

    def ask(self, text: str) -> Iterator[str]:
        """The answer, piece by piece; question and answer become part of the conversation.

        A mark such as `<think>` that the template has written in front of it comes first. Of an answer in channels
        (gpt-oss's) all but the final one stands between `<think>` and `</think>`.

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
        opened = self._prompt.opened
        pieces = self._answer(question, self.last, opened)
        yield from without_thoughts(pieces, opened) if self._hides else chain(filter(None, [opened]), pieces)
        if ROLLED_OVER in self.last.warnings:
            self._notify(ROLLED_OVER)
        if self.last.statistics.stop_reason == "context":
            self._notify(f"the context of {self._engine.n_ctx} is full, the answer ends here; -c sets more")

    def _answer(self, question: Message, generation: Generation, opened: str) -> Iterator[str]:
        """The text of a generation, which becomes a turn whatever ends it; of one in channels the final one."""
        pieces: list[str] = []
        try:
            control = self._engine.tokenizer.special_texts() if self._has_channels else []
            for piece in as_thoughts(generation, control) if self._has_channels else generation:
                pieces.append(piece)
                yield piece
        finally:
            answer = "".join(without_thoughts(pieces) if self._has_channels else pieces)
            answer = self._without_marks(generation) if self._shows_marks else answer
            self.messages += [question, {"role": "assistant", "content": opened + answer}]
            self._prompt.remember(generation, answer)

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
        """Of the prompt; turns begin with a question."""
        messages = [*system_message(self._system), *turns]
        return self._prompt.ids(folded(messages) if self._folds else messages)

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
