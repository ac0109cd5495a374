"""What a cache of a layer's most recently used neurons would have hit, beside what a fixed set covers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_TOKENS = 2048  # that are followed
SHARES = 0.05, 0.1, 0.2, 0.3, 0.5


@dataclass(frozen=True)
class HitRates:
    """Of the firings that were followed, how many find their neuron in a set of `share` of all neurons.

    Attributes:
        fixed: where it is the neurons that fire most on all texts.
        recent: where it is those that fired last: a cache that takes in what it missed.
    """

    share: float
    fixed: float
    recent: float


class Recency:
    """Follows the first `MOST_TOKENS` tokens of each layer.

    Between two firings of a neuron others fire. If they are fewer than a cache holds, it is still there; so
    one histogram of their number tells the hits of every size. Neurons of one token count as one moment.
    """

    def __init__(self, n_layer: int, n_ff: int) -> None:
        self._last = np.zeros((n_layer, n_ff), np.int64)  # moment; 0: never
        self._now = np.zeros(n_layer, np.int64)
        self._since = np.zeros(
            n_ff + 1, np.int64
        )  # firings by how many others came in between; n_ff: the first
        self._counts = np.zeros((n_layer, n_ff), np.int64)

    @property
    def n_tokens(self) -> int:
        """That were followed."""
        return int(self._now.max())

    def add(self, layer: int, fired: NDArray[np.bool_]) -> None:
        """Follow the tokens of a batch, bool [n_tokens, n_ff]."""
        n_ff = fired.shape[1]
        fired = fired[: max(MOST_TOKENS - int(self._now[layer]), 0)]
        self._counts[layer] += fired.sum(0)
        last = self._last[layer]
        for row in fired:
            now = int(self._now[layer])
            at = np.bincount(last, minlength=now + 1)  # neurons by the moment when they fired last
            newer = np.append(np.cumsum(at[:0:-1])[::-1], 0)  # after each moment
            newer[0] = n_ff  # a neuron that never fired is in no cache
            self._since += np.bincount(newer[last[row]], minlength=n_ff + 1)
            self._now[layer] += 1
            last[row] = now + 1

    def hit_rates(self, counts: NDArray[np.float64]) -> list[HitRates]:
        """By size of the set; `counts` [n_layer, n_ff] say which neurons fire most."""
        total, n_ff = self._since.sum(), counts.shape[1]
        if not total:
            return []
        order = np.argsort(-counts, axis=1, kind="stable")
        hottest = np.take_along_axis(self._counts, order, 1).sum(0).cumsum()
        sizes = [max(1, round(share * n_ff)) for share in SHARES]
        hits = self._since[:n_ff].cumsum()
        return [
            HitRates(share, float(hottest[n - 1] / total), float(hits[n - 1] / total))
            for share, n in zip(SHARES, sizes, strict=True)
        ]
