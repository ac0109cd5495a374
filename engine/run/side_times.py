"""How long each side of a run takes, as the host sees it."""

import time
from collections.abc import Sequence

from hotcold.engine.host.steps import Context, Step, Taking, Walk, take_all


class SideTimes:
    """Takes a run's steps and times those of the CPU; what the host waits, its device counts.

    Attributes:
        walks: seconds of the CPU's part so far.
    """

    def __init__(self) -> None:
        self.walks = 0.0

    def __call__(self, steps: Sequence[Step], context: Context) -> None:
        """One step after another."""
        for step in steps:
            if isinstance(step, Walk):
                started = time.perf_counter()
                step.run(context)
                self.walks += time.perf_counter() - started
            else:
                step.run(context)


def takes_graphs(taking: Taking) -> bool:
    """Whether who takes the steps needs none of the device's by itself, which a graph does not show."""
    return taking is take_all or isinstance(taking, SideTimes)
