"""One layer's predictor, trained: fc2 relu(fc1 x) is 0 or more for the neurons that will fire.

The form is PowerInfer's: no biases, x the residual before the FFN's norm. The loss is cross entropy in which a firing
neuron's term counts more; how much more follows the recall that is wanted, as the training goes. AdamW
(arXiv:1711.05101) with a warm-up and a cosine. The same seed gives the same numbers on the same machine, by any number
of threads.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.train.blocks import Each, in_turn, threads
from hotcold.engine.train.collect import Samples
from hotcold.engine.train.settings import Training

F32 = NDArray[np.float32]

BATCH = 1024
RATE = 1e-2
HELD_BACK = 0.05
MOST_HELD_BACK = 4096
WARM_UP, LAST_RATE = 30, 0.01
BETAS, EPSILON = (0.9, 0.999), 1e-8
FIRST_WEIGHT, WEIGHTS = 8.0, (1.0, 60.0)
FOLLOWS_FROM = 100  # steps
TRIAL_STEPS = 60
TOKENS, ROWS, RANKS = 128, 512, 64  # of a block

Progress = Callable[[int, int], None]
"""Hears of steps done and in all."""


@dataclass(frozen=True)
class Quality:
    """On tokens that were held back.

    Attributes:
        recall: share of the firing neurons that are listed.
        listed, firing: shares of all neurons.
    """

    recall: float
    listed: float
    firing: float


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


class Adam:
    """The optimiser's state for one matrix."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._mean, self._square = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._step = 0

    def update(self, matrix: F32, gradient: F32, rate: float, each: Each = in_turn) -> None:
        """Change the matrix in place; the gradient is used up."""
        self._step += 1
        first, second = BETAS
        by_square = 1 / math.sqrt(1 - second**self._step)
        rate /= 1 - first**self._step

        def some(rows: slice) -> None:
            mean, square, step = self._mean[rows], self._square[rows], gradient[rows]
            mean *= first
            mean += (1 - first) * step
            np.square(step, out=step)
            step *= 1 - second
            square *= second
            square += step
            np.sqrt(square, out=step)
            step *= by_square
            step += EPSILON
            np.divide(mean, step, out=step)
            step *= rate
            matrix[rows] -= step

        each(some, len(matrix), RANKS)


def gradients(
    fc1: F32, fc2: F32, x: F32, fired: NDArray[np.bool_], weight: float, each: Each = in_turn
) -> tuple[F32, F32, float]:
    """Of the mean loss over a batch by both matrices, and the batch's recall.

    loss = softplus(z) where a neuron rests, weight * softplus(-z) where it fires, z = fc2 relu(fc1 x).
    """
    (n_tokens, n_ff), rank = fired.shape, len(fc1)
    hidden, slope = (np.empty((n_tokens, rank), np.float32) for _ in range(2))
    by_z = np.empty((n_tokens, n_ff), np.float32)
    by_fc1, by_fc2 = np.empty_like(fc1), np.empty_like(fc2)
    scale = np.float32(1 / by_z.size)

    def forwards(tokens: slice) -> tuple[int, int]:
        h, z, fires = hidden[tokens], by_z[tokens], fired[tokens]
        np.matmul(x[tokens], fc1.T, out=h)
        np.maximum(h, 0, out=h)
        np.matmul(h, fc2.T, out=z)
        found = int(np.count_nonzero((z >= 0) & fires))
        np.clip(z, -30, 30, out=z)
        np.negative(z, out=z)
        np.exp(z, out=z)
        z += 1
        np.reciprocal(z, out=z)  # sigmoid(z), the slope of softplus(z)
        z -= fires
        z *= np.where(fires, np.float32(weight) * scale, scale)
        np.matmul(z, fc2, out=slope[tokens])
        slope[tokens][h == 0] = 0
        return found, int(np.count_nonzero(fires))

    def of_fc1(rows: slice) -> None:
        np.matmul(slope[:, rows].T, x, out=by_fc1[rows])

    def of_fc2(rows: slice) -> None:
        np.matmul(by_z[:, rows].T, hidden, out=by_fc2[rows])

    found, n_firing = map(sum, zip(*each(forwards, n_tokens, TOKENS), strict=True))
    each(of_fc1, rank, RANKS)
    each(of_fc2, n_ff, ROWS)
    return by_fc1, by_fc2, found / max(n_firing, 1)


def quality(fc1: F32, fc2: F32, samples: Samples, tokens: slice, each: Each = in_turn) -> Quality:
    """How a predictor does on some tokens."""

    def some(part: slice) -> tuple[int, int, int, int]:
        x, fired = samples.batch(slice(tokens.start + part.start, tokens.start + part.stop))
        says = np.maximum(x @ fc1.T, 0) @ fc2.T >= 0
        both, n_listed = np.count_nonzero(says & fired), np.count_nonzero(says)
        return int(np.count_nonzero(fired)), int(n_listed), int(both), fired.size

    counts = each(some, tokens.stop - tokens.start, TOKENS)
    firing, listed, both, n = map(sum, zip(*counts, strict=True))
    return Quality(both / max(firing, 1), listed / max(n, 1), firing / max(n, 1))


