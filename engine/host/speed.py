"""How fast the CPU multiplies a prompt, measured in a moment."""

import time

from hotcold.engine.host.stores import HostStore
from hotcold.engine.model.model import Weight
from hotcold.kernels.cpu import program, sizes
from hotcold.kernels.cpu.team import Program, Team

N_TOKENS, MOST_ROWS, ROUNDS = 16, 2048, 3


def products_a_second(team: Team, store: HostStore, weight: Weight) -> float:
    """Products of a weight with a number in a prompt's tiles, on rows of a matrix; the best of a few rounds."""
    k, n_rows, kind = weight.ne[0], min(weight.n_rows, MOST_ROWS), int(weight.type)
    x_stride = sizes.packed_bytes(k) if sizes.is_quantised(kind) else 4 * k
    x, y = program.aligned(N_TOKENS * x_stride), program.aligned(4 * N_TOKENS * n_rows)
    record = {
        "code": program.MUL_MAT,
        "chunks": program.panel_chunks(n_rows),
        "w": store.address(weight),
        "w_type": kind,
        "w_stride": weight.row_bytes,
        "n_rows": n_rows,
        "k": k,
        "x": x.ctypes.data,
        "x_stride": x_stride,
        "y": y.ctypes.data,
        "y_stride": 4 * n_rows,
    }
    job = Program([record])
    job.run[program.N_TOKENS] = N_TOKENS
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        team.walk(job)
        times.append(time.perf_counter() - started)
    return N_TOKENS * n_rows * k / min(times)
