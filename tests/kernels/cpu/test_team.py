"""The thread team: the same bits however many threads walk, late threads, crowded machines."""

import ctypes
import faulthandler
import signal
import threading
import time
import weakref
from typing import Any

import cpu_operands as checks
import numpy as np
import pytest

from hotcold.kernels.cpu import kernel_files, mailbox, program, rows
from hotcold.kernels.cpu.team import MANY_PROGRAMS, Program, Team

K, N_ROWS = 256, 700


def chain(n: int) -> tuple[list[checks.Record], list[object], checks.Array]:
    """n matrices in a row, each reading what the one before wrote."""
    data, _ = checks.weights(rows.F16_ID, K, K)
    buffers = [checks.vectors(1, K, i) for i in range(n + 1)]
    records: list[checks.Record] = [
        {
            "code": program.MAT_VEC,
            "chunks": 16,
            **checks.matrix("w", data, rows.F16_ID),
            "n_rows": K,
            "k": K,
            "x": buffers[i].ctypes.data,
            "y": buffers[i + 1].ctypes.data,
        }
        for i in range(n)
    ]
    return records, [data, buffers], buffers[n]


@pytest.mark.parametrize("type_id", checks.SPARSE_TYPES)
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_bits_do_not_depend_on_the_threads(type_id: int, n_tokens: int) -> None:
    x = checks.vectors(n_tokens, 96, 7)
    active = np.random.default_rng(8).random((n_tokens, 205)) < 0.5
    records, y, _, _keep = checks.sparse_records((type_id,) * 3, 96, 205, x, active, poison=False)
    seen = set()
    for n_threads in (1, 2, 3, 5):
        for _ in range(3):
            checks.run(records, n_tokens, n_threads)
            seen.add(y.tobytes())
    assert len(seen) == 1


def test_an_op_sees_all_of_the_op_before() -> None:
    records, _keep, result = chain(12)
    checks.run(records, n_threads=1)
    wanted = result.tobytes()
    job, team = Program(records), Team(3)
    job.run[program.N_TOKENS] = 1
    for _ in range(300):
        result[:] = 0
        team.walk(job)
        assert result.tobytes() == wanted
    team.close()


def test_one_team_walks_two_programs_in_turn() -> None:
    first, _a, y = chain(3)
    second, _b, z = chain(5)
    jobs = [Program(first), Program(second)]
    team = Team(2)
    for job in jobs:
        job.run[program.N_TOKENS] = 1
    seen = set()
    for _ in range(50):
        for job in jobs:
            team.walk(job)
        seen.add(y.tobytes() + z.tobytes())
    team.close()
    assert len(seen) == 1


