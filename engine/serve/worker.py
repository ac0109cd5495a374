"""The thread that the engine belongs to: tasks from a bounded queue, as many at a time as there are slots.

Each round lets a slice of one prompt pass in a run, and then, in another, a token of every answer that is under way.
What an answer says does not depend on the others: neither do its logits, and each chooses by its own seed.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hotcold.closing import Closing
from hotcold.engine.generation.draft import MAX_DRAFT
from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.logprobs import TokenLogprobs
from hotcold.engine.generation.lookahead import rows_that_stand
from hotcold.engine.generation.not_finite import overflow_warning
from hotcold.engine.generation.rows import Rows
from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.generation.slot import Slot, step
from hotcold.engine.generation.statistics import Statistics
from hotcold.engine.generation.token_sequence import TokenSequence
from hotcold.engine.run.look import Looks
from hotcold.errors import HotcoldError

MAX_WAITING = 64  # requests beside those that are answered
SLICE = 64  # tokens of a prompt that pass between two of the answers beside it


class Busy(HotcoldError):
    """The queue is full."""


class Closed(HotcoldError):
    """The server is ending."""


@dataclass(frozen=True)
class Piece:
    """Text that came, maybe none, and what is told of the tokens that brought it."""

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Done:
    """An answer's end.

    Attributes:
        statistics: of its sequence.
        warnings: what a user should know, one line each.
    """

    statistics: Statistics
    warnings: tuple[str, ...] = ()


Event = Piece | Done | BaseException


@dataclass(frozen=True)
class Continuation:
    """What is wanted of the model: to go on from a prompt. `settings` are checked."""

    ids: Sequence[int]
    settings: GenerationSettings


Work = Callable[[Engine, int, "Task"], Any]
"""Something else to do with the engine and a slot, whose caches it may write; its result is delivered."""


@dataclass(frozen=True)
class OnSlot:
    """Something to do with one slot, once no answer is under way in it; its result is delivered."""

    number: int
    do: Callable[[Slot], Any]


Wanted = Continuation | OnSlot | Work


@dataclass(eq=False)
class Task:
    """One thing to do for a request.

    Attributes:
        wanted: it.
        deliver: hears of its events, in the worker's thread; the last one is no Piece.
        wake: is called when it has heard of some, behind all that a round brought to anybody: whoever wakes up
            takes the interpreter from the worker.
        is_stopped: whether nobody waits for it any more; to be set from any thread.
    """

    wanted: Wanted
    deliver: Callable[[Any], None]
    wake: Callable[[], None] = lambda: None
    is_stopped: bool = False

    def stop(self) -> None:
        """End it after the step that runs at this moment."""
        self.is_stopped = True


@dataclass(eq=False)
class Running:
    """An answer under way.

    Attributes:
        in_prompt: whether its prompt has yet to pass.
        n_told: tokens whose probabilities were delivered.
    """

    task: Task
    slot: Slot
    sequence: TokenSequence
    in_prompt: bool = True
    n_told: int = 0


class Worker(Closing):
    """Does tasks in a thread of its own: each begins in the order in which they came.

    Attributes:
        engine: which nobody else may run meanwhile.
        ended: hears of every answer that has ended.
        looks: at the steps of answers.
        slots: all of them, in order.
    """

    def __init__(
        self,
        engine: Engine,
        max_waiting: int = MAX_WAITING,
        ended: Callable[[Statistics], None] = lambda statistics: None,
    ) -> None:
        self.engine, self.ended = engine, ended
        n_slots = engine.executor.n_slots
        self._max_places, self._n_places = max_waiting + n_slots, 0
        self._tasks, self._changed = deque[Task](), threading.Condition()
        self.slots = tuple(Slot(engine, i) for i in range(n_slots))
        self._free = list(self.slots)  # those that rest longest first
        self._deferred = list[tuple[int, Task]]()  # until a slot is free
        self._running = list[Running]()
        self._rows = Rows(engine.executor, max(n_slots, 1 + MAX_DRAFT))
        self._to_wake = set[Callable[[], None]]()
        self._turn, self.looks = -1, Looks(engine.executor)
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def take_place(self) -> None:
        """Reserve a request's place, until `free_place`.

        Raises:
            Busy: all are taken. Closed: the server is ending.
        """
        with self._changed:
            self._check_open()
            if self._n_places >= self._max_places:
                bound = f"at most {self._max_places} at a time"
                raise Busy("requests that wait or are answered", self._n_places, bound, "ask again later")
            self._n_places += 1

    def free_place(self) -> None:
        """Give a place back."""
        with self._changed:
            self._n_places -= 1

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("server", "ending", "it takes no further requests", "ask again later")

    @property
    def n_waiting(self) -> int:
        """Tasks that have not begun."""
        return len(self._tasks) + len(self._deferred)

    @property
    def running(self) -> tuple[Running, ...]:
        """Answers that are under way."""
        return tuple(self._running)

    @property
    def n_running(self) -> int:
        """Answers that are under way."""
        return len(self._running)

    @property
    def n_generated(self) -> int:
        """Tokens chosen so far in answers under way."""
        return sum(running.sequence.statistics.n_generated for running in tuple(self._running))

    @property
    def n_prompt(self) -> int:
        """Tokens of prompts that have passed for answers under way."""
        return sum(running.slot.n_passed for running in tuple(self._running))

    def submit(self, task: Task) -> None:
        """Let a task wait for its turn.

        Raises:
            Closed: the server is ending.
        """
        with self._changed:
            self._check_open()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hotcold-serve", daemon=True)
                self._thread.start()
            self._tasks.append(task)
            self._changed.notify()

    def close(self) -> None:
        """Stop what runs and what waits, and end the thread."""
        with self._changed:
            self._is_closed = True
            for task in (*self._tasks, *(running.task for running in self._running)):
                task.stop()
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while self._is_wanted():
            with self.engine.line.step(self):
                self._run_round()

    def _run_round(self) -> None:
        """Begin what has room, end what nobody waits for, and let everything go on a step."""
        while self._free and self._tasks:
            self._begin(self._tasks.popleft())
        for running in [each for each in self._running if each.task.is_stopped]:
            self._finish(running)
        for part in (self._wake, self._run_slice, self._wake, self._run_step, self._wake):
            part()

    def _tell(self, task: Task, event: Any) -> None:
        """Deliver something, and have who hears of it woken soon."""
        task.deliver(event)
        self._to_wake.add(task.wake)

    def _wake(self) -> None:
        while self._to_wake:
            self._to_wake.pop()()

    def _is_wanted(self) -> bool:
        """Wait for something to do; False at the end."""
        with self._changed:
            if not (self._tasks or self._running):
                self.engine.line.end(self)
            while not (self._tasks or self._running or self._is_closed):
                self._changed.wait()
            return bool(self._tasks or self._running)

    def _begin(self, task: Task) -> None:
        """Give a task a slot; what needs no steps is done at once."""
        try:
            if task.is_stopped or self._is_closed:
                raise Closed("request", "stopped", "before its turn", "ask again")
            self._heed_others()
            if isinstance(task.wanted, Continuation):
                self._begin_answer(task, task.wanted)
            elif isinstance(task.wanted, OnSlot):
                self._do_on_slot(task, task.wanted)
            else:
                slot = self._free[0]
                slot.forget()
                self._tell(task, task.wanted(self.engine, slot.number, task))
                self._turn = self.engine.turn
        except BaseException as error:  # noqa: BLE001 - one task's failure is its own
            self._tell(task, error)

    def _do_on_slot(self, task: Task, wanted: OnSlot) -> None:
        """Do what concerns one slot, or put it off until that is free."""
        slot = self.slots[wanted.number]
        if slot not in self._free:
            self._deferred.append((wanted.number, task))
            return
        self._free.remove(slot)
        self._free.append(slot)
        self._tell(task, wanted.do(slot))

    def _heed_others(self) -> None:
        """Whoever has used the engine otherwise, between tasks, has written the first slot's caches."""
        if self._turn != self.engine.turn:
            for slot in self._free:
                if slot.number == 0:
                    slot.forget()
        self._turn = self.engine.take_turn()

    def _begin_answer(self, task: Task, wanted: Continuation) -> None:
        engine = self.engine
        statistics = Statistics(engine.load_seconds, len(wanted.ids))
        sequence = TokenSequence(engine.tokenizer, wanted.ids, wanted.settings, engine.n_ctx, statistics)
        slot = self._slot_for(wanted.ids)
        slot.begin(sequence)
        self._free.remove(slot)
        running = Running(task, slot, sequence)
        with self._changed:
            self._running.append(running)
        if not sequence.has_room:
            self._finish(running)

    def _slot_for(self, ids: Sequence[int]) -> Slot:
        """The free slot that holds most of a prompt's beginning, if half of it; else the one that rests longest."""
        best = max(self._free, key=lambda slot: slot.n_alike(ids))
        return best if 2 * best.n_alike(ids) >= len(ids) else self._free[0]

    def _run_slice(self) -> None:
        """Let some of the first prompt that is not through pass; a last token passes in a step, if others do."""
        in_step = [each for each in self._running if not each.in_prompt or each.slot.lacks_one]
        for each in in_step if len(in_step) > 1 else ():
            each.in_prompt = False
        running = next((each for each in self._running if each.in_prompt), None)
        if running is None:
            return
        try:
            running.in_prompt = not running.slot.run_slice(self._most_of(running.slot), self._rows)
        except BaseException as error:  # noqa: BLE001 - one task's failure is its own
            self._fail([running], error)
            return
        if not running.in_prompt:
            self._accept(running, 0)

    def _most_of(self, slot: Slot) -> int:
        """Tokens of a prompt's next slice: a whole batch where no answer waits, or where rows are sent for it.

        Those are sent once for many tokens as for few, and so are for the same ones with others and without.
        """
        n_batch, sends_for = self.engine.n_batch, self.engine.executor.sends_for
        is_whole = len(self._running) == 1 or sends_for(min(slot.n_lacking, n_batch))
        return n_batch if is_whole else min(n_batch, SLICE)

    def _run_step(self) -> None:
        """Let one token of every answer that has begun pass; of one alone with what may follow it."""
        some = [each for each in self._running if not each.in_prompt]
        if not some:
            return
        try:
            with self.looks.of_next():
                draft = step(self.engine, [each.slot for each in some], self._rows)
        except BaseException as error:  # noqa: BLE001 - it is told to all whom it concerns
            self._fail(some, error)
            return
        for first, running in enumerate(some):
            for row in rows_that_stand(running.sequence, draft):
                if row:
                    running.slot.held.append(draft[row - 1])
                    running.sequence.statistics.n_decoded += 1
                self._accept(running, first + row)
                if running not in self._running:
                    break

    def _accept(self, running: Running, row: int) -> None:
        """Choose a token, deliver what it brings, and end the answer where it ends."""
        engine, sequence = self.engine, running.sequence
        try:
            text = self._rows.accept(row, sequence, engine.executor, engine.file)
        except BaseException as error:  # noqa: BLE001 - one task's failure is its own
            self._fail([running], error)
            return
        if not sequence.has_room:
            self._finish(running, text)
        elif text:
            self._deliver(running, text)

    def _deliver(self, running: Running, text: str) -> None:
        told = running.sequence.logprobs[running.n_told :]
        running.n_told += len(told)
        self._tell(running.task, Piece(text, tuple(told)))

    def _finish(self, running: Running, text: str = "") -> None:
        """Deliver what is left of an answer and its end, and free its slot."""
        sequence, slot = running.sequence, running.slot
        if (text := text + sequence.end()) or len(sequence.logprobs) > running.n_told:
            self._deliver(running, text)
        found = overflow_warning(self.engine.executor, len(slot.held), slot=slot.number)
        first = self.engine.first_prompt.warnings if slot.is_first else ()
        self._release(running)
        self._tell(running.task, Done(sequence.statistics, (*slot.warnings, *first, *filter(None, (found,)))))

    def _fail(self, some: Sequence[Running], error: BaseException) -> None:
        """Tell an error to those whose answers it ends; their caches may hold anything."""
        for running in some:
            running.slot.forget()
            self._release(running)
            self._tell(running.task, error)

    def _release(self, running: Running) -> None:
        self.ended(running.sequence.statistics)
        with self._changed:
            self._running.remove(running)
            number = running.slot.number
            self._tasks.extendleft(task for n, task in reversed(self._deferred) if n == number)
            self._deferred = [(n, task) for n, task in self._deferred if n != number]
        self._free.append(running.slot)
