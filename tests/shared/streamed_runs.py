"""Runs whose rows are sent to an emulated device, and runs for which they lie there before."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from split_runs import Logits, OpenEmulated

from hotcold.engine.device.sending import Await, Release, Send, Sender
from hotcold.engine.device.store import DeviceStore, loaded_stores
from hotcold.engine.graph.placed import GPU
from hotcold.engine.host.steps import Context, Step, take_all
from hotcold.engine.plan.plan import Ids, Plan
from hotcold.engine.plan.streaming import streaming_of
from hotcold.engine.run.executor import Executor
from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.device import Device

LEAST = 3


def with_streaming(plan: Plan) -> Plan:
    """A plan with two staging buffers beside what it takes: a model of two layers is too small to choose them."""
    streaming = streaming_of(plan, plan.batch.graph, LEAST)
    assert streaming is not None
    (card,) = plan.cards
    staging = 2 * streaming.buffer_bytes(card.layers)
    totals = replace(
        card.totals,
        arena=max(card.totals.arena, streaming.graph.arenas[GPU].n_bytes),
        staging=staging,
        budget=card.totals.budget + staging,
    ).padded()
    return replace(plan, streaming=streaming, cards=(replace(card, totals=totals),))


def sender_of(executor: Executor) -> Sender:
    assert executor._cards is not None and executor._cards.sides[0].sender is not None
    return executor._cards.sides[0].sender


def logits_in_runs(executor: Executor, ids: Ids, sizes: Sequence[int], slot: int = 0) -> Logits:
    """Logits after every token, in runs of so many."""
    out, start = np.zeros((len(ids), executor.model.n_vocab), np.float32), 0
    for size in sizes:
        executor.run(ids[start : start + size], start, out[start : start + size], slot)
        start += size
    return out


def there_first(self: DeviceStore) -> None:
    """In place of `_place_sent`: memory of its own for each piece."""
    assert self.plan.streaming is not None
    for piece in self.plan.streaming.pieces:
        self._place_piece(piece, self.device.empty(piece.n_bytes, np.uint8))


def take_without_sending(steps: Sequence[Step], context: Context) -> None:
    take_all([step for step in steps if not isinstance(step, Send | Await | Release)], context)


@contextmanager
def all_there(
    plan: Plan, file: Any, open_emulated: OpenEmulated, patch: pytest.MonkeyPatch
) -> Iterator[Executor]:
    """An executor that has every piece on the device before it runs, and sends nothing while it does."""
    with patch.context() as inner:
        inner.setattr(DeviceStore, "_place_sent", there_first)
        device = open_emulated(build_kind="fast")
        with Executor(plan, file, 2, loaded_stores((device,), plan, file)) as executor:
            for number in range(len(sender_of(executor).pieces)):
                sender_of(executor).send(number, executor._check_open())
            device.synchronize()
            executor.taking = take_without_sending
            yield executor


def last_failure(
    device: Device, kind: str, numbers: Iterable[int], want: Logits, run: Callable[[], Logits]
) -> int:
    """The last of a run's calls of a kind, by its number, that could fail; whatever failed, the next run is right."""
    failed = 0
    for n in numbers:
        device.fail_at(kind, n)
        try:
            assert run().tobytes() == want.tobytes()
            break
        except DeviceError as error:
            assert "as fail_at asked" in str(error)
            failed = n
        assert run().tobytes() == want.tobytes(), (kind, n)
    device.fail_at(kind, 1 << 30)
    return failed