def test_many_more_threads_than_cores_end() -> None:
    records, _keep, result = chain(40)
    checks.run(records, n_threads=1)
    wanted = result.tobytes()
    teams = [(Team(8), *chain(40)) for _ in range(3)]

    def work(team: Team, records: list[checks.Record]) -> None:
        job = Program(records)
        job.run[program.N_TOKENS] = 1
        for _ in range(20):
            team.walk(job)

    threads = [threading.Thread(target=work, args=(team, own)) for team, own, _, _ in teams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    for team, _, _, own_result in teams:
        team.close()
        assert own_result.tobytes() == wanted


def test_two_teams_in_two_threads_of_one_process() -> None:
    """Different programs, started together and walked at once, give what each gives alone."""
    work = []
    for length in (7, 4):
        records, keep, result = chain(length)
        checks.run(records, n_threads=1)
        work.append((records, keep, result, result.tobytes()))
    start, wrong = threading.Barrier(2), []

    def walk(records: list[checks.Record], result: checks.Array, wanted: bytes) -> None:
        job, team = Program(records), Team(2)
        job.run[program.N_TOKENS] = 1
        start.wait()
        for i in range(100):
            result[:] = 0
            team.walk(job)
            if result.tobytes() != wanted:
                wrong.append(i)
        team.close()

    threads = [threading.Thread(target=walk, args=(r, y, wanted)) for r, _, y, wanted in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert not wrong


@pytest.mark.parametrize("lingers", [False, True])
@pytest.mark.parametrize("has_lock", [False, True])
def test_the_threads_of_a_team_share_the_work(lingers: bool, has_lock: bool) -> None:
    """Each leaves numbers in scratch memory of its own; also while the caller keeps Python's lock."""
    n_tokens, n_rows, k = 32, 1024, 1024
    data = np.ones((n_rows, k), np.float32).view(np.uint8)
    x, y = checks.vectors(n_tokens, k), checks.vectors(n_tokens, n_rows)
    record = {"code": program.MUL_MAT, "chunks": 64, **checks.matrix("w", data, rows.F32_ID)}
    record |= {"n_rows": n_rows, "k": k, "x": x.ctypes.data, "x_stride": 4 * k}
    job = Program([record | {"y": y.ctypes.data, "y_stride": 4 * n_rows}] * 4)
    job.run[program.N_TOKENS] = n_tokens
    crew = Team(2, lingers)
    if has_lock:
        lead = kernel_files.loaded("lead")
        assert lead is not None
        crew._lead = ctypes.PYFUNCTYPE(None, *[ctypes.c_int64] * 4)(lead.address)
    for _ in range(100):  # a thread may lose its core for the whole of a walk, but not each time
        for memory in crew._memory:
            memory[:] = 0
        crew.walk(job)
        if all(memory.any() for memory in crew._memory):
            break
    else:
        pytest.fail("one thread did all the work, a hundred times")
    crew.close()


def test_many_programs_that_are_dropped_after_their_walk() -> None:
    """More than are held, some while the other threads sleep: what those look at is there."""
    y = checks.vectors(1, 16)
    add = {"code": program.ADD, "chunks": 1, "k": 16, **dict.fromkeys("xzy", y.ctypes.data)}
    crew = Team(3)
    for i in range(4 * MANY_PROGRAMS):
        job = Program([add] * 2)
        job.run[program.N_TOKENS] = 1
        y[:] = 1
        crew.walk(job)
        assert (y == 4).all()
        if i % 100 == 0:
            time.sleep(0.002)
    crew.close()


def test_programs_are_held_while_a_thread_may_look_at_them_and_no_longer() -> None:
    crew = Team(1)  # nobody but this test writes where a thread looks
    crew._looks[0] = 0
    walked = []
    for _ in range(MANY_PROGRAMS + 9):
        job = Program([])
        crew.walk(job)
        walked.append(weakref.ref(job))
    assert all(of() is not None for of in walked)
    crew._looks[0] = mailbox.NOWHERE
    crew.walk(Program([]))
    del job
    assert [of() is not None for of in walked] == [False] * (len(walked) - 1) + [True]
    crew.close()
    assert walked[-1]() is None


def test_other_threads_run_while_one_walks() -> None:
    """One of two chunks belongs to a thread that is late: the walk waits for it, and Python goes on."""
    x, y = np.ones((2, 16), np.float32), np.zeros((2, 16), np.float32)
    add = {"code": program.ADD, "chunks": 2, "k": 16, "x_stride": 64, "y_stride": 64, "z_stride": 64}
    job = Program([add | {"x": x.ctypes.data, "z": x.ctypes.data, "y": y.ctypes.data}])
    job.run[program.N_TOKENS] = 2
    job.ops["claim"] = (1 << 32) + 1  # the first round's first chunk is taken
    crew = Team(1)
    faulthandler.dump_traceback_later(120, exit=True)  # nothing of Python could end the wait
    thread = threading.Thread(target=crew.walk, args=(job,))
    thread.start()
    while job.ops["done"][0] < 1:
        time.sleep(0.001)
    assert thread.is_alive() and y.tolist() == [[0] * 16, [2] * 16]
    job.ops["done"] = 2
    thread.join()
    faulthandler.cancel_dump_traceback_later()
    crew.close()


@pytest.mark.parametrize("lingers", [False, True])
@pytest.mark.parametrize("n_threads", [1, 2, 16])
def test_repeated_walks_that_hardly_work_never_hang(n_threads: int, lingers: bool) -> None:
    """Rounds too short for most threads to arrive in: late ones find them over."""
    y = checks.vectors(1, 16)
    add = {"code": program.ADD, "chunks": 1, "k": 16, **dict.fromkeys("xzy", y.ctypes.data)}
    job, team = Program([add] * 5), Team(n_threads, lingers)
    job.run[program.N_TOKENS] = 1
    done = threading.Event()

    def walk() -> None:
        for _ in range(500):
            y[:] = 1
            team.walk(job)
            if (y != 32).any():
                return
        done.set()

    thread = threading.Thread(target=walk, daemon=True)
    thread.start()
    thread.join(120)
    assert done.is_set()
    team.close()


@pytest.mark.parametrize("lingers", [False, True])
@pytest.mark.parametrize("pause", [0.0, 0.01])
def test_closing_ends_the_threads(lingers: bool, pause: float) -> None:
    """At once, and when all of them sleep."""
    before = threading.active_count()
    team = Team(4, lingers)
    assert threading.active_count() == before + 3
    time.sleep(pause)
    team.close()
    team.close()
    assert threading.active_count() == before


def test_threads_that_wait_take_no_time() -> None:
    """Neither those that linger, once they have, nor those that do not."""
    crews = [Team(3), Team(3, lingers=True)]
    job = Program([])
    for crew in crews:
        crew.walk(job)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    for crew in crews:
        crew.close()


@pytest.mark.parametrize(("n_rows", "n_bytes"), [(1, 10), (16, 10**6), (32000, 1152), (10**6, 10**4)])
def test_chunks_are_whole_cache_lines_of_results(n_rows: int, n_bytes: int) -> None:
    chunks = program.row_chunks(n_rows, n_bytes)
    assert 1 <= chunks <= min(program.MAX_CHUNKS, -(-n_rows // program.ROWS_ALIGNED))


@pytest.mark.parametrize("lingers", [False, True])
def test_interrupts_at_any_moment_leave_a_team_that_works_and_ends(lingers: bool) -> None:
    """Ctrl-C may come while threads are being woken, or in the middle of a walk."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    x, y = np.ones(16, np.float32), np.zeros(16, np.float32)
    op = {"code": program.ADD, "chunks": 1, "k": 16, "x": x.ctypes.data, "z": x.ctypes.data}
    crew, job = Team(3, lingers), Program([op | {"y": y.ctypes.data}])
    job.run[program.N_TOKENS] = 1
    delays, n_interrupts = np.random.default_rng(0).uniform(1e-6, 6e-5, 2000), 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay in delays.tolist():
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                for _ in range(20):
                    crew.walk(job)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                n_interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert n_interrupts > 100
    crew.walk(job)
    assert (y == 2).all()
    closing = threading.Thread(target=crew.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
