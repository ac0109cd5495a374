"""One step of a sequence with a draft: a run of its last token and of what may follow it, and what of that stands."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from hotcold.engine.generation.draft import RunCosts
from hotcold.engine.generation.rows import Rows
from hotcold.engine.generation.token_sequence import TokenSequence
from hotcold.engine.host.steps import take_all
from hotcold.engine.run.executor import Executor


def run_ahead(
    executor: Executor,
    costs: RunCosts,
    sequence: TokenSequence,
    n_past: int,
    rows: Rows,
    slot: int = 0,
) -> list[int]:
    """Let a sequence's last token pass, and a draft of what follows it where one pays; give the draft.

    Args:
        costs: of the executor's runs; this one is heeded.
        n_past: position of that token.
        rows: at least 1; the first ones are filled with those after it and each of the draft.

    Raises:
        DeviceError: the device fails.
    """
    draft = sequence.draft(min(len(rows), executor.n_batch) - 1, costs)
    ids, started = np.array([sequence.ids[-1], *draft], np.int32), time.perf_counter()
    logits, candidates = rows.of_run(ids.size, [sequence])
    # nothing is sent: with the bits of single tokens
    executor.run(ids, n_past, logits, slot, sends=False, candidates=candidates)
    if executor.taking is take_all:  # a run that somebody looks at takes longer than others
        costs.measured(ids.size, time.perf_counter() - started)
    sequence.statistics.n_drafted += len(draft)
    return draft


def rows_that_stand(sequence: TokenSequence, draft: Sequence[int]) -> Iterator[int]:
    """Rows that `run_ahead` filled, for the sequence to accept one after the other: while it chooses what was drafted.

    The bits of each row are those of a run without a draft, and so are the random numbers: so is the text.
    """
    yield 0
    for row, token in enumerate(draft, 1):
        if not sequence.has_room or sequence.ids[-1] != token:
            return
        sequence.statistics.n_draft_accepted += 1
        yield row
