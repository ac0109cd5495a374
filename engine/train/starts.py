"""What a predictor's training begins with: random numbers, or the best product of two matrices for the gate's."""

import math

import numpy as np

from hotcold.engine.train.arithmetic import Arithmetic, Array, blocks
from hotcold.engine.train.gate import ROWS, Gate
from hotcold.engine.train.samples import Samples

TOKENS = 1024  # at once
ROUNDS, MORE = 3, 16  # of the search for directions, and how many more than are wanted take part
COLUMNS = 256  # of a block


def random_start(samples: Samples, rank: int, seed: int, on: Arithmetic) -> tuple[Array, Array]:
    """Numbers that make z a little below 0, where most neurons rest."""
    random = np.random.default_rng((seed, rank))
    n_embd = samples.x.shape[1]
    fc1 = random.standard_normal((rank, n_embd), np.float32) / np.float32(math.sqrt(n_embd))
    fc2 = random.standard_normal((samples.n_ff, rank), np.float32) * np.float32(0.05) - np.float32(0.05)
    return on.put(fc1), on.put(fc2)


def directions_start(
    samples: Samples, gate: Gate, rank: int, n_tokens: int, on: Arithmetic
) -> tuple[Array, Array]:
    """The best product of two matrices for gate x on the first n_tokens inputs, each direction with both of its signs.

    It is U U^T gate, U the largest left singular vectors of gate C^(1/2), C the inputs' second moments. They are
    searched for by powers of gate C gate^T times a few random vectors (arXiv:0909.4061, algorithm 4.4).
    """
    xp, n = on.xp, -(-rank // 2)
    moments = second_moments(samples, n_tokens, on)
    n_searched = min(n + MORE, gate.n_ff, gate.n_embd)
    found = on.put(np.random.default_rng(rank).standard_normal((gate.n_ff, n_searched), np.float32))
    for _ in range(ROUNDS):
        found = _onto(gate, moments @ _back(gate, found, on), on)
        found = on.put(np.linalg.qr(on.get(found))[0])
    back = _back(gate, found, on)
    of_found = on.get(back.T @ (moments @ back)).astype(np.float64)
    squares, turned = np.linalg.eigh((of_found + of_found.T) / 2)
    sizes = np.sqrt(np.maximum(squares[::-1][:n], 1e-12 * squares[-1])).astype(np.float32)
    turned = np.ascontiguousarray(turned[:, ::-1][:, :n], np.float32)
    rows = (back @ on.put(turned / sizes)).T  # whose products with x have a mean square of 1
    onto = found @ on.put(turned * sizes)
    fc1 = xp.concatenate((rows, -rows))[:rank]
    fc2 = xp.concatenate((onto, -onto), 1)[:, :rank]
    size = float(xp.sqrt((fc1**2).mean())) * math.sqrt(gate.n_embd)
    scale = size / (float(xp.abs(onto).mean()) * math.sqrt(rank))
    return xp.ascontiguousarray(fc1 / np.float32(size)), xp.ascontiguousarray(fc2 * np.float32(scale))


def second_moments(samples: Samples, n_tokens: int, on: Arithmetic) -> Array:
    """Mean of x x^T over some of the first n_tokens, float32 [n_embd, n_embd]."""
    n_embd = samples.x.shape[1]
    which = np.linspace(0, n_tokens - 1, min(n_tokens, 8 * n_embd), dtype=np.int64)
    total = on.xp.zeros((n_embd, n_embd), np.float32)
    for some in blocks(which.size, TOKENS):
        x = samples.inputs(which[some], on)

        def of_columns(part: slice, x: Array = x) -> None:
            total[part] += x[:, part].T @ x

        on.each(of_columns, n_embd, COLUMNS)
    total /= which.size
    return total


def _onto(gate: Gate, vectors: Array, on: Arithmetic) -> Array:
    """gate vectors, float32 [n_ff, n]."""
    out = on.xp.empty((gate.n_ff, vectors.shape[1]), np.float32)
    for rows in blocks(gate.n_ff, ROWS):
        some, part_of_out = on.put(gate.rows(rows)), out[rows]

        def of_rows(part: slice, some: Array = some, into: Array = part_of_out) -> None:
            into[part] = some[part] @ vectors

        on.each(of_rows, len(some), COLUMNS)
    return out


def _back(gate: Gate, vectors: Array, on: Arithmetic) -> Array:
    """gate^T vectors, float32 [n_embd, n]."""
    out = on.xp.zeros((gate.n_embd, vectors.shape[1]), np.float32)
    for rows in blocks(gate.n_ff, ROWS):
        some, these = on.put(gate.rows(rows)), vectors[rows]

        def of_columns(part: slice, some: Array = some, these: Array = these) -> None:
            out[part] += some[:, part].T @ these

        on.each(of_columns, gate.n_embd, COLUMNS)
    return out
