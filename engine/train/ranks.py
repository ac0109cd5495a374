"""Which rank a layer's predictor gets, if any: the one with which a token takes the least time.

A predictor replaces reading all rows of the gate by reading its two matrices and the rows that it lists; a larger
one lists fewer. Memory's speed decides a token's time, so bytes stand for it, where a row of fc2 takes as long as one
of SHORTEST_ROW numbers at least.
"""

from collections.abc import Callable
from dataclasses import dataclass

from hotcold.engine.model.model import Layer
from hotcold.engine.train.descent import Quality
from hotcold.engine.train.gate import deciding
from hotcold.engine.train.settings import STEP_OF_RANK

SHORTEST_ROW = 96
"""Q8_0's and Q4_0's rows of 32 to 128 numbers take 3.2 to 4.3 ns each (AVX-512): a core reads 100 bytes then."""
MISSED, SLACK = 1.5, 0.01
"""A recall is good enough if no more is missed than so many times what may be, and so much of all."""
HOPELESS = 1.2
"""Times exact's bytes, after some training, from which on more of it is not tried."""


@dataclass(frozen=True)
class Costs:
    """Bytes that a token reads of one layer's FFN.

    Attributes:
        first_row: of the matrix that decides which neurons fire.
        other_rows: of a firing neuron in the others.
        bits: of a predictor's number.
    """

    n_embd: int
    n_ff: int
    first_row: float
    other_rows: float
    bits: float

    def exact(self, firing: float) -> float:
        """All rows of the first matrix, and what fires of the others."""
        return self.n_ff * (self.first_row + firing * self.other_rows)

    def predicted(self, rank: int, quality: Quality) -> float:
        """The predictor, what it lists of the first matrix, and what fires and is listed of the others."""
        return rank * (self.n_embd + self.n_ff) * self.bits / 8 + self._listed(quality)

    def by_signs(self, quality: Quality) -> float:
        """The same with a bit for each number of the first matrix in place of a predictor."""
        return self.n_ff * self.n_embd / 8 + self._listed(quality)

    def _listed(self, quality: Quality) -> float:
        others = quality.firing * quality.recall * self.other_rows
        return self.n_ff * (quality.listed * self.first_row + others)

    def time(self, rank: int, quality: Quality) -> float:
        """Bytes that a token could read meanwhile."""
        short = self.n_ff * max(SHORTEST_ROW - rank, 0) * self.bits / 8
        return self.predicted(rank, quality) + short

    def pays(self, rank: int, quality: Quality, factor: float = 1.0) -> bool:
        """Whether a token takes less time with the predictor than so many times of what it takes without."""
        return self.time(rank, quality) < factor * self.exact(quality.firing)


def costs_of(layer: Layer) -> Costs:
    """Of a layer whose predictor has the type of its first matrix."""
    first = deciding(layer)
    down = layer.ffn_down_t.row_bytes if layer.ffn_down_t is not None else layer.down.n_bytes / first.ne[1]
    others = down + (0 if layer.ffn_gate is None or layer.ffn_up is None else layer.ffn_up.row_bytes)
    return Costs(first.ne[0], first.ne[1], first.row_bytes, others, 8 * first.row_bytes / first.ne[0])


def is_enough(recall: float, wanted: float) -> bool:
    """Whether a predictor finds about as many of the firing neurons as is wanted."""
    return 1 - recall <= max(MISSED * (1 - wanted), 1 - wanted + SLACK)


def best_rank(
    costs: Costs, tried: Callable[[int], Quality], recall: float = 0.0, largest: int | None = None
) -> int | None:
    """The rank of the least time, by halving and doubling a quarter of n_embd while that helps.

    Args:
        tried: how a predictor of a rank does after some training.
        recall: wanted; ranks that do not come near it are no choice.
        largest: to try; None: n_embd.

    Returns:
        None where no rank that was tried comes near `exact`.
    """
    found: dict[int, Quality] = {}

    def at(rank: int) -> tuple[bool, float]:
        if rank not in found:
            found[rank] = tried(rank)
        return not is_enough(found[rank].recall, recall), costs.time(rank, found[rank])

    def whole(rank: float) -> int:
        return min(max(int(rank) // STEP_OF_RANK * STEP_OF_RANK, STEP_OF_RANK), most)

    most = max(min(costs.n_embd, largest or costs.n_embd) // STEP_OF_RANK * STEP_OF_RANK, STEP_OF_RANK)
    rank = whole(costs.n_embd / 4)
    for factor in (0.5, 2):
        while (other := whole(rank * factor)) != rank and at(other) < at(rank):
            rank = other
    return rank if costs.pays(rank, found.get(rank) or tried(rank), HOPELESS) else None
