"""The walk: n threads go through a program's op records together, in machine code.

An op is cut into chunks; a thread claims chunks from an atomic cell and goes on when all chunks of the op are
*done*, not when all threads have arrived: a thread that lost its core between two chunks delays nobody, and the
caller alone can finish. Cells carry the number of the round, so a thread that comes back late finds its claim
refused.
"""

from hotcold.kernels.cpu import operations, program
from hotcold.kernels.cpu.compiled import compiled, entry, record, run_op

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
        value = operations.atomic_load(cell)
        at = value >> 32
        if at > number:
            return -1, 0
        c = value & 0xFFFFFFFF if at == number else 0
        if c >= chunks:
            return chunks, 0
        n = max(1, (chunks - c) // parts)
        if operations.atomic_swap_if(cell, value, (number << 32) + c + n):
            return c, n


@entry("walk", 6)
def walk(number: int, ops: int, n_ops: int, run: int, n_threads: int, scratch: int) -> None:
    """Run every op of round `number` (1, 2, ...) together with whoever else is walking.

    Args:
        ops: address of n_ops records of dtype OP. run: of the run parameters of records without their own.
        n_threads: of the team; decides how many chunks are claimed at once, never what they compute.
        scratch: address of THREAD_SCRATCH_BYTES, and room for a record, that no other thread uses.
    """
    for cell in range(ops, ops + n_ops * RECORD_BYTES, RECORD_BYTES):
        op = record(cell)
        # parts of a matrix cost the same and want long runs; others may differ, and are shared more finely
        is_even = _is_matrix(op.code) or op.code == program.DOWN_ROWS or op.code == program.EXPERT_ROWS
        parts = n_threads if is_even else 2 * n_threads
        own = op.run if op.run != 0 else run
        while True:
            first, n = _claim(cell, number, op.chunks, parts)
            if first < 0:
                return
            if n == 0:
                break
            run_op(op.code, cell, first, n, own, scratch)
            operations.atomic_add(cell + 8, n)
        spins = 0
        while operations.atomic_load(cell + 8) < number * op.chunks:
            operations.pause()
            spins += 1
            if spins > SPINS:
                operations.sched_yield()
