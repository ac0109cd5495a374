"""The walk: n threads go through a program's op records together, in machine code.

An op is cut into chunks; a thread claims chunks from an atomic cell and goes on when all chunks of the op are
*done*, not when all threads have arrived: a thread that lost its core between two chunks delays nobody, and the
caller alone can finish. Cells carry the number of the round, so a thread that comes back late finds its claim
refused.

The caller enters by `lead`, once a walk. The others enter by `attend`, once in the team's life: they wait for the
next walk in compiled code and never take Python's lock.
"""

from hotcold.kernels.cpu import atomics, mailbox, program
from hotcold.kernels.cpu.compiled import compiled, entry, record, run_op
from hotcold.kernels.cpu.operations import load_i64, store_i64

WOKEN_BY_CALLER, WOKEN = 1, 2  # threads that one wakes, each of which wakes others: nobody is long about it
PAUSES = 32  # between two looks at the clock
SPINS = 4000  # pauses before a waiting thread gives its core away
RECORD_BYTES = program.OP.itemsize


@compiled
def _is_matrix(code: int) -> bool:
    """Whether an op reads all rows of a matrix in order."""
    return (
        code == program.MAT_VEC or code == program.MUL_MAT or code == program.LOGITS or code == program.GATED
    )


@compiled
def _claim(cell: int, number: int, chunks: int, parts: int) -> tuple[int, int]:
    """The next chunks of this round's op: the first, and how many.

    A thread takes one of `parts` parts of what is left, so that it reads long runs of memory at first and
    nobody waits long at the end. Gives (chunks, 0) when none is left, (-1, 0) to a thread that is late.
    """
    while True:
        value = atomics.atomic_load(cell)
        at = value >> 32
        if at > number:
            return -1, 0
        c = value & 0xFFFFFFFF if at == number else 0
        if c >= chunks:
            return chunks, 0
        n = max(1, (chunks - c) // parts)
        if atomics.atomic_swap_if(cell, value, (number << 32) + c + n):
            return c, n


@compiled
def _walk(number: int, ops: int, n_ops: int, run: int, n_threads: int, scratch: int) -> None:
    """Run every op of round `number` (1, 2, ...) together with whoever else is walking.

    Args:
        ops: address of n_ops records of dtype OP. run: of the run parameters.
        n_threads: of the team; decides how many chunks are claimed at once, never what they compute.
        scratch: address of THREAD_SCRATCH_BYTES, and room for a record, that no other thread uses.
    """
    for cell in range(ops, ops + n_ops * RECORD_BYTES, RECORD_BYTES):
        op = record(cell)
        # parts of a matrix cost the same and want long runs; others may differ, and are shared more finely
        is_even = _is_matrix(op.code) or op.code == program.DOWN_ROWS or op.code == program.EXPERT_ROWS
        parts = n_threads if is_even else 2 * n_threads
        while True:
            first, n = _claim(cell, number, op.chunks, parts)
            if first < 0:
                return
            if n == 0:
                break
            run_op(op.code, cell, first, n, run, scratch)
            atomics.atomic_add(cell + 8, n)
        spins = 0
        while atomics.atomic_load(cell + 8) < number * op.chunks:
            atomics.pause()
            spins += 1
            if spins > SPINS:
                atomics.sched_yield()


@compiled
def _wake(box: int, n: int) -> None:
    """Wake up to n of those who sleep."""
    if atomics.atomic_add(box + mailbox.SLEEPERS, 0) > 0:
        atomics.wake(box + mailbox.POSTED, n)


@entry("lead", 4)
def lead(box: int, head: int, n_threads: int, scratch: int) -> None:
    """The caller's part: the next round of a program, walked to its end together with whoever is there.

    Args:
        box: address of the team's mailbox. head: address of the program's N_HEAD cells.
        n_threads, scratch: see `_walk`.
    """
    number, ops = load_i64(head + mailbox.ROUND) + 1, load_i64(head + mailbox.RECORDS)
    n_ops, run = load_i64(head + mailbox.N_RECORDS), load_i64(head + mailbox.PARAMETERS)
    store_i64(head + mailbox.ROUND, number)
    if n_threads > 1:
        job = box + mailbox.JOB
        atomics.atomic_add(box + mailbox.POSTED, 1)
        atomics.atomic_store(job + mailbox.ROUND, number)
        atomics.atomic_store(job + mailbox.RECORDS, ops)
        atomics.atomic_store(job + mailbox.N_RECORDS, n_ops)
        atomics.atomic_store(job + mailbox.PARAMETERS, run)
        atomics.atomic_add(box + mailbox.POSTED, 1)
        _wake(box, WOKEN_BY_CALLER)
    _walk(number, ops, n_ops, run, n_threads, scratch)


@compiled
def _posted_after(box: int, seen: int, linger: int) -> int:
    """What is posted, once it is whole and not what was seen: watch for it for some time, then sleep."""
    until = 0
    while True:
        for _ in range(PAUSES):
            posted = atomics.atomic_load(box + mailbox.POSTED)
            if posted != seen and posted & 1 == 0:
                return posted
            if linger == 0 and posted == seen:
                break
            atomics.pause()
        if linger > 0:
            now = atomics.nanoseconds()
            if until == 0:
                until = now + linger
            if now < until:
                atomics.sched_yield()
                continue
        if posted == seen:
            atomics.atomic_add(box + mailbox.SLEEPERS, 1)
            atomics.sleep_while(box + mailbox.POSTED, seen)
            atomics.atomic_add(box + mailbox.SLEEPERS, -1)
            until = 0
        else:
            atomics.sched_yield()


@entry("attend", 5)
def attend(box: int, at: int, n_threads: int, linger: int, scratch: int) -> None:
    """Another thread's part: all walks from now on, as far as it comes in time, until the team closes.

    Args:
        box: address of the team's mailbox. at: of the thread's own cell in it.
        linger: nanoseconds to watch for the next walk before the thread sleeps.
        n_threads, scratch: see `_walk`.
    """
    job, seen = box + mailbox.JOB, 0
    while True:
        seen = _posted_after(box, seen, linger)
        atomics.atomic_store(at, seen)
        number, ops = atomics.atomic_load(job + mailbox.ROUND), atomics.atomic_load(job + mailbox.RECORDS)
        n_ops = atomics.atomic_load(job + mailbox.N_RECORDS)
        run = atomics.atomic_load(job + mailbox.PARAMETERS)
        # a write as well: whoever posts the next job then sees which one this thread looks at
        if atomics.atomic_add(box + mailbox.POSTED, 0) == seen:
            _wake(box, WOKEN)
            if ops == 0:
                return
            _walk(number, ops, n_ops, run, n_threads, scratch)
        atomics.atomic_store(at, mailbox.NOWHERE)
