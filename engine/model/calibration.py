"""What thresholds of a file's neurons leave out, and what that cost when they were calibrated."""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from hotcold.gguf_io.names import CALIBRATED

if TYPE_CHECKING:
    from hotcold.gguf_io import GGUFFile


@dataclass(frozen=True)
class Calibration:
    """One level of thresholds.

    Attributes:
        left_out: part of what all neurons add to the residual, by their importance, that is left out.
        computed: part of the neurons that are computed, on average.
        perplexity, perplexity_of_all: of the calibration's held back text, at this level and with all neurons.
    """

    left_out: float
    computed: float
    perplexity: float
    perplexity_of_all: float

    @property
    def cost(self) -> float:
        """By how much of itself the perplexity rose."""
        return self.perplexity / self.perplexity_of_all - 1

    def keys(self) -> dict[str, float]:
        """The metadata that keeps it."""
        return {CALIBRATED.format(what=field.name): getattr(self, field.name) for field in fields(self)}


def read_calibration(file: "GGUFFile") -> Calibration | None:
    """What the file says of its thresholds; None where it says nothing of use."""
    names = [field.name for field in fields(Calibration)]
    found: list[Any] = [file.metadata.get(CALIBRATED.format(what=name)) for name in names]
    if not all(isinstance(value, float) and math.isfinite(value) for value in found) or found[-1] <= 0:
        return None
    return Calibration(*found)


def threshold_note(file: "GGUFFile") -> str:
    """That thresholds are in use, and what they cost, as a line."""
    calibration = read_calibration(file)
    if calibration is None:
        return "sparsity threshold leaves neurons out, and the file does not say what that costs"
    c = calibration
    return (
        f"sparsity threshold computes {c.computed:.0%} of the neurons and leaves out {c.left_out:.1%} of what all add; "
        f"when it was calibrated that made a perplexity of {c.perplexity:.2f} out of {c.perplexity_of_all:.2f} "
        f"({c.cost:+.1%})"
    )
