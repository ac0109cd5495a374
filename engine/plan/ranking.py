"""The order in which neurons are placed: by firings served per byte, ties interleaved over layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ranking:
    """All candidate neurons, best first.

    Attributes:
        layers, neurons: int32 each, parallel.
        ends: bytes of a neuron and all before it, int64.
    """

    layers: NDArray[np.int32]
    neurons: NDArray[np.int32]
    ends: NDArray[np.int64]

    def prefix(self, n_bytes: int) -> int:
        """How many neurons fit, up to the first that does not."""
        return int(np.searchsorted(self.ends, n_bytes, "right"))

    def hot(self, n_placed: int, n_layer: int) -> list[NDArray[np.int32]]:
        """Ascending neuron numbers of each layer among the first n_placed."""
        layers, neurons = self.layers[:n_placed], self.neurons[:n_placed]
        order = np.lexsort((neurons, layers))
        bounds = np.searchsorted(layers[order], np.arange(n_layer + 1))
        sorted_neurons = neurons[order]
        return [sorted_neurons[a:b] for a, b in pairwise(bounds)]


def rank(frequencies: Sequence[NDArray[np.generic] | None], neuron_bytes: Sequence[int]) -> Ranking:
    """Rank neurons by frequency per byte.

    Args:
        frequencies: counts of each layer's neurons; None for a layer without candidates.
        neuron_bytes: of one neuron in each layer.

    Of neurons with equal value a layer's first comes before every other layer's second, so that a
    budget is spread over the layers.
    """
    values, rounds, layers, neurons = [], [], [], []
    for i, counts in enumerate(frequencies):
        if counts is None:
            continue
        value = np.asarray(counts, np.float64) / neuron_bytes[i]
        order = np.argsort(-value, kind="stable")
        value = value[order]
        first = np.concatenate([[True], value[1:] != value[:-1]]) if value.size else np.zeros(0, bool)
        place = np.arange(value.size)
        rounds.append((place - np.maximum.accumulate(np.where(first, place, 0))).astype(np.int32))
        values.append(value)
        layers.append(np.full(value.size, i, np.int32))
        neurons.append(order.astype(np.int32))
    if not values:
        nothing = np.zeros(0, np.int32)
        return Ranking(nothing, nothing, np.zeros(0, np.int64))
    all_layers = np.concatenate(layers)
    best = np.lexsort((all_layers, np.concatenate(rounds), -np.concatenate(values)))
    costs = np.asarray(neuron_bytes, np.int64)[all_layers[best]]
    return Ranking(all_layers[best], np.concatenate(neurons)[best], np.cumsum(costs))
