"""A request's reply: its answers, whole or in chunks."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hotcold.engine.chat.channels import Channels
from hotcold.engine.chat.thoughts import Parted
from hotcold.engine.generation.logprobs import TokenLogprobs
from hotcold.engine.generation.statistics import Statistics
from hotcold.engine.serve.answer import Answers
from hotcold.engine.serve.asked import Asked
from hotcold.engine.serve.forms import Form, finish_reason, usage
from hotcold.engine.serve.prompts import Prompt
from hotcold.engine.serve.tools import Calls
from hotcold.engine.serve.worker import Done, Piece, Worker


@dataclass
class AnswerSoFar:
    """What has come of one answer so far.

    Attributes:
        parts: its text, by the name of the message's field.
        told: of the tokens whose probabilities nobody was told yet.
        n_told: characters of the tokens before.
    """

    parted: Parted | None
    channels: Channels | None = None
    calls: Calls | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    told: list[TokenLogprobs] = field(default_factory=list)
    n_told: int = 0

    def feed(self, text: str) -> dict[str, Any]:
        """The parts that a piece of text brings."""
        if self.channels is not None:
            text = self.channels.feed(text)
        return self._joined([(False, text)] if self.parted is None else self.parted.feed(text))

    def end(self) -> dict[str, Any]:
        """The parts that were held back."""
        rest = [] if self.channels is None or self.parted is None else self.parted.feed(self.channels.end())
        new = self._joined(rest if self.parted is None else [*rest, *self.parted.end()])
        for item in () if self.calls is None else self.calls.end():
            self._add(new, "content", item)
        return new

    def finish(self, statistics: Statistics) -> str:
        """Why the answer ended."""
        reason = finish_reason(statistics)
        by_calls = self.is_over or (reason == "stop" and "tool_calls" in self.parts)
        return "tool_calls" if by_calls else reason

    @property
    def is_over(self) -> bool:
        """Whether all that is wanted has come, whatever the model goes on with."""
        return self.calls is not None and self.calls.is_over

    def message(self) -> dict[str, Any]:
        """All parts, as a whole message has them."""
        calls = self.parts.get("tool_calls")
        if calls is None:
            return self.parts
        whole = [{name: part for name, part in call.items() if name != "index"} for call in calls]
        return {"content": None, **self.parts, "tool_calls": whole}

    def _joined(self, parts: Sequence[tuple[bool, str]]) -> dict[str, Any]:
        new = dict[str, Any]()
        for is_thought, text in () if self.is_over else parts:
            if is_thought or self.calls is None:
                self._add(new, "reasoning_content" if is_thought else "content", text)
            else:
                for item in self.calls.feed(text):
                    self._add(new, "content", item)
        return new

    def _add(self, new: dict[str, Any], name: str, item: str | dict[str, Any]) -> None:
        """Put text, or a call, into the new parts and into all of them."""
        for parts in (new, self.parts):
            if isinstance(item, dict):
                parts["tool_calls"] = [*parts.get("tool_calls", []), item]
            elif item:
                parts[name] = parts.get(name, "") + item


class Reply:
    """The answers to a request's prompts, n to each, which begin to run when they are asked for.

    Attributes:
        warnings: what has shown once all have ended, one line each.
    """

    def __init__(
        self,
        worker: Worker,
        asked: Asked,
        prompts: Sequence[Prompt],
        form: Form,
        *,
        echo: bool = False,
        control: Sequence[str] | None = None,
        calls: Callable[[], Calls] | None = None,
    ) -> None:
        """Take what is asked for.

        Args:
            echo: each answer begins with its prompt.
            control: texts of control pieces, of a model that answers in channels.
            calls: what finds the calls of an answer; None where the model may call nothing.
        """
        self._worker, self._asked, self._form = worker, asked, form
        self._prompts = [prompt for prompt in prompts for _ in range(asked.n)]
        self._n_prompts, self._echo = len(prompts), echo
        self._control, self._calls = control, calls
        self.warnings: tuple[str, ...] = ()

    def _begin(self) -> tuple[Answers, list[AnswerSoFar]]:
        settings = self._asked.each(self._n_prompts)
        ids = [prompt.ids for prompt in self._prompts]
        answers = Answers(self._worker, list(zip(ids, settings, strict=True)))
        # what follows a grammar has no place for a thought
        parts = self._form.is_chat and not self._asked.settings.grammar
        control = self._control
        taken = [
            AnswerSoFar(
                Parted(prompt.opened) if parts else None,
                None if control is None else Channels(control),
                None if self._calls is None else self._calls(),
            )
            for prompt in self._prompts
        ]
        return answers, taken

    async def whole(self) -> dict[str, Any]:
        """One object, when all answers have ended.

        Raises:
            HotcoldError: the engine failed.
        """
        answers, taken = self._begin()
        told: list[list[TokenLogprobs]] = [[] for _ in taken]
        try:
            async for i, piece in _wanted(answers, taken):
                if piece is None:
                    taken[i].end()
                else:
                    taken[i].feed(piece.text)
                    told[i] += piece.logprobs
        finally:
            answers.stop()
        statistics = ended(answers.ends)
        found = (warning for end in answers.ends if end for warning in end.warnings)
        self.warnings = tuple(dict.fromkeys(found))
        choices = []
        for i, each in enumerate(taken):
            if self._echo:
                each.parts["content"] = self._prompts[i].text + each.parts.get("content", "")
            n_before = len(self._prompts[i].text) if self._echo else 0
            finish = each.finish(statistics[i])
            choices.append(
                self._form.choice(i, each.message(), told[i], finish, chunk=False, n_before=n_before)
            )
        counts = usage(statistics, self._n_prompts)
        return {**self._form.head(chunk=False), "choices": choices, "usage": counts}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Objects as the answers come.

        Raises:
            HotcoldError: the engine failed.
        """
        answers, taken = self._begin()

        def choice(i: int, parts: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            each = taken[i]
            told, each.told = each.told, []
            made = self._form.choice(i, parts, told, finish, chunk=True, n_before=each.n_told)
            each.n_told += sum(map(len, (made["logprobs"] or {}).get("tokens", ())))
            return self._chunk(made)

        try:
            for i, prompt in enumerate(self._prompts):
                if self._form.is_chat:
                    yield choice(i, {"role": "assistant", "content": ""})
                elif self._echo:
                    taken[i].n_told = len(prompt.text)
                    yield choice(i, {"content": prompt.text})
            async for i, piece in _wanted(answers, taken):
                if piece is None:
                    for made in _last(i, taken[i], answers.ends[i], choice):
                        yield made
                else:
                    taken[i].told += piece.logprobs
                    if parts := taken[i].feed(piece.text):
                        yield choice(i, parts)
        finally:
            answers.stop()
        if self._asked.include_usage:
            yield self._chunk() | {"usage": usage(ended(answers.ends), self._n_prompts)}

    def _chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        counts = {"usage": None} if self._asked.include_usage else {}
        return {**self._form.head(chunk=True), "choices": [*choices], **counts}


async def _wanted(answers: Answers, taken: Sequence[AnswerSoFar]) -> AsyncIterator[tuple[int, Piece | None]]:
    """What comes, see `Answers.pieces`; an answer that is over by what it has brought is stopped."""
    async for i, piece in answers.pieces():
        if piece is None or not taken[i].is_over:
            yield i, piece
        if taken[i].is_over:
            answers.stop(i)


def _last(
    i: int, taken: AnswerSoFar, end: Done | None, choice: Callable[..., dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """What an answer's end brings: text that was held back, and the reason."""
    if parts := taken.end():
        yield choice(i, parts)
    yield choice(i, {}, taken.finish(ended([end])[0]))


def ended(ends: Sequence[Done | None]) -> list[Statistics]:
    """What each answer has done; all of them have ended."""
    return [end.statistics for end in ends if end is not None]
