"""What is asked of a training; imports nothing of the engine, so that a command can check it first."""

from dataclasses import dataclass

STEP_OF_RANK = 32
"""Rows of quantised weights are whole blocks."""


@dataclass(frozen=True)
class Training:
    """How long a layer is trained, and for what.

    Attributes:
        recall: wanted of the firing neurons.
        steps: of a batch of tokens each.
        seed: same seed, same predictors.
    """

    recall: float
    steps: int
    seed: int


@dataclass(frozen=True)
class Settings(Training):
    """How every layer is trained.

    Attributes:
        rank: of every layer, whole STEP_OF_RANK; None: each layer's own, by the bytes that a token reads.
    """

    rank: int | None = None
