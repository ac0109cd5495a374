"""What the signs of gate and input foresee without any training (SparseInfer, arXiv:2411.12692).

Of the products that a gate's row sums, those are positive whose factors have the same sign. The neuron is listed where
enough of them are: XOR of two sign bits, and a count. How many are enough is chosen for the recall that is wanted.
fc2 relu(fc1 x) cannot be that, since the sign of x is no such function of x: these are figures to compare with.
"""

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.train.arithmetic import Arithmetic, Array, blocks
from hotcold.engine.train.descent import Quality, of_counts
from hotcold.engine.train.gate import ROWS, Gate
from hotcold.engine.train.samples import Samples

TOKENS = 1024  # that a count is chosen on, and as many that it is tried on
BLOCK = 128


def signs_quality(
    samples: Samples, gate: Gate, n_tokens: int, held: slice, recall: float, on: Arithmetic
) -> Quality:
    """How the signs do on tokens that are held back, with the count that reaches the recall on some of the others."""
    learned = np.linspace(0, n_tokens - 1, min(n_tokens, TOKENS), dtype=np.int64)
    tested = np.arange(held.start, held.stop)[-TOKENS:]
    counts = _histograms(samples, gate, learned, on), _histograms(samples, gate, tested, on)
    of_firing, (firing, all_of_them) = counts[0][0], counts[1]
    reached = np.cumsum(of_firing[::-1])[::-1] >= recall * of_firing.sum()  # with this count or more
    enough = int(np.flatnonzero(reached)[-1]) if of_firing.any() else len(of_firing)
    both, listed = int(firing[enough:].sum()), int(all_of_them[enough:].sum())
    return of_counts([(int(firing.sum()), listed, both, int(all_of_them.sum()))])


def _histograms(
    samples: Samples, gate: Gate, which: NDArray[np.int64], on: Arithmetic
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of some tokens' firing neurons and of all: how many have which sum of the signs of their products, + n_embd."""
    x, fired = samples.batch(which, on)
    xp, fired, n = on.xp, on.get(fired), 2 * gate.n_embd + 1
    x = xp.sign(x - x.mean(1, keepdims=True) if gate.centred else x)
    firing, everything = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for rows in blocks(gate.n_ff, ROWS):
        signs = xp.sign(on.put(gate.rows(rows)))

        def of_tokens(
            part: slice, signs: Array = signs, rows: slice = rows
        ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            sums = on.get(x[part] @ signs.T).astype(np.int64) + gate.n_embd  # whole numbers, and exact
            return np.bincount(sums[fired[part, rows]], minlength=n), np.bincount(
                sums.reshape(-1), minlength=n
            )

        for some, of_all in on.each(of_tokens, len(x), BLOCK):
            firing += some
            everything += of_all
    return firing, everything
