"""How long a split layer takes, and how long its two sides take alone, within real runs.

A split layer's part of a run begins with the copy down and ends with the merge. Three runs take turns: in
one the device's launches and the copies are timed, in one the walk of the cold rows, in one the whole, as
the engine does it. So each finds caches as a run leaves them: no rows have just been read by the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from hotcold.engine.device.steps import CopyDown, Launches
from hotcold.engine.host.steps import Context, Step, Walk, take_all
from hotcold.engine.run.executor import Executor


@dataclass(frozen=True)
class Times:
    """Medians over split layers and tokens, in seconds.

    Attributes:
        device, host: either side alone; the device's with the copy down.
        together: the whole.
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
        elif begin is not None and any(node.op == "merge" for node in step.nodes):
            yield begin, i + 1
            begin = None


def without_merge(steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """The device's steps of a split layer but for the merge, which must happen once; and the host's."""
    device: list[Step] = [step for step in steps[:-1] if isinstance(step, CopyDown | Launches)]
    host: list[Step] = [step for step in steps if isinstance(step, Walk)]
    return device, host


class Stopwatch:
    """Takes a run's steps in the executor's place, and times one thing in each split layer.

    Attributes:
        what: the thing, "device", "host" or "together".
        seconds: of each, one figure a layer and run.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor, self.what = executor, "together"
        self.seconds: dict[str, list[float]] = {"device": [], "host": [], "together": []}

    def __call__(self, steps: Sequence[Step], context: Context) -> None:
        """Take all steps."""
        done = 0
        for begin, end in parts(steps):
            take_all(steps[done:begin], context)
            self._settle()
            self._measure(steps[begin:end], context)
            done = end
        take_all(steps[done:], context)

    def _measure(self, steps: Sequence[Step], context: Context) -> None:
        device, host = without_merge(steps)
        if self.what == "device":
            self._timed(device, context)
        elif self.what == "host":  # the cold rows need what was copied down
            take_all(device, context)
            self._settle()
            self._timed(host, context)
        else:
            self._timed(steps, context)
            return
        take_all(steps, context)

    def _timed(self, steps: Sequence[Step], context: Context) -> None:
        started = perf_counter()
        take_all(steps, context)
        if self.what != "host":
            self._settle()
        self.seconds[self.what].append(perf_counter() - started)

    def _settle(self) -> None:
        for device in self.executor.devices:
            device.compute.synchronize()
            device.crossing.synchronize()


def split_layers(executor: Executor) -> int:
    """How many layers of a token are split."""
    return len(list(parts(executor.run_steps.of(1))))


def measure(executor: Executor, seconds: float) -> Times:
    """Decode for some time, and time every split layer."""
    watch, n_layers = Stopwatch(executor), split_layers(executor)
    executor.taking = watch
    try:
        end, i = perf_counter() + seconds, 0
        while i < 2 or perf_counter() < end:
            for what in watch.seconds:
                watch.what = what
                executor.run(np.array([3 + i % 100], np.int32), i % executor.n_ctx)
            i += 1
    finally:
        executor.taking = take_all
    warm = {what: float(np.median(times[n_layers:])) for what, times in watch.seconds.items()}
    return Times(**warm)
