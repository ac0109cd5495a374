"""Which cache level rows are asked into, measured once, before the first kernel is compiled.

It hardly matters where rows lie side by side: on Zen 5 both levels are within 3 % of each other, and on an
Intel machine the first took its few fill buffers from the loads themselves. It does where rows lie apart, as
those that a sparse FFN lists: on Zen 5 asking into the second level makes such a row cost 1.6 times what it
costs from the first.
"""

import ctypes
import time

import numpy as np

from hotcold.kernels.cpu import rows, sizes
from hotcold.kernels.cpu.compiled import family, new_code
from hotcold.kernels.cpu.kernel_files import load, note_level, noted_level
from hotcold.kernels.cpu.simd import Builder, Value, asking_into
from hotcold.kernels.cpu.weight_types import BY_ID

FIRST, SECOND = 3, 2
K = 2048  # numbers of a row of Q4_0
ROW = sizes.row_bytes(rows.Q4_0_ID, K)
MEMORY = 64 << 20  # bytes, beyond most caches
APART = 18 * ROW + 64  # bytes from row to row where they lie apart, in another page each time
ROUNDS, ROWS_AHEAD = 5, 7

LEVELS = {FIRST: "first", SECOND: "second"}


@family(LEVELS, 8)
def _probe(b: Builder, level: str, *arguments: Value) -> None:
    with asking_into(next(number for number, name in LEVELS.items() if name == level)):
        rows.emit_dot_rows(b, BY_ID[rows.Q4_0_ID], *arguments)


def choose() -> None:
    """Measure, unless that was done."""
    if noted_level() is None:
        note_level(_measured())


def _measured() -> int:
    """The level that takes less time of this thread, over rows side by side and rows apart; the first if both do."""
    memory = np.ones(MEMORY, np.uint8)
    x, out = np.zeros(sizes.packed_bytes(K), np.uint8), np.zeros(MEMORY // ROW, np.float32)
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 8)
    probes = {
        level: kind(load(f"probe_{name}", new_code(f"probe_{name}")).address)
        for level, name in LEVELS.items()
    }
    total = dict.fromkeys(LEVELS, 0.0)
    for stride, ahead in ((ROW, rows.AHEAD), (APART, ROWS_AHEAD * APART)):
        n, times = (MEMORY - ROWS_AHEAD * APART) // stride, {level: list[float]() for level in LEVELS}
        for i in range(ROUNDS):
            # other rows each time, so that no cache holds them
            at = memory.ctypes.data + (i * ROW if stride == APART else 0)
            for level, probe in probes.items():
                start = time.thread_time()
                probe(at, stride, n, x.ctypes.data, K, ahead, 0, out.ctypes.data)
                times[level].append(time.thread_time() - start)
                at += ROUNDS * ROW if stride == APART else 0
        for level in LEVELS:
            total[level] += float(np.median(times[level])) / n
    return FIRST if total[FIRST] <= total[SECOND] else SECOND
