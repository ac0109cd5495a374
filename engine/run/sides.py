"""One side of a run by itself, to be timed: its steps without those of the other side."""

from collections.abc import Sequence
from dataclasses import dataclass

from hotcold.engine.graph.placed import CPU
from hotcold.engine.host.steps import Context, Step, Taking, Walk, take_all


@dataclass(frozen=True)
class Only:
    """Takes the steps of one side; what the other would have made is what lies there.

    Attributes:
        side: "cpu" or "gpu".
    """

    side: str

    def __call__(self, steps: Sequence[Step], context: Context) -> None:
        """One step after another."""
        take_all([step for step in steps if isinstance(step, Walk) == (self.side == CPU)], context)


def takes_graphs(taking: Taking) -> bool:
    """Whether who takes the steps needs none of the device's by itself, which a graph does not show."""
    return taking is take_all or isinstance(taking, Only)
