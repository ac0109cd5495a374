"""One run looked at closely: where its time goes, and which experts its tokens go to."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.graph import layer_of
from hotcold.engine.graph.placed import CPU
from hotcold.engine.host.steps import Context, Step, take_all
from hotcold.engine.run.choices import chosen_ids
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.trace import Taken, Tracing

PREDICTOR, DEVICE, BUS = "predictor", "device", "bus"
ATTENTION, FFN, HEAD, REST = "CPU: attention", "CPU: FFN", "CPU: head", "CPU: the rest"
PARTS = (PREDICTOR, DEVICE, BUS, FFN, ATTENTION, HEAD, REST)
SECONDS_BETWEEN = 0.4  # two looks, however often somebody asks
KEPT = 16  # kinds of runs whose records are kept
_OF_CPU = {"rope": ATTENTION, "kv_store": ATTENTION, "attention": ATTENTION, "logits": HEAD, "top_k": FFN}


@dataclass(frozen=True)
class Look:
    """What one run did.

    Attributes:
        n_tokens: that passed.
        n_before: tokens that had passed since loading.
        seconds: by part, each step waited for, so that nothing runs beside anything else.
        chosen: tokens that went to each expert, int64 [n_layer, n_expert]; none of a model without experts.
        device_listed: rows that the device's masks have listed since loading, uint32 [n_layer], wrapping.
    """

    n_tokens: int
    n_before: int
    seconds: dict[str, float]
    chosen: NDArray[np.int64]
    device_listed: NDArray[np.uint32]


def part_of(op: str, side: str) -> str:
    """The part that a node belongs to."""
    if op in ("copy", "predictor"):
        return BUS if op == "copy" else PREDICTOR
    if side != CPU:
        return DEVICE
    return FFN if op.endswith("_ffn") else _OF_CPU.get(op, REST)


@dataclass
class _Looking:
    """Hears of a run's nodes."""

    executor: Executor
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    n_tokens: int = 0

    def __post_init__(self) -> None:
        model = self.executor.model
        self.chosen = np.zeros((model.n_layer, model.experts.n_expert if model.experts else 0), np.int64)

    def hear(self, taken: Taken) -> None:
        if taken.node is taken.together[0]:
            self.seconds[part_of(taken.node.op, taken.side)] += taken.seconds
        if taken.node.op == "top_k":
            ids = chosen_ids(self.executor, taken.node.output, self.n_tokens, taken.side)
            np.add.at(self.chosen[layer_of(taken.node)], ids.ravel(), 1)


class Looks:
    """Looks at a run now and then: at the next one after `ask`, which takes some more time for it.

    Attributes:
        last: the last look; None before the first.
        number: how many there have been.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor, self._is_asked = executor, False
        self._tracing: dict[int, tuple[Sequence[Step], Tracing]] = {}  # by the identity of the steps
        self._looking, self._next = _Looking(executor), 0.0
        self.last: Look | None = None
        self.number = 0

    def ask(self) -> None:
        """Look at the next run; from any thread."""
        self._is_asked = True

    @contextmanager
    def of_next(self) -> Iterator[None]:
        """Look at the run inside, if that was asked for and nobody else looks already."""
        executor = self._executor
        if not self._is_asked or time.monotonic() < self._next or executor.taking is not take_all:
            yield
            return
        self._is_asked, self._looking = False, _Looking(executor)
        self._next = time.monotonic() + SECONDS_BETWEEN
        executor.taking = self._take
        try:
            yield
        finally:
            executor.taking = take_all
        found = self._looking
        n_before = executor.n_tokens - found.n_tokens
        self.last = Look(
            found.n_tokens, n_before, dict(found.seconds), found.chosen, executor.device_counts()
        )
        self.number += 1

    def _take(self, steps: Sequence[Step], context: Context) -> None:
        """The steps of a run, traced; the records of the last kinds of runs are kept, each apart."""
        if id(steps) not in self._tracing:
            if len(self._tracing) >= KEPT:
                del self._tracing[next(iter(self._tracing))]
            self._tracing[id(steps)] = steps, Tracing(self._executor, lambda taken: self._looking.hear(taken))
        self._looking.n_tokens = context.n_tokens
        self._tracing[id(steps)][1](steps, context)
