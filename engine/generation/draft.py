"""Drafts: what a text may go on with, by what followed in it where it was alike; and how long a draft pays.

A draft passes with the token before it in one run, and stands as far as it is what is chosen anyway.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_DRAFT = 15  # tokens
GRAMS = (3, 2, 1)  # tokens that have to be alike, longest first
MAX_ALIKE = 8  # more tokens than that make nothing likelier
LIKELY = 0.2  # that a draft's token is right, before anything is known of a text
WEIGHT = 1 / 8  # of the latest token in that
PAYS = 1.1  # times faster that a draft has to make a text
KNOWN = (1, 2, 4, 8, MAX_DRAFT + 1), (1.0, 1.1, 1.5, 2.9, 4.6)  # tokens, times of one: docs/performance.md


class RunCosts:
    """What a run of n tokens takes, in times of one token: as the machine's table has it, then as measured.

    What nothing has measured for a while goes back to the table, so that one slow run is not believed for ever.
    """

    _TABLE = np.interp(np.arange(MAX_DRAFT + 2), *KNOWN)
    _MEASURED, _FORGOTTEN = 1 / 2, 1 / 200

    def __init__(self) -> None:
        self._times, self._one = self._TABLE.copy(), 0.0

    def measured(self, n: int, seconds: float) -> None:
        """Heed a run of 1 to MAX_DRAFT + 1 tokens."""
        if n == 1:
            self._one += (seconds - self._one) * (self._MEASURED if self._one else 1)
            self._times += (self._TABLE - self._times) * self._FORGOTTEN
        elif self._one:
            self._times[n] += (min(seconds / self._one, n) - self._times[n]) * self._MEASURED

    def times(self) -> NDArray[np.float64] | None:
        """By number of tokens, from 0 on, never falling; None before a single token has been measured."""
        return np.maximum.accumulate(self._times) if self._one else None


class NgramDrafts:
    """A text, and what followed the last few of its tokens the last time that it had them."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids, self._after = list[int](), dict[tuple[int, ...], int]()
        # where what is expected next stands, or -1; and how many tokens before both are alike
        self._at, self._n_alike = -1, 0
        self._likely = [LIKELY] * (MAX_ALIKE + 1)  # that it comes, by n_alike
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        """Heed the next token, whether it was drafted or not."""
        ids = self._ids
        if self._at >= 0:
            is_right = ids[self._at] == token
            self._likely[self._n_alike] += (is_right - self._likely[self._n_alike]) * WEIGHT
            self._at, self._n_alike = (
                (self._at + 1, min(self._n_alike + 1, MAX_ALIKE)) if is_right else (-1, 0)
            )
        ids.append(token)
        for n in GRAMS[-len(ids) :]:
            gram = tuple(ids[-n:])
            if self._at < 0 and gram in self._after:
                self._at, self._n_alike = self._after[gram], n
            self._after[gram] = len(ids)

    def draft(self, most: int, costs: RunCosts) -> list[int]:
        """Up to `most` tokens that may follow: as many as make the text come fastest, none where none do."""
        times = costs.times()
        if self._at < 0 or times is None:
            return []
        best, n_best, chance, expected = PAYS, 0, 1.0, 1.0
        for n in range(1, min(most, MAX_DRAFT) + 1):
            chance *= self._likely[min(self._n_alike + n - 1, MAX_ALIKE)]
            expected += chance
            if expected / times[n + 1] > best:
                best, n_best = float(expected / times[n + 1]), n
        past = len(self._ids) - self._at  # a text that repeats itself goes on into what is drafted
        return [self._ids[self._at + i % past] for i in range(n_best)]
