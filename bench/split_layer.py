"""How long a split layer takes, and how long its two sides take alone, within real runs.

A split layer's part of a run begins with the copy down and ends with the merge. In each of them the
device's launches and the copies are waited for alone, then the cold rows are walked alone, then all is
done in the order of the engine. So every figure is of the same layer, the same token and the same mask.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from hotcold.engine.executor import Executor
from hotcold.engine.steps import CopyDown, CopyUp, Launches, Step, Walk, nodes_of

TakeStep = Callable[[Step], None]


@dataclass(frozen=True)
class Times:
    """Medians over split layers and tokens, in seconds.

    Attributes:
        device, host: either side alone; the device's with both copies. together: the whole.
    """

    device: float
    host: float
    together: float

    @property
    def ratio(self) -> float:
        """Of the whole to the sum of both sides."""
        return self.together / (self.device + self.host)


def parts(steps: Sequence[Step]) -> Iterator[tuple[int, int]]:
    """Begin and end of each split layer's steps."""
    begin = None
    for i, step in enumerate(steps):
        if isinstance(step, CopyDown) and (i == 0 or not isinstance(steps[i - 1], CopyDown)):
            begin = i
        elif begin is not None and any(node.op == "merge" for node in nodes_of(step)):
            yield begin, i + 1
            begin = None


def without_merge(steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """The device's steps of a split layer but for the merge, which must happen once; and the host's."""
    device: list[Step] = [step for step in steps[:-1] if isinstance(step, CopyDown | CopyUp | Launches)]
    host: list[Step] = [step for step in steps if isinstance(step, Walk)]
    return device, host


class Stopwatch:
    """Takes a run's steps in the executor's place, and times the split layers among them."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.seconds: list[tuple[float, float, float]] = []

    def __call__(self, steps: Sequence[Step], take: TakeStep) -> None:
        """Take all steps."""
        done = 0
        for begin, end in parts(steps):
            for step in steps[done:begin]:
                take(step)
            self._measure(steps[begin:end], take)
            done = end
        for step in steps[done:]:
            take(step)

    def _measure(self, steps: Sequence[Step], take: TakeStep) -> None:
        device, host = without_merge(steps)
        self._settle()
        times = [self._timed(device, take, settle=True)]
        times.append(self._timed(host, take, settle=False))
        times.append(self._timed(steps, take, settle=True))
        self.seconds.append((times[0], times[1], times[2]))

    def _timed(self, steps: Sequence[Step], take: TakeStep, settle: bool) -> float:
        started = perf_counter()
        for step in steps:
            take(step)
        if settle:
            self._settle()
        return perf_counter() - started

    def _settle(self) -> None:
        if self.executor.device is not None:
            self.executor.device.compute.synchronize()


def split_layers(executor: Executor) -> int:
    """How many layers of a token are split."""
    return len(list(parts(executor.steps(1))))


def measure(executor: Executor, seconds: float) -> Times:
    """Decode for some time, and time every split layer."""
    watch = Stopwatch(executor)
    executor.taking = watch
    try:
        end, i = perf_counter() + seconds, 0
        while i < 3 or perf_counter() < end:
            executor.run(np.array([3 + i % 100], np.int32), i % executor.n_ctx)
            i += 1
    finally:
        executor.taking = None
    warm = np.array(watch.seconds[split_layers(executor) :])
    device, host, together = np.median(warm, axis=0).tolist()
    return Times(device, host, together)
