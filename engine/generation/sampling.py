"""Choosing the next token from its logits."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.settings import SamplingSettings
from hotcold.errors import SettingError

LARGEST = float(np.finfo(np.float64).max)


class Sampler:
    """Draws tokens with the random numbers of one seed (NumPy's PCG64).

    Attributes:
        settings: checked, so its seed is the one in use.
    """

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings.checked()
        self._random = np.random.Generator(np.random.PCG64(self.settings.seed))

    def sample(
        self, logits: NDArray[np.float32], ids: Sequence[int] = (), prompt_ids: Sequence[int] = ()
    ) -> int:
        """The next token.

        Args:
            logits: float32 [n_vocab], unchanged; -infinity cannot be chosen. ids: chosen so far. prompt_ids:
                in front of them.

        Raises:
            SettingError: none can be chosen.
        """
        settings = self.settings
        values: NDArray[np.floating] = logits
        if settings.penalizes:
            values = penalized = logits.astype(np.float64)
            penalize(penalized, last_ids(prompt_ids, ids, settings.repeat_last_n), settings)
        if settings.temp == 0:
            token = int(np.argmax(values))
            _check_any(values[token])
            return token
        likely = most_likely(values, settings.top_k)
        return self._draw(likely, values[likely])

    def sample_candidates(self, ids: NDArray[np.integer], values: NDArray[np.float32]) -> int:
        """The next token by the likeliest ones, at least top_k of them, in the order of `most_likely`.

        Args:
            ids: [n]. values: their logits.

        Raises:
            SettingError: none can be chosen.
        """
        k = self.settings.top_k
        if self.settings.temp:
            return self._draw(ids[:k], values[:k])
        _check_any(values[0])
        return int(ids[0])

    def _draw(self, likely: NDArray[np.integer], values: NDArray[np.floating]) -> int:
        """One of those that top_k leaves, by falling value."""
        settings = self.settings
        _check_any(values[0])
        p = softmax(values.astype(np.float64), settings.temp)
        p = p[: min(kept_by_top_p(p, settings.top_p), kept_by_min_p(p, settings.min_p))]
        cumulative = np.cumsum(p)
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(likely[min(int(drawn), p.size - 1)])


def _check_any(largest: np.floating) -> None:
    """Of the tokens that a ban leaves a head that computes some rows may have computed none."""
    if largest == -np.inf:
        bound = "the profile of the head leaves out every token that may follow here"
        raise SettingError("head_sparsity", "auto", bound, "add --head-sparsity off")


def last_ids(prompt_ids: Sequence[int], ids: Sequence[int], n: int) -> list[int]:
    """The last `n` of a prompt and what follows it; -1: all of them."""
    if n < 0:
        return [*prompt_ids, *ids]
    last = list(ids[max(len(ids) - n, 0) :])
    missing = min(n - len(last), len(prompt_ids))
    return [*prompt_ids[len(prompt_ids) - missing :], *last]


def penalize(values: NDArray[np.float64], recent: Sequence[int], settings: SamplingSettings) -> None:
    """Make tokens of `recent` less likely, as `SamplingSettings` says, in place.

    Finite logits stay finite under any penalty; a banned token's -inf stays what it is.
    """
    ids, counts = np.unique(np.asarray(recent, np.int64), return_counts=True)
    finite = np.isfinite(values[ids])
    ids, counts = ids[finite], counts[finite]
    repeat = settings.repeat_penalty
    with np.errstate(over="ignore"):
        changed = np.where(values[ids] > 0, values[ids] / repeat, values[ids] * repeat)
        # whole numbers beyond 64 bits are settings too, and no operands of NumPy's
        taken = float(settings.presence_penalty) + counts * float(settings.frequency_penalty)
        values[ids] = np.clip(np.clip(changed, -LARGEST, LARGEST) - taken, -LARGEST, LARGEST)


def most_likely(values: NDArray[np.floating], top_k: int) -> NDArray[np.int64]:
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
    with np.errstate(over="ignore"):  # a distance beyond float64 is a probability of 0
        weights = np.exp((values - values[0]) / temp)
    return np.asarray(weights / weights.sum())


def kept_by_top_p(p: NDArray[np.float64], top_p: float) -> int:
    """How many of the falling probabilities `p` add up to top_p, at least 1."""
    return p.size if top_p == 1 else min(p.size, int(np.searchsorted(np.cumsum(p), top_p)) + 1)


def kept_by_min_p(p: NDArray[np.float64], min_p: float) -> int:
    """How many of the falling probabilities `p` are at least min_p times the first one."""
    return int(np.count_nonzero(p >= min_p * p[0]))
