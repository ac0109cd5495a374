"""A step of a predictor's training: the loss's slopes, and the optimiser (AdamW's rule, arXiv:1711.05101, no decay)."""

import math
from dataclasses import dataclass

import numpy as np

from hotcold.engine.train.arithmetic import ALONE, Arithmetic, Array
from hotcold.engine.train.samples import Samples

BETAS, EPSILON = (0.9, 0.999), 1e-8
TOKENS, ROWS, RANKS = 128, 512, 64  # of a block


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


class Adam:
    """The optimiser's state for one matrix."""

    def __init__(self, shape: tuple[int, ...], on: Arithmetic = ALONE) -> None:
        self._on, self._step = on, 0
        self._mean, self._square = (on.xp.zeros(shape, np.float32) for _ in range(2))

    def update(self, matrix: Array, gradient: Array, rate: float) -> None:
        """Change the matrix in place; the gradient is used up."""
        self._step += 1
        first, second = BETAS
        by_square = 1 / math.sqrt(1 - second**self._step)
        rate /= 1 - first**self._step
        xp = self._on.xp

        def some(rows: slice) -> None:
            mean, square, step = self._mean[rows], self._square[rows], gradient[rows]
            mean *= first
            mean += (1 - first) * step
            xp.square(step, out=step)
            step *= 1 - second
            square *= second
            square += step
            xp.sqrt(square, out=step)
            step *= by_square
            step += EPSILON
            xp.divide(mean, step, out=step)
            step *= rate
            matrix[rows] -= step

        self._on.each(some, len(matrix), RANKS)


def gradients(
    fc1: Array, fc2: Array, x: Array, fired: Array, weight: float, on: Arithmetic = ALONE
) -> tuple[Array, Array, float]:
    """Of the mean loss over a batch by both matrices, and the batch's recall.

    loss = softplus(z) where a neuron rests, weight * softplus(-z) where it fires, z = fc2 relu(fc1 x).
    """
    xp, (n_tokens, n_ff), rank = on.xp, fired.shape, len(fc1)
    hidden, slope = (xp.empty((n_tokens, rank), np.float32) for _ in range(2))
    by_z = xp.empty((n_tokens, n_ff), np.float32)
    by_fc1, by_fc2 = xp.empty_like(fc1), xp.empty_like(fc2)
    scale = np.float32(1 / by_z.size)

    def forwards(tokens: slice) -> tuple[int, int]:
        h, z, fires = hidden[tokens], by_z[tokens], fired[tokens]
        xp.matmul(x[tokens], fc1.T, out=h)
        xp.maximum(h, 0, out=h)
        xp.matmul(h, fc2.T, out=z)
        found = int(xp.count_nonzero((z >= 0) & fires))
        xp.clip(z, -30, 30, out=z)
        xp.negative(z, out=z)
        xp.exp(z, out=z)
        z += 1
        xp.reciprocal(z, out=z)  # sigmoid(z), the slope of softplus(z)
        z -= fires
        z *= xp.where(fires, np.float32(weight) * scale, scale)
        xp.matmul(z, fc2, out=slope[tokens])
        slope[tokens][h == 0] = 0
        return found, int(xp.count_nonzero(fires))

    def of_fc1(rows: slice) -> None:
        xp.matmul(slope[:, rows].T, x, out=by_fc1[rows])

    def of_fc2(rows: slice) -> None:
        xp.matmul(by_z[:, rows].T, hidden, out=by_fc2[rows])

    found, n_firing = map(sum, zip(*on.each(forwards, n_tokens, TOKENS), strict=True))
    on.each(of_fc1, rank, RANKS)
    on.each(of_fc2, n_ff, ROWS)
    return by_fc1, by_fc2, found / max(n_firing, 1)


def quality(fc1: Array, fc2: Array, samples: Samples, tokens: slice, on: Arithmetic = ALONE) -> Quality:
    """How a predictor does on some tokens."""
    xp = on.xp

    def some(part: slice) -> tuple[int, int, int, int]:
        x, fired = samples.batch(slice(tokens.start + part.start, tokens.start + part.stop), on)
        says = xp.maximum(x @ fc1.T, 0) @ fc2.T >= 0
        counts = (xp.count_nonzero(each) for each in (fired, says, says & fired))
        n_firing, n_listed, both = map(int, counts)
        return n_firing, n_listed, both, fired.size

    return of_counts(on.each(some, tokens.stop - tokens.start, TOKENS))


def of_counts(parts: list[tuple[int, int, int, int]]) -> Quality:
    """From how many fire, are listed, do both, and are there, of parts of the tokens."""
    firing, listed, both, n = map(sum, zip(*parts, strict=True))
    return Quality(both / firing if firing else 1.0, listed / n, firing / n)
