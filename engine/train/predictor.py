"""One layer's predictor, trained: fc2 relu(fc1 x) is 0 or more for the neurons that will fire.

The form is PowerInfer's: no biases, x the residual before the FFN's norm. The loss is cross entropy in which a firing
neuron's term counts more; how much more follows the recall that is wanted, as the training goes. A warm-up and a
cosine. The same seed gives the same numbers on the same machine, by any number of threads.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hotcold.engine.train.arithmetic import ALONE, F32, Arithmetic, Array
from hotcold.engine.train.descent import Adam, Quality, gradients, quality
from hotcold.engine.train.gate import Gate
from hotcold.engine.train.samples import Samples
from hotcold.engine.train.settings import BATCH, Training
from hotcold.engine.train.starts import directions_start, random_start

RATE = 1e-2
HELD_BACK = 0.05
MOST_HELD_BACK = 4096
WARM_UP, LAST_RATE = 30, 0.01
FIRST_WEIGHT, WEIGHTS = 8.0, (1.0, 60.0)
FOLLOWS_FROM = 100  # steps
TRIAL_STEPS = 60
RANDOM, DIRECTIONS = "random", "svd"

Progress = Callable[[int, int], None]
"""Hears of steps done and in all."""


@dataclass(frozen=True)
class Trained:
    """A layer's predictor, fc1 [rank, n_embd] and fc2 [n_ff, rank], how it does, and what it began with."""

    fc1: F32
    fc2: F32
    quality: Quality
    start: str

    @property
    def rank(self) -> int:
        """Rows of fc1."""
        return int(self.fc1.shape[0])


def held_back(n_tokens: int) -> slice:
    """The last tokens, which are not trained on."""
    return slice(n_tokens - min(math.ceil(HELD_BACK * n_tokens), MOST_HELD_BACK), n_tokens)


def train(
    samples: Samples,
    rank: int,
    gate: Gate | None,
    training: Training,
    progress: Progress | None = None,
    on: Arithmetic = ALONE,
) -> Trained:
    """Train one layer's predictor.

    Args:
        gate: what decides which neurons fire; a start from its largest directions is tried, beside a random one
            where the training has memory for both. None: random alone.
    """
    held = held_back(samples.x.shape[0])
    starts = dict[str, Callable[[], tuple[Array, Array]]]()
    if gate is not None:
        starts[DIRECTIONS] = lambda: directions_start(samples, gate, rank, held.start, on)
    if gate is None or training.both_starts:
        starts[RANDOM] = lambda: random_start(samples, rank, training.seed, on)
    runs = {name: _Run(samples, *start(), training, held.start, on) for name, start in starts.items()}
    if len(runs) > 1:
        for run in runs.values():
            run.go(min(TRIAL_STEPS, training.steps))
    name = min(runs, key=lambda name: runs[name].cost(held)) if len(runs) > 1 else next(iter(runs))
    best = runs[name]
    runs.clear()  # and the other's memory
    if progress is not None:
        progress(best.step, training.steps)
    while best.step < training.steps:
        best.go(min(best.step + 50, training.steps))
        if progress is not None:
            progress(best.step, training.steps)
    found = quality(best.fc1, best.fc2, samples, held, on)
    return Trained(on.get(best.fc1), on.get(best.fc2), found, name)


class _Run:
    """A training under way."""

    def __init__(
        self, samples: Samples, fc1: Array, fc2: Array, training: Training, n_tokens: int, on: Arithmetic
    ) -> None:
        self.fc1, self.fc2, self.step = fc1, fc2, 0
        self._samples, self._training, self._n_tokens, self._on = samples, training, n_tokens, on
        self._adam = Adam(fc1.shape, on), Adam(fc2.shape, on)
        self._random = np.random.default_rng(training.seed)
        self._weight, self._recall = FIRST_WEIGHT, training.recall
        self._scale = float(on.xp.sqrt((fc1**2).mean())) * math.sqrt(fc1.shape[1])

    def go(self, until: int) -> None:
        """Take steps up to a number of them."""
        while self.step < until:
            which = np.sort(self._random.integers(0, self._n_tokens, BATCH))
            x, fired = self._samples.batch(which, self._on)
            by_fc1, by_fc2, recall = gradients(self.fc1, self.fc2, x, fired, self._weight, self._on)
            rate = RATE * _schedule(self.step, self._training.steps)
            self._adam[0].update(self.fc1, by_fc1, rate * self._scale / math.sqrt(self.fc1.shape[1]))
            self._adam[1].update(self.fc2, by_fc2, rate)
            self._recall = 0.9 * self._recall + 0.1 * recall
            if self.step >= FOLLOWS_FROM:
                more = math.exp(0.5 * (self._training.recall - self._recall))
                self._weight = min(max(self._weight * more, WEIGHTS[0]), WEIGHTS[1])
            self.step += 1

    def cost(self, tokens: slice) -> float:
        """Share of all neurons that are listed, and of those that are missed as much as each counts at first."""
        found = quality(self.fc1, self.fc2, self._samples, tokens, self._on)
        return found.listed + FIRST_WEIGHT * found.firing * (1 - found.recall)


def _schedule(step: int, steps: int) -> float:
    """Of the rate at a step."""
    return min(1.0, (step + 1) / WARM_UP) * (
        LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
