"""How tokens are chosen, and when a text ends. Light to import."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from hotcold.engine.settings import number_within, one_of, whole_number
from hotcold.errors import SettingError

MAX_SEED = (1 << 64) - 1
MAX_TOP_K = 1 << 30
MAX_TOKENS = 1 << 30
MAX_LAST_N = 1 << 24
MAX_LOGPROBS = 1 << 20
DRAFTS = ("off", "ngram")


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen. The order is: penalties, top_k, temperature, top_p, min_p.

    Attributes:
        temp: logits are divided by it; 0 takes the most likely token.
        top_k: keep that many most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens until their probabilities add up to it; 1 keeps all.
        min_p: keep tokens at least min_p times as likely as the most likely one; 0 keeps all.
        repeat_penalty: positive logits of tokens among the last `repeat_last_n` are divided by it, negative
            ones multiplied (Keskar et al., 2019); 1 changes nothing.
        repeat_last_n: how far the penalties look back, over the prompt too; -1: all of it, 0: none.
        presence_penalty: is taken from the logits of those tokens once; 0 changes nothing.
        frequency_penalty: is taken from them as often as each occurs there; 0 changes nothing.
        seed: of the random numbers; None draws one.
    """

    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    @property
    def penalizes(self) -> bool:
        """Whether what was chosen before counts."""
        off = self.repeat_penalty == 1 and self.presence_penalty == self.frequency_penalty == 0
        return not off and self.repeat_last_n != 0

    def checked(self) -> Self:
        """The same settings, with a seed.

        Raises:
            SettingError: a value out of its bounds, named.
        """
        finite = "a finite number"
        number_within("temp", self.temp, 0, math.inf, f"{finite} of at least 0", such_as="--temp 0.8")
        whole_number("top_k", self.top_k, 0, MAX_TOP_K, such_as="--top-k 40")
        number_within("top_p", self.top_p, 0, 1, "above 0, up to 1", above=True, such_as="--top-p 0.95")
        number_within("min_p", self.min_p, 0, 1, "from 0 to 1", such_as="--min-p 0.05")
        number_within(
            "repeat_penalty",
            self.repeat_penalty,
            0,
            math.inf,
            f"{finite} above 0",
            above=True,
            such_as="--repeat-penalty 1.1",
        )
        whole_number("repeat_last_n", self.repeat_last_n, -1, MAX_LAST_N, such_as="--repeat-last-n 64")
        for name in ("presence_penalty", "frequency_penalty"):
            such_as = f"--{name.replace('_', '-')} 0.5"
            number_within(name, getattr(self, name), -math.inf, math.inf, finite, such_as=such_as)
        if self.seed is None:
            return replace(self, seed=secrets.randbits(32))
        whole_number("seed", self.seed, 0, MAX_SEED, such_as="--seed 1")
        return self

    def with_next_seed(self) -> Self:
        """Of settings with a seed: the same with the seed that follows."""
        return replace(self, seed=((self.seed or 0) + 1) % (MAX_SEED + 1))


@dataclass(frozen=True)
class GenerationSettings(SamplingSettings):
    """How a text goes on, and when it ends.

    Attributes:
        max_tokens: most tokens to choose; -1 goes on until the context is full.
        stop: strings that end the text; they are not part of it.
        ignore_eos: never choose a token that ends the text.
        parse_special: whether control pieces such as `</s>` in the prompt's text are recognised.
        special: whether control pieces that the model chooses are shown, that which ends the text too.
        logprobs: how many of the likeliest tokens are told with each token, with their log probabilities;
            0: none, and nothing of the token itself.
        grammar: that the text follows, as `constraint.of_schema` or `constraint.of_grammar` makes it; "": any text.
        draft: "ngram": where a text repeats itself several tokens pass in one run, as far as they are those that
            are chosen anyway; "off": one at a time. The text is the same.
    """

    max_tokens: int = 128
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False
    parse_special: bool = True
    special: bool = False
    logprobs: int = 0
    grammar: str = ""
    draft: str = "off"

    @property
    def needs_whole_head(self) -> str:
        """The setting that has to do with every row of the head, by name; "" for none."""
        return "draft" if self.draft != "off" else "grammar" if self.grammar else ""

    def check_some_rows(self) -> None:
        """Refuse what needs the whole head, where a token by itself computes some of its rows; SettingError."""
        if name := self.needs_whole_head:
            value = self.draft if name == "draft" else None  # no grammar: it may be long
            bound = "not with a head of which a token by itself computes some rows"
            raise SettingError(name, value, bound, "load with head_sparsity='off'")

    def checked(self) -> Self:
        """The same settings, with a seed.

        Raises:
            SettingError: a value out of its bounds, named.
        """
        whole_number("max_tokens", self.max_tokens, -1, MAX_TOKENS, such_as="-n 128")
        whole_number("logprobs", self.logprobs, 0, MAX_LOGPROBS, such_as="--logprobs 5")
        one_of("draft", self.draft, DRAFTS)
        return super().checked()
