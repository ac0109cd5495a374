"""One step of a sequence with a draft: a run of its last token and of what may follow it, and what of that stands."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.draft import RunCosts
from hotcold.engine.generation.token_sequence import TokenSequence
from hotcold.engine.host.steps import take_all
from hotcold.engine.run.executor import Executor


def run_ahead(
    executor: Executor,
    costs: RunCosts,
    sequence: TokenSequence,
    n_past: int,
    logits: NDArray[np.float32],
    slot: int = 0,
) -> list[int]:
    """Let a sequence's last token pass, and a draft of what follows it where one pays; give the draft.

    Args:
        costs: of the executor's runs; this one is heeded.
        n_past: position of that token.
        logits: float32 [at least 1, n_vocab]; the first ones are filled with those after it and each of the draft.

    Raises:
        DeviceError: the device fails.
    """
    draft = sequence.draft(min(len(logits), executor.n_batch) - 1, costs)
    ids, started = np.array([sequence.ids[-1], *draft], np.int32), time.perf_counter()
    executor.run(ids, n_past, logits[: ids.size], slot, sends=False)  # with the bits of single tokens
    if executor.taking is take_all:  # a run that somebody looks at takes longer than others
        costs.measured(ids.size, time.perf_counter() - started)
    sequence.statistics.n_drafted += len(draft)
    return draft


def rows_that_stand(sequence: TokenSequence, draft: Sequence[int]) -> Iterator[int]:
    """Rows of `run_ahead`'s logits, for the sequence to accept one after the other: while it chooses what was drafted.

    The bits of each row are those of a run without a draft, and so are the random numbers: so is the text.
    """
    yield 0
    for row, token in enumerate(draft, 1):
        if not sequence.has_room or sequence.ids[-1] != token:
            return
        sequence.statistics.n_draft_accepted += 1
        yield row
