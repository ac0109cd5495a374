"""One thread team, one walk: n threads go through a program's op records together, without Python.

Python starts a walk once a token or prompt batch; `walk.py` is what a thread does then.
"""

import threading
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.closing import Closing
from hotcold.errors import DoesNotFitError
from hotcold.kernels.cpu import machine_code, program
from hotcold.kernels.cpu.program import THREAD_SCRATCH_BYTES


class Program:
    """Op records and the number of rounds that have been walked.

    Attributes:
        run: the run parameters, int64 [N_PARAMETERS]; several programs may share them.
        addresses: of the records, their number, and the address of the run parameters, as the walk takes them.
    """

    def __init__(self, ops: list[dict[str, Any]], run: NDArray[np.int64] | None = None) -> None:
        self.ops = program.assemble(ops)
        machine_code.prepare(self.ops)
        self.run = np.zeros(program.N_PARAMETERS, np.int64) if run is None else run
        self.number = 0
        self._note_addresses()

    def _note_addresses(self) -> None:
        self.addresses = int(self.ops.ctypes.data), self.ops.size, int(self.run.ctypes.data)

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
        made._note_addresses()
        return made


Job = tuple[Program, int]
"""A program and the number of the round that is to be walked."""


class Team(Closing):
    """n threads, the caller among them; one walk at a time.

    The caller takes part, so with n = 1 there is no other thread. Threads sleep between walks.

    Attributes:
        walked: seconds of what whoever uses the team counts there.

    Raises:
        DoesNotFitError: the system starts no more threads; those that it did start have ended.
    """

    def __init__(self, n: int) -> None:
        self.n, self.walked = n, 0.0
        self._kernel = machine_code.entry("walk", None, 6)
        self._memory = [program.aligned(THREAD_SCRATCH_BYTES + program.OP.itemsize) for _ in range(n)]
        self._scratch = [int(memory.ctypes.data) for memory in self._memory]
        # queues of C code: a Ctrl-C in the middle of Python's own semaphores would leave a thread asleep
        self._jobs = [SimpleQueue[Job | None]() for _ in range(n - 1)]
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

        A Ctrl-C raises after a call of C code at the earliest, so the round is walked to its end whatever
        happens: threads that were woken read the caller's memory, and rounds are counted without gaps.
        """
        number = job.number = job.number + 1
        try:
            for jobs in self._jobs:
                jobs.put((job, number))
        finally:
            self._kernel(number, *job.addresses, self.n, self._scratch[-1])

    def close(self) -> None:
        """End the threads; a late one may still look at the last program, so it is waited for."""
        for jobs in self._jobs:
            jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _serve(self, i: int) -> None:
        while (job := self._jobs[i].get()) is not None:
            program_of_job, number = job
            self._kernel(number, *program_of_job.addresses, self.n, self._scratch[i])
