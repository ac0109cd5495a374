"""A slot: a KV cache, what it holds, and the sequence that goes on in it, a slice or a token at a time."""

import time
from collections.abc import Sequence

import numpy as np

from hotcold.engine.generation.generation import ROLLED_OVER, Engine
from hotcold.engine.generation.lookahead import run_ahead
from hotcold.engine.generation.rows import Rows
from hotcold.engine.generation.token_sequence import TokenSequence, n_alike


class Slot:
    """One of an engine's KV caches.

    Attributes:
        number: of its caches.
        held: ids whose keys and values are there.
        sequence: what goes on in it, or went on last; None before the first.
        warnings: what a user should know of this sequence, one line each.
        is_first: whether its prompt was the engine's first, which tells something of the model.
    """

    def __init__(self, engine: Engine, number: int) -> None:
        self._engine, self.number = engine, number
        self.held, self.warnings = list[int](), tuple[str, ...]()
        self.sequence: TokenSequence | None = None
        self.is_first = False

    def n_alike(self, ids: Sequence[int]) -> int:
        """How many ids at the beginning of `ids` are held, and need not run again for what follows them."""
        return min(n_alike(self.held, ids), len(ids) - 1)

    @property
    def n_passed(self) -> int:
        """Tokens of the sequence's prompt that have passed here."""
        if self.sequence is None:
            return 0
        n = min(len(self.held), len(self.sequence.prompt_ids))
        return max(0, n - self.sequence.statistics.n_reused)

    def forget(self) -> None:
        """Hold nothing: somebody else writes the caches."""
        self.held = []

    def begin(self, sequence: TokenSequence) -> None:
        """Let a sequence take the place of what was here; what both begin with alike does not run again."""
        n_reused = self.n_alike(sequence.prompt_ids)
        self.sequence, self.warnings, self.is_first = sequence, (), False
        if not self._engine.executor.slots.can_go_on(n_reused, self.number):
            n_reused, self.warnings = 0, (ROLLED_OVER,)
        self.held = self.held[:n_reused]
        sequence.statistics.n_reused = n_reused

    @property
    def next_id(self) -> int:
        """The token that has to pass next: the one chosen last, or the prompt's last before any is chosen."""
        assert self.sequence is not None
        return (self.sequence.ids or self.sequence.prompt_ids)[-1]

    @property
    def lacks_one(self) -> bool:
        """Whether one token is left of the prompt, which may pass like one that was chosen."""
        return self.n_lacking == 1 and self._engine.first_prompt.is_over

    @property
    def n_lacking(self) -> int:
        """Tokens of the prompt that have yet to pass."""
        assert self.sequence is not None
        return len(self.sequence.prompt_ids) - len(self.held)

    def run_slice(self, most: int, rows: Rows) -> bool:
        """Let up to `most` tokens of the prompt pass; whether the first row has the logits after its last one.

        Raises:
            DeviceError: the device fails.
        """
        assert self.sequence is not None
        started, n_past = time.perf_counter(), len(self.held)
        ids = self.sequence.prompt_ids[n_past : n_past + most]
        is_last = n_past + len(ids) == len(self.sequence.prompt_ids)
        logits, _ = rows.of_run(1)
        self._engine.run_prompt(np.array(ids, np.int32), n_past, logits if is_last else None, self.number)
        self.held += ids
        if is_last and not self.number and not self._engine.first_prompt.is_over:
            self.is_first = self._engine.first_prompt.is_over = True
        self.sequence.statistics.prompt_seconds += time.perf_counter() - started
        return is_last


def step(engine: Engine, slots: Sequence[Slot], rows: Rows) -> list[int]:
    """Let the next token of each slot's sequence pass, all in one run; of one alone with a draft, where one pays.

    Args:
        rows: at least n_slots, filled with those after each, or after it and each of its draft.

    Returns:
        The draft: see `rows_that_stand`.

    Raises:
        DeviceError: the device fails.
    """
    started, draft = time.perf_counter(), list[int]()
    ids = [slot.next_id for slot in slots]
    if len(slots) == 1 and (alone := slots[0].sequence) is not None:
        place = len(slots[0].held), rows, slots[0].number
        draft = run_ahead(engine.executor, engine.run_costs, alone, *place)
    else:
        places = [len(slot.held) for slot in slots], [slot.number for slot in slots]
        sequences = [slot.sequence for slot in slots if slot.sequence is not None]
        engine.executor.run_apart(np.array(ids, np.int32), *places, *rows.of_run(len(ids), sequences))
    seconds = time.perf_counter() - started
    for slot, token in zip(slots, ids, strict=True):
        slot.held.append(token)
        if slot.sequence is not None:
            statistics = slot.sequence.statistics
            if slot.sequence.ids:
                statistics.n_decoded += 1
                statistics.decode_seconds += seconds
            else:
                statistics.prompt_seconds += seconds
    return draft