def train(
    samples: Samples,
    rank: int,
    gate: F32 | None,
    training: Training,
    progress: Progress | None = None,
    n_threads: int = 1,
) -> Trained:
    """Train one layer's predictor.

    Args:
        gate: float32 [n_ff, n_embd], what decides which neurons fire, its norm's weight multiplied in; a start
            from its largest directions is tried beside a random one. None: random alone.
    """
    with threads(n_threads) as each:
        return _train(samples, rank, gate, training, progress, each)


def _train(
    samples: Samples, rank: int, gate: F32 | None, training: Training, progress: Progress | None, each: Each
) -> Trained:
    n_tokens = samples.x.shape[0]
    n_held = min(math.ceil(HELD_BACK * n_tokens), MOST_HELD_BACK)
    held = slice(n_tokens - n_held, n_tokens)
    starts = {"random": random_start(samples, rank, training.seed)}
    if gate is not None:
        starts["largest directions"] = directions_start(samples, gate, rank, n_tokens - n_held)
    runs = {name: _Run(samples, *start, training, n_tokens - n_held, each) for name, start in starts.items()}
    if len(runs) > 1:
        for run in runs.values():
            run.go(min(TRIAL_STEPS, training.steps))
    name = min(runs, key=lambda name: runs[name].cost(held))
    best = runs[name]
    if progress is not None:
        progress(best.step, training.steps)
    while best.step < training.steps:
        best.go(min(best.step + 50, training.steps))
        if progress is not None:
            progress(best.step, training.steps)
    return Trained(best.fc1, best.fc2, quality(best.fc1, best.fc2, samples, held, each), name)


class _Run:
    """A training under way."""

    def __init__(
        self, samples: Samples, fc1: F32, fc2: F32, training: Training, n_tokens: int, each: Each
    ) -> None:
        self.fc1, self.fc2, self.step = fc1, fc2, 0
        self._samples, self._training, self._n_tokens, self._each = samples, training, n_tokens, each
        self._adam = Adam(fc1.shape), Adam(fc2.shape)
        self._random = np.random.default_rng(training.seed)
        self._weight, self._recall = FIRST_WEIGHT, training.recall
        self._scale = float(np.sqrt((fc1**2).mean())) * math.sqrt(fc1.shape[1])

    def go(self, until: int) -> None:
        """Take steps up to a number of them."""
        while self.step < until:
            which = np.sort(self._random.integers(0, self._n_tokens, BATCH))
            x, fired = self._samples.batch(which)
            by_fc1, by_fc2, recall = gradients(self.fc1, self.fc2, x, fired, self._weight, self._each)
            rate = RATE * _schedule(self.step, self._training.steps)
            self._adam[0].update(
                self.fc1, by_fc1, rate * self._scale / math.sqrt(self.fc1.shape[1]), self._each
            )
            self._adam[1].update(self.fc2, by_fc2, rate, self._each)
            self._recall = 0.9 * self._recall + 0.1 * recall
            if self.step >= FOLLOWS_FROM:
                self._weight = float(
                    np.clip(self._weight * math.exp(0.5 * (self._training.recall - self._recall)), *WEIGHTS)
                )
            self.step += 1

    def cost(self, tokens: slice) -> float:
        """Share of all neurons that are listed, and of those that are missed as much as each counts at first."""
        found = quality(self.fc1, self.fc2, self._samples, tokens, self._each)
        return found.listed + FIRST_WEIGHT * found.firing * (1 - found.recall)


def _schedule(step: int, steps: int) -> float:
    """Of the rate at a step."""
    return min(1.0, (step + 1) / WARM_UP) * (
        LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )


def random_start(samples: Samples, rank: int, seed: int) -> tuple[F32, F32]:
    """Numbers that make z a little below 0, where most neurons rest."""
    random = np.random.default_rng((seed, rank))
    n_embd = samples.x.shape[1]
    fc1 = random.standard_normal((rank, n_embd), np.float32) / np.float32(math.sqrt(n_embd))
    fc2 = random.standard_normal((samples.n_ff, rank), np.float32) * np.float32(0.05) - np.float32(0.05)
    return fc1, fc2


def directions_start(samples: Samples, gate: F32, rank: int, n_tokens: int) -> tuple[F32, F32]:
    """The best product of two matrices for gate x on these inputs, each direction with both of its signs.

    With C the inputs' second moments, the singular vectors of gate C^(1/2), taken back by C^(-1/2).
    """
    x, _ = samples.batch(np.linspace(0, n_tokens - 1, min(n_tokens, 8 * gate.shape[1]), dtype=np.int64))
    values, vectors = np.linalg.eigh((x.T @ x).astype(np.float64) / len(x))
    root = np.sqrt(np.maximum(values, 1e-6 * values[-1]))
    scaled = gate @ (vectors * root).astype(np.float32)  # gate C^(1/2), in the eigenvectors' coordinates
    _, right = np.linalg.eigh((scaled.T @ scaled).astype(np.float64))
    directions = right[:, ::-1][:, : -(-rank // 2)]  # the largest first
    back = (vectors / root @ directions).T.astype(np.float32)
    onto = (scaled @ directions.astype(np.float32)).astype(np.float32)
    fc1 = np.concatenate((back, -back))[:rank]
    fc2 = np.concatenate((onto, -onto), 1)[:, :rank]
    size = np.sqrt((fc1**2).mean()) * math.sqrt(fc1.shape[1])
    return np.ascontiguousarray(fc1 / size), np.ascontiguousarray(
        fc2 * size / (np.abs(onto).mean() * math.sqrt(rank))
    )
