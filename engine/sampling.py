"""Choosing the next token from its logits."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hotcold.errors import SettingError

REPEAT_LAST_N = 64  # tokens that the repeat penalty looks back on
MAX_SEED = (1 << 64) - 1


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen. The order is: penalty, top_k, temperature, top_p, min_p.

    Attributes:
        temp: logits are divided by it; 0 takes the most likely token.
        top_k: keep that many most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens until their probabilities add up to it; 1 keeps all.
        min_p: keep tokens at least min_p times as likely as the most likely one; 0 keeps all.
        repeat_penalty: positive logits of the last 64 tokens are divided by it, negative ones
            multiplied (Keskar et al., 2019); 1 changes nothing.
        seed: of the random numbers; None draws one.
    """

    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.1
    seed: int | None = None

    def checked(self) -> "SamplingSettings":
        """The same settings, with a seed.

        Raises:
            SettingError: a value out of its bounds, named.
        """
        _number("temp", self.temp, 0, math.inf, "a finite number of at least 0")
        _whole("top_k", self.top_k, "a whole number of at least 0")
        _number("top_p", self.top_p, 0, 1, "above 0, up to 1", above=True)
        _number("min_p", self.min_p, 0, 1, "from 0 to 1")
        _number("repeat_penalty", self.repeat_penalty, 0, math.inf, "a finite number above 0", above=True)
        if self.seed is None:
            return replace(self, seed=secrets.randbits(32))
        _whole("seed", self.seed, f"a whole number from 0 to {MAX_SEED}", MAX_SEED)
        return self


def _number(name: str, value: object, low: float, high: float, bound: str, above: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (good and low <= value <= high) or (above and value == low):  # type: ignore[operator]
        raise SettingError(name, value, bound)


def _whole(name: str, value: object, bound: str, largest: int | None = None) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not good or (largest is not None and value > largest):  # type: ignore[operator]
        raise SettingError(name, value, bound)


class Sampler:
    """Draws tokens with the random numbers of one seed (NumPy's PCG64).

    Attributes:
        settings: checked, so its seed is the one in use.
    """

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings.checked()
        self._random = np.random.Generator(np.random.PCG64(self.settings.seed))

    def sample(self, logits: NDArray[np.float32], recent: Sequence[int] = ()) -> int:
        """The next token.

        Args:
            logits: float32 [n_vocab], unchanged. recent: ids so far, of which the last 64 are penalised.
        """
        settings = self.settings
        values = penalized(logits, recent[-REPEAT_LAST_N:], settings.repeat_penalty)
        if settings.temp == 0:
            return int(np.argmax(values))
        ids = most_likely(values, settings.top_k)
        p = softmax(values[ids], settings.temp)
        p = p[: min(kept_by_top_p(p, settings.top_p), kept_by_min_p(p, settings.min_p))]
        cumulative = np.cumsum(p)
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(ids[min(int(drawn), p.size - 1)])


def penalized(logits: NDArray[np.float32], recent: Sequence[int], penalty: float) -> NDArray[np.float64]:
    """A float64 copy of `logits`, those of `recent` tokens made less likely (each once)."""
    values = logits.astype(np.float64)
    if penalty != 1 and len(recent):
        ids = np.unique(np.asarray(recent))
        values[ids] = np.where(values[ids] > 0, values[ids] / penalty, values[ids] * penalty)
    return values


def most_likely(values: NDArray[np.float64], top_k: int) -> NDArray[np.int64]:
    """Ids by falling value, `top_k` of them (0: all); equal values by rising id."""
    n = values.size
    if 0 < top_k < n:
        smallest = np.partition(values, n - top_k)[n - top_k]
        candidates = np.flatnonzero(values >= smallest)
    else:
        candidates = np.arange(n)
    order = np.argsort(-values[candidates], kind="stable")
    return candidates[order][: top_k or n]


def softmax(values: NDArray[np.float64], temp: float) -> NDArray[np.float64]:
    """Probabilities of values that fall from the first one on."""
    weights = np.exp((values - values[0]) / temp)
    return np.asarray(weights / weights.sum())


def kept_by_top_p(p: NDArray[np.float64], top_p: float) -> int:
    """How many of the falling probabilities `p` add up to top_p, at least 1."""
    return p.size if top_p == 1 else min(p.size, int(np.searchsorted(np.cumsum(p), top_p)) + 1)


def kept_by_min_p(p: NDArray[np.float64], min_p: float) -> int:
    """How many of the falling probabilities `p` are at least min_p times the first one."""
    return int(np.count_nonzero(p >= min_p * p[0]))
