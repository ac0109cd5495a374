"""One thread team, one walk: n threads go through a program's op records together, without Python.

Python starts a walk once a token or prompt batch, or once a split layer; `walk.py` is what a thread does then. The
other threads are in compiled code for as long as the team lives, and find the next walk in a mailbox.
"""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.closing import Closing
from hotcold.errors import DoesNotFitError
from hotcold.kernels.cpu import machine_code, mailbox, program
from hotcold.kernels.cpu.program import THREAD_SCRATCH_BYTES

LINGER_NANOSECONDS = 300_000
"""How long a thread that has a core of its own watches for the next walk: the device's part of a split layer."""
MANY_PROGRAMS = 256
"""Programs that are held before those are let go that no thread can still look at."""


class Program:
    """Op records and the number of rounds that have been walked.

    Attributes:
        run: the run parameters, int64 [N_PARAMETERS]; several programs may share them.
        head: what a walk takes: see `mailbox.py`.
    """

    def __init__(self, ops: list[dict[str, Any]], run: NDArray[np.int64] | None = None) -> None:
        self.ops = program.assemble(ops)
        machine_code.prepare(self.ops)
        self.run = np.zeros(program.N_PARAMETERS, np.int64) if run is None else run
        self._make_head()

    def _make_head(self) -> None:
        cells = [0, self.ops.ctypes.data, self.ops.size, self.run.ctypes.data]
        self._head = np.array(cells, np.int64)
        self.head = int(self._head.ctypes.data)

    def part(self, first: int, stop: int) -> "Program":
        """The records from first to stop as a program of their own, without making them again."""
        return self._of(self.ops[first:stop])

    def with_more(self, more: list[tuple[int, list[dict[str, Any]]]]) -> "Program":
        """A program that has further records in front of some: (the record's number, ascending; they)."""
        pieces, first = [], 0
        for at, records in more:
            pieces += [self.ops[first:at], program.assemble(records)]
            machine_code.prepare(pieces[-1])
            first = at
        return self._of(*pieces, self.ops[first:])

    def _of(self, *pieces: NDArray[np.void]) -> "Program":
        made = Program([], self.run)
        made.ops = program.aligned(sum(piece.nbytes for piece in pieces)).view(program.OP)
        np.concatenate(pieces, out=made.ops)
        made.ops["claim"] = made.ops["done"] = 0
        made._make_head()
        return made


class Team(Closing):
    """n threads, the caller among them; one walk at a time.

    The caller takes part, so with n = 1 there is no other thread. Threads sleep between walks.

    Attributes:
        walked: seconds of what whoever uses the team counts there.

    Raises:
        DoesNotFitError: the system starts no more threads; those that it did start have ended.
    """

    def __init__(self, n: int, lingers: bool = False) -> None:
        """Start the threads.

        Args:
            lingers: whether the threads watch for the next walk for a while before they sleep. For those who walk
                again within that time, and have a core for each thread.
        """
        self.n, self.walked = n, 0.0
        self._lead = machine_code.entry("lead", None, 4)
        self._attend: Any = machine_code.entry("attend", None, 5) if n > 1 else None
        self._linger = LINGER_NANOSECONDS if lingers else 0
        self._memory = [program.aligned(THREAD_SCRATCH_BYTES + program.OP.itemsize) for _ in range(n)]
        self._scratch = [int(memory.ctypes.data) for memory in self._memory]
        self._box = program.aligned(mailbox.size(n))
        self._looks = mailbox.looks(self._box)
        self._looks[:] = mailbox.NOWHERE
        self._address = int(self._box.ctypes.data)
        self._over = Program([])
        self._over._head[1] = 0  # a job without records, at no address
        self._held: set[Program] = set()  # whose records a late thread may still look at
        self._last: Program | None = None
        self._threads: list[threading.Thread] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        for i in range(self.n - 1):
            thread = threading.Thread(target=self._serve, args=(i,), name=f"hotcold-{i + 1}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                bound = f"the system starts {i + 1} of them"
                raise DoesNotFitError("threads", self.n, bound, "lower -t") from error
            self._threads.append(thread)

    def walk(self, job: Program) -> None:
        """Run the program once, with its run parameters as they stand.

        One call of C code counts the round, tells the others and walks to the round's end, so a Ctrl-C raises
        before all of it or behind. Threads that come late look at the program's records, so they are held.
        """
        if job not in self._held:
            self._hold(job)
        self._last = job
        self._lead(self._address, job.head, self.n, self._scratch[-1])

    def _hold(self, job: Program) -> None:
        if len(self._held) >= MANY_PROGRAMS and (self._looks == mailbox.NOWHERE).all():
            self._held.clear()
            if self._last is not None:  # what is posted, a thread may begin to look at
                self._held.add(self._last)
        self._held.add(job)

    def close(self) -> None:
        """End the threads; a late one may still look at the last program, so it is waited for."""
        if self._threads:
            self.walk(self._over)
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._held.clear()
        self._last = None

    def _serve(self, i: int) -> None:
        own = self._address + mailbox.AT + i * mailbox.LINE
        self._attend(self._address, own, self.n, self._linger, self._scratch[i])
