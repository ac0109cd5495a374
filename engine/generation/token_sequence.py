"""A prompt and the tokens chosen after it: choosing, showing, ending. What runs the model is not its concern."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.constraint import Constraint
from hotcold.engine.generation.draft import NgramDrafts, RunCosts
from hotcold.engine.generation.logprobs import TokenLogprobs, token_logprobs
from hotcold.engine.generation.sampling import Sampler
from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.generation.statistics import Statistics
from hotcold.engine.tokenizer.stop_strings import StopStrings, checked_stops
from hotcold.engine.tokenizer.tokenizer import CharacterStream, Tokenizer
from hotcold.kernels.formats import N_CANDIDATES


class TokenSequence:
    """Takes logits, one token's after the other; gives the text that can be shown.

    Attributes:
        prompt_ids, ids: tokens of the prompt, and tokens chosen so far.
        settings: in use, with the seed.
        logprobs: of each chosen token, if they were asked for.
        statistics: of which it keeps n_generated and stop_reason.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        n_ctx: int,
        statistics: Statistics,
    ) -> None:
        """Begin behind a prompt of at most n_ctx tokens; `settings` are checked, so they have a seed.

        Raises:
            SettingError: a stop string that is empty or no text, or a grammar that is none.
        """
        self._tokenizer, self._sampler = tokenizer, Sampler(settings)
        self._stops = StopStrings(checked_stops(settings.stop))
        room = n_ctx - len(prompt_ids)
        self._limit, self._limit_reason = room, "context"
        if 0 <= settings.max_tokens <= room:
            self._limit, self._limit_reason = settings.max_tokens, "length"
        self._constraint = Constraint(tokenizer, settings.grammar) if settings.grammar else None
        self._banned = sorted(tokenizer.end_ids) if settings.ignore_eos and not settings.grammar else []
        self._characters = CharacterStream()
        self._drafts = NgramDrafts(prompt_ids) if settings.draft == "ngram" else None
        self.prompt_ids, self.ids, self.settings = list(prompt_ids), list[int](), settings
        self.logprobs, self.statistics = list[TokenLogprobs](), statistics

    @property
    def n_vocab(self) -> int:
        """Of the tokenizer; a model may have more rows."""
        return self._tokenizer.n_vocab

    @property
    def has_room(self) -> bool:
        """Whether a further token may be chosen; where not, the statistics say why it ended."""
        if self.statistics.n_generated == self._limit:
            self.statistics.stop_reason = self._limit_reason
        return not self.statistics.stop_reason

    def draft(self, most: int, costs: RunCosts) -> list[int]:
        """Up to `most` tokens that may follow, where it pays to let them pass with the last one; all have room."""
        if self._drafts is None:
            return []
        return self._drafts.draft(min(most, self._limit - self.statistics.n_generated - 1), costs)

    def accept(self, logits: NDArray[np.float32]) -> str:
        """Choose a token and give the text that can be shown after it, maybe none.

        A text that follows a grammar ends where nothing can follow.

        Args:
            logits: float32 [n_vocab], finite but for those that a profile of the head left out, -infinity; the
                tokenizer's part of them counts.

        Raises:
            SettingError: all that may follow were left out.
        """
        statistics = self.statistics
        logits = logits[: self._tokenizer.n_vocab]
        allowed = logits.copy() if self._banned or self._constraint else logits
        allowed[self._banned] = -np.inf
        if self._constraint is not None and not self._constraint.forbid(allowed):
            statistics.stop_reason = "eos"
            return ""
        return self._go_on(self._sampler.sample(allowed, self.ids, self.prompt_ids), logits)

    def takes_candidates(self, n_vocab: int) -> bool:
        """Whether the likeliest `N_CANDIDATES` of n_vocab tokens are enough to choose by."""
        settings, n_out = self.settings, len(self._banned) + n_vocab - self._tokenizer.n_vocab
        n = 1 if settings.temp == 0 else settings.top_k
        needs_all = settings.penalizes or settings.grammar or settings.logprobs
        return not needs_all and 0 < n <= min(N_CANDIDATES, n_vocab) - n_out

    def accept_candidates(self, ids: NDArray[np.int32], values: NDArray[np.float32]) -> str:
        """`accept` by the likeliest tokens, where `takes_candidates`: the same token.

        Args:
            ids, values: [N_CANDIDATES] as `ref.candidates` has them.
        """
        allowed = (ids >= 0) & (ids < self._tokenizer.n_vocab) & ~np.isin(ids, self._banned)
        return self._go_on(self._sampler.sample_candidates(ids[allowed], values[allowed]))

    def _go_on(self, token: int, logits: NDArray[np.float32] | None = None) -> str:
        """Behind a token that was chosen, by these logits if they are there."""
        statistics = self.statistics
        if token in self._tokenizer.end_ids:
            statistics.stop_reason = "eos"
            return self._text(token) if self.settings.special else ""
        if self._constraint is not None:
            self._constraint.accept(token)
        self.ids.append(token)
        if self._drafts is not None:
            self._drafts.append(token)
        if self.settings.logprobs and logits is not None:
            self.logprobs.append(token_logprobs(logits, token, self.settings.logprobs))
        statistics.n_generated += 1
        text = self._text(token)
        if self._stops.found:
            statistics.stop_reason = "stop"
        return text

    def end(self) -> str:
        """Text that was held back: nothing follows it any more."""
        rest = self._stops.feed(self._characters.end())
        return rest + self._stops.end()

    def _text(self, token: int) -> str:
        """What can be shown after a token; a control piece that is not shown can end the text too."""
        tokenizer, characters = self._tokenizer, self._characters
        piece = tokenizer.piece(token, special=True)
        if self.settings.special or tokenizer.piece(token):
            return self._stops.feed(characters.feed(piece))
        return self._stops.feed(piece.decode(errors="replace"), hidden=True)


def n_alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    shorter = min(len(one), len(other))
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), shorter)
