"""Which rank a layer's predictor gets: the one with which a token reads the fewest bytes.

A predictor replaces reading all rows of the gate by reading its two matrices and the rows that it lists; a larger
one lists fewer. Memory's speed decides a token's time, so bytes stand for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from hotcold.engine.model.model import Layer, Weight
from hotcold.engine.train.predictor import Quality
from hotcold.engine.train.settings import STEP_OF_RANK


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
        own = rank * (self.n_embd + self.n_ff) * self.bits / 8
        others = quality.firing * quality.recall * self.other_rows
        return own + self.n_ff * (quality.listed * self.first_row + others)


def deciding(layer: Layer) -> Weight:
    """The matrix that decides which neurons fire: gate, or up where there is none; of no mixture of experts."""
    return layer.up if layer.ffn_gate is None else layer.ffn_gate


def costs_of(layer: Layer) -> Costs:
    """Of a layer whose predictor has the type of its first matrix."""
    first = deciding(layer)
    down = layer.ffn_down_t.row_bytes if layer.ffn_down_t is not None else layer.down.n_bytes / first.ne[1]
    others = down + (0 if layer.ffn_gate is None or layer.ffn_up is None else layer.ffn_up.row_bytes)
    return Costs(first.ne[0], first.ne[1], first.row_bytes, others, 8 * first.row_bytes / first.ne[0])


def best_rank(costs: Costs, tried: Callable[[int], Quality]) -> int:
    """The rank of the fewest bytes, by halving and doubling a quarter of n_embd while that helps.

    Args:
        tried: how a predictor of a rank does after some training.
    """
    bytes_of: dict[int, float] = {}

    def at(rank: int) -> float:
        if rank not in bytes_of:
            bytes_of[rank] = costs.predicted(rank, tried(rank))
        return bytes_of[rank]

    def whole(rank: float) -> int:
        return min(max(int(rank) // STEP_OF_RANK * STEP_OF_RANK, STEP_OF_RANK), largest)

    largest = max(costs.n_embd // STEP_OF_RANK * STEP_OF_RANK, STEP_OF_RANK)
    rank = whole(costs.n_embd / 4)
    for factor in (0.5, 2):
        while (other := whole(rank * factor)) != rank and at(other) < at(rank):
            rank = other
    return rank
