"""What is asked of a training; imports nothing of the engine, so that a command can check it first."""

from dataclasses import dataclass
from pathlib import Path

BATCH = 1024
"""Tokens of a step."""
STEP_OF_RANK = 32
"""Rows of quantised weights are whole blocks."""


@dataclass(frozen=True)
class Training:
    """How long a layer is trained, and for what.

    Attributes:
        recall: wanted of the firing neurons.
        steps: of a batch of tokens each.
        seed: same seed, same predictors.
        both_starts: whether there is memory to try a random start beside the gate's largest directions.
    """

    recall: float
    steps: int
    seed: int
    both_starts: bool = True


@dataclass(frozen=True)
class Place:
    """Where and within what it is trained, which is no part of what comes out but for its last bits.

    Attributes:
        folder: keeps what is collected, and finished layers.
        device: as in --device, of the arithmetic.
        gives_back: whether pages of mapped files leave the process's memory once they are read.
    """

    folder: Path
    device: str = "cpu"
    gives_back: bool = False


@dataclass(frozen=True)
class Settings(Training):
    """How every layer is trained.

    Attributes:
        rank: of every layer, whole STEP_OF_RANK; None: each layer's own, by the bytes that a token reads.
        largest_rank: that is tried where every layer has its own; None: n_embd.
    """

    rank: int | None = None
    largest_rank: int | None = None
