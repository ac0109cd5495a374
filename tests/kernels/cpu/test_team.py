"""The thread team: the same bits however many threads walk, late threads, crowded machines."""

import threading

import numpy as np
import oracle_checks as checks
import pytest

from hotcold.kernels.cpu import program, rows
from hotcold.kernels.cpu.team import Program, Team

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


def test_closing_ends_the_threads() -> None:
    before = threading.active_count()
    team = Team(4)
    assert threading.active_count() == before + 3
    team.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(("n_rows", "n_bytes"), [(1, 10), (16, 10**6), (32000, 1152), (10**6, 10**4)])
def test_chunks_are_whole_cache_lines_of_results(n_rows: int, n_bytes: int) -> None:
    chunks = program.row_chunks(n_rows, n_bytes)
    assert 1 <= chunks <= min(program.MAX_CHUNKS, -(-n_rows // program.ROWS_ALIGNED))
