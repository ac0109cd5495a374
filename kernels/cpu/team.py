"""One thread team, one walk: n threads go through a program's op records together in nogil code.

Python starts a walk once a token or prompt batch. An op is cut into chunks; a thread claims chunks from
an atomic cell and goes on when all chunks of the op are *done*, not when all threads have arrived: a
thread that lost its core between two chunks delays nobody, and the caller alone can finish. Cells carry
the number of the round, so a thread that comes back late finds its claim refused.
"""

import threading
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.errors import DoesNotFitError
from hotcold.kernels.cpu import (
    attention,
    elementwise,
    experts,
    ffn,
    kv_cache,
    needed,
    operations,
    pack,
    program,
    rows,
    tiles,
)
from hotcold.kernels.cpu.cache import mark_compiled
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.operations import load_f32, load_i64, store_i64
from hotcold.kernels.cpu.program import (
    LOGITS_ADDRESS,
    LOGITS_FROM,
    N_PAST,
    N_TOKENS,
    ROWS_ALIGNED,
    THREAD_SCRATCH_BYTES,
    TOKEN_IDS,
)

SPINS = 4000  # pauses before a waiting thread gives its core away
RECORD_BYTES = program.OP.itemsize


@compiled
def _cut(n: int, c: int, chunks: int, unit: int) -> int:
    """Where chunk c of n numbers begins, in whole units."""
    return min((n + unit - 1) // unit * c // chunks * unit, n)


@compiled
def _count(op, c: int, listed: int, live: int) -> None:  # type: ignore[no-untyped-def]
    """Add to chunk c's own cells, so that no two threads write the same."""
    if op.counts == 0:
        return
    at = op.counts + 16 * c
    store_i64(at, load_i64(at) + listed)
    store_i64(at + 8, load_i64(at + 8) + live)


@compiled
def _run_rows(op, c: int, stop: int, run, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """Chunks c to stop of an op whose output rows are shared out, as one run."""
    n_tokens, code = run[N_TOKENS], op.code
    first = _cut(op.n_rows, c, op.chunks, ROWS_ALIGNED)
    last = _cut(op.n_rows, stop, op.chunks, ROWS_ALIGNED)
    if code == program.MAT_VEC:
        w, y = op.w + first * op.w_stride, op.y + 4 * first
        rows.dot_rows(op.w_type, w, op.w_stride, last - first, op.x, op.k, rows.AHEAD, y)
    elif code == program.MUL_MAT:
        tiles.mul_mat(op, first, last, n_tokens, op.x, op.y, op.y_stride, scratch)
    elif code == program.LOGITS:
        start = run[LOGITS_FROM]
        if run[LOGITS_ADDRESS] != 0:
            x = op.x + start * op.x_stride
            tiles.mul_mat(op, first, last, n_tokens - start, x, run[LOGITS_ADDRESS], op.y_stride, scratch)
    elif code == program.GATED:
        # gates lie in y, ups in this op's scratch, until the chunk is complete
        w, y = op.w + first * op.w_stride, op.y + 4 * first
        rows.dot_rows(op.w_type, w, op.w_stride, last - first, op.x, op.k, rows.AHEAD, y)
        w, up = op.w1 + first * op.w1_stride, op.scratch + 4 * first
        rows.dot_rows(op.w1_type, w, op.w1_stride, last - first, op.z, op.k, rows.AHEAD, up)
        elementwise.act_mul(y, up, last - first, op.activation, y)
    elif code == program.GATE_ROWS:
        listed = ffn.gate_rows(op, first, last, n_tokens, scratch)
        _count(op, c, listed, 0)
    elif code == program.UP_ROWS:
        live = ffn.up_rows(op, first, last, n_tokens, scratch)
        _count(op, c, (last - first) * n_tokens * op.all_listed, live)
    elif code == program.FIRE_ROWS:
        live = ffn.fire_rows(op, first, last, n_tokens)
        _count(op, c, (last - first) * n_tokens * op.all_listed, live)


@compiled
def _norm_rows(op, x: int, y: int) -> None:  # type: ignore[no-untyped-def]
    """Each row of a token by itself."""
    for at in range(0, 4 * op.n_rows * op.k, 4 * op.k):
        elementwise.rms_norm(x + at, op.w, op.k, op.eps, y + at)


@compiled
def _run_vector(op, x: int, z: int, y: int) -> None:  # type: ignore[no-untyped-def]
    """One token's vector."""
    code = op.code
    if code == program.RMS_NORM:
        _norm_rows(op, x, y)
    elif code == program.LAYER_NORM:
        elementwise.layer_norm(x, op.w, op.w1, op.k, op.eps, y)
    elif code == program.PACK:
        pack.pack_row(x, op.k, y)
    elif code == program.PACK_ROUNDED:
        pack.pack_rounded_row(x, z, op.k, y)
    elif code == program.ADD:
        elementwise.add(x, z, op.k, y)
    elif code == program.ACT_MUL:
        elementwise.act_mul(x, z, op.k, op.activation, y)
    elif code == program.RELU:
        elementwise.relu(x, op.k, y)
    elif code == program.GELU:
        elementwise.gelu(x, op.k, y)
    elif code == program.MUL_SIGMOID:
        elementwise.mul_sigmoid(x, load_f32(z), op.k, y)


@compiled
def _run_position(op, t: int, x: int, z: int, y: int, run) -> None:  # type: ignore[no-untyped-def]
    """What depends on where token t stands, or which it is."""
    code, position = op.code, run[N_PAST] + t
    if code == program.EMBED:
        token = operations.load_i32(run[TOKEN_IDS] + 4 * t)
        rows.widen_row(op.w_type, op.w + token * op.w_stride, op.k, y)
    elif code == program.POSITIONS:
        rows.widen_row(op.w_type, op.w + (position + op.first) * op.w_stride, op.k, y)
    elif code == program.ROPE:
        table = op.w + position * op.w_stride
        elementwise.rope(x, table, op.n_head, op.head_dim, op.n_pairs, op.interleaved, y)
    elif code == program.KV_STORE:
        for head in range(op.n_head_kv):
            k, v, to = x + 4 * head * op.head_dim, z + 4 * head * op.head_dim, head * op.w1_stride
            keys, values = op.w + to, op.w1 + to
            kv_cache.store_head(op.w_type, k, v, op.head_dim, position, keys, values, op.w_stride)


@compiled
def _run_list(op, x: int, z: int, y: int) -> None:  # type: ignore[no-untyped-def]
    """Which neurons or experts a token goes to."""
    code = op.code
    if code == program.MASK:
        n = ffn.mask_token(x, op.n_rows, op.threshold, y, op.listed)
        if op.n_listed:
            store_i64(op.n_listed, n)
    elif code == program.LIST_ROWS:
        store_i64(op.n_listed, ffn.list_bits(z, op.x, op.n_rows, op.listed))
    elif code == program.AND_BITS:
        ffn.and_bits(z, op.x, op.n_rows, y)
    elif code == program.TOP_K:
        experts.top_k(x, op.n_rows, op.k, op.gating, op.normed, op.weight_scale, y)


@compiled
def _run_tokens(op, c: int, stop: int, run) -> None:  # type: ignore[no-untyped-def]
    """Chunks c to stop of an op whose tokens are shared out; where it has groups, their pairs."""
    n = run[N_TOKENS] if op.groups == 0 else experts.n_pairs(op.groups)
    family = program.FAMILIES[op.code]
    for t in range(n * c // op.chunks, n * stop // op.chunks):
        x, z, y = op.x + t * op.x_stride, op.z + t * op.z_stride, op.y + t * op.y_stride
        if family == program.OF_VECTORS:
            _run_vector(op, x, z, y)
        elif family == program.OF_POSITIONS:
            _run_position(op, t, x, z, y, run)
        else:
            _run_list(op, x, z, y)


@compiled
def _run_experts(op, c: int, stop: int, run, own, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """Chunks c to stop of the rows of what experts do with their pairs, or of the numbers of their sum."""
    code = op.code
    size = op.k if code == program.EXPERT_SUM else op.n_rows
    first, last = _cut(size, c, op.chunks, ROWS_ALIGNED), _cut(size, stop, op.chunks, ROWS_ALIGNED)
    if code == program.EXPERT_SUM:
        for t in range(run[N_TOKENS]):
            experts.expert_sum(op, t, first, last)
        return
    own[0] = op
    if code == program.EXPERT_ROWS:
        experts.expert_rows(op, own[0], first, last, scratch)
    elif code == program.EXPERT_UP:
        experts.expert_up_rows(op, own[0], first, last, scratch)


@compiled
def _run_pieces(op, c: int, stop: int, run, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """Chunks c to stop of an op that is cut in a way of its own; where they lie side by side, as one run."""
    code, n_tokens = op.code, run[N_TOKENS]
    if code == program.ATTENTION:
        for i in range(c, stop):
            attention.attend(op, i, run, scratch)
    elif code == program.ATTENTION_JOIN:
        for i in range(c, stop):
            attention.join_parts(op, i, run, scratch)
    elif code == program.SPARSE_FFN:
        listed, live = ffn.ffn_pieces(op, c, stop, scratch)
        _count(op, c, listed, live)
    elif code == program.REDUCE:
        first, last = _cut(op.k, c, op.chunks, ROWS_ALIGNED), _cut(op.k, stop, op.chunks, ROWS_ALIGNED)
        elementwise.reduce_rows(op.x, op.x_stride, op.n_parts, first, last, op.y)
    elif code == program.DOWN_ROWS:
        unit = rows.column_unit(op.w_type)
        first, last = _cut(op.k, c, op.chunks, unit), _cut(op.k, stop, op.chunks, unit)
        ffn.down_rows(op, first, last, n_tokens, scratch)
    elif code == program.GROUP:
        _count(op, 0, experts.group(op, n_tokens, scratch), 0)
    elif code == program.GATHER:
        n = experts.n_pairs(op.groups)
        experts.gather(op, n * c // op.chunks, n * stop // op.chunks)


@compiled
def _is_even(code: int) -> bool:
    """Whether an op's chunks cost the same, as parts of a matrix that is read in order do."""
    whole = code == program.MAT_VEC or code == program.MUL_MAT or code == program.LOGITS
    return whole or code == program.GATED or code == program.DOWN_ROWS or code == program.EXPERT_ROWS


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


@compiled
def _wait_for(cell: int, value: int) -> None:
    """Until a cell is not below a value."""
    spins = 0
    while operations.atomic_load(cell) < value:
        operations.pause()
        spins += 1
        if spins > SPINS:
            operations.sched_yield()


@compiled
def walk(number: int, ops, base: int, run, n_threads: int, own, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """Run every op of round `number` (1, 2, ...) together with whoever else is walking.

    Args:
        ops: records of dtype OP, base: their address. run: the run parameters.
        n_threads: of the team; decides how many chunks are claimed at once, never what they compute.
        own, scratch: a record, and the address of THREAD_SCRATCH_BYTES, that no other thread uses.
    """
    for i in range(ops.size):
        op, cell = ops[i], base + i * RECORD_BYTES
        # chunks that cost the same want long runs; others are shared more finely
        parts = n_threads if _is_even(op.code) else 2 * n_threads
        family = program.FAMILIES[op.code]
        while True:
            c, n = _claim(cell, number, op.chunks, parts)
            if c < 0:
                return
            if n == 0:
                break
            if family == program.OF_ROWS:
                _run_rows(op, c, c + n, run, scratch)
            elif family == program.OF_EXPERTS:
                _run_experts(op, c, c + n, run, own, scratch)
            elif family == program.OF_PIECES:
                _run_pieces(op, c, c + n, run, scratch)
            else:
                _run_tokens(op, c, c + n, run)
            operations.atomic_add(cell + 8, n)
        _wait_for(cell + 8, number * op.chunks)


class Program:
    """Op records and the number of rounds that have been walked.

    Attributes:
        run: the run parameters, int64 [N_PARAMETERS]; several programs may share them.
        base: address of the records.
    """

    def __init__(self, ops: list[dict[str, Any]], run: NDArray[np.int64] | None = None) -> None:
        self.ops = program.assemble(ops)
        needed.prepare(self.ops)
        self.run = np.zeros(program.N_PARAMETERS, np.int64) if run is None else run
        self.base = int(self.ops.ctypes.data)
        self.number = 0

    def part(self, first: int, stop: int) -> "Program":
        """The records from first to stop as a program of their own, without making them again."""
        return self._of(self.ops[first:stop])

    def with_more(self, more: list[tuple[int, list[dict[str, Any]]]]) -> "Program":
        """A program that has further records in front of some: (the record's number, ascending; they)."""
        pieces, first = [], 0
        for at, records in more:
            pieces += [self.ops[first:at], program.assemble(records)]
            needed.prepare(pieces[-1])
            first = at
        return self._of(*pieces, self.ops[first:])

    def _of(self, *pieces: NDArray[np.void]) -> "Program":
        made = Program([], self.run)
        made.ops = program.aligned(sum(piece.nbytes for piece in pieces)).view(program.OP)
        np.concatenate(pieces, out=made.ops)
        made.ops["claim"] = made.ops["done"] = 0
        made.base = int(made.ops.ctypes.data)
        return made


Job = tuple[Program, int]
"""A program and the number of the round that is to be walked."""


class Team:
    """n threads, the caller among them; one walk at a time.

    The caller takes part, so with n = 1 there is no other thread. Threads sleep between walks.

    Raises:
        DoesNotFitError: the system starts no more threads; those that it did start have ended.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._memory = [program.aligned(THREAD_SCRATCH_BYTES) for _ in range(n)]
        self._scratch = [int(memory.ctypes.data) for memory in self._memory]
        self._own = [np.zeros(1, program.OP) for _ in range(n)]
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
            walk(number, job.ops, job.base, job.run, self.n, self._own[-1], self._scratch[-1])

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
            ops, base, run = program_of_job.ops, program_of_job.base, program_of_job.run
            walk(number, ops, base, run, self.n, self._own[i], self._scratch[i])


def compile_kernels() -> None:
    """Compile the walk, or load it from the disk cache; a program compiles what its own weight types need."""
    Team(1).walk(Program([{"code": program.ADD, "chunks": 1}]))
    mark_compiled()
