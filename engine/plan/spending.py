"""A budget that is spent in order: the first thing that does not fit ends the spending."""

from dataclasses import dataclass, replace

from hotcold.engine.plan.budget import mib
from hotcold.engine.plan.footprint import Obstacle, WeightGroup


@dataclass(frozen=True)
class Left:
    """What is left of a budget.

    Attributes:
        n_bytes: of it.
        ended: why nothing more is placed; None while something may be.
    """

    n_bytes: int
    ended: Obstacle | None = None

    def pay(self, n_bytes: int, what: str) -> tuple["Left", Obstacle | None]:
        """What is left then, and why it cannot be paid, if it cannot."""
        if self.ended is not None:
            return self, self.ended
        if n_bytes > self.n_bytes:
            short = Obstacle(f"no budget left: {mib(n_bytes - self.n_bytes)} short")
            return self.end(f"no budget left after {what} did not fit"), short
        return replace(self, n_bytes=self.n_bytes - n_bytes), None

    def pay_for(self, part: WeightGroup, what: str) -> tuple["Left", Obstacle | None]:
        """`pay` for weights that the device can hold; others stay without ending anything."""
        return (self, part.obstacle) if part.obstacle is not None else self.pay(part.n_bytes, what)

    def end(self, why: str) -> "Left":
        """Nothing more is placed, for this reason if there is none yet."""
        return self if self.ended is not None else replace(self, ended=Obstacle(why))
