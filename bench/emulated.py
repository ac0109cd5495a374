"""Speed of the emulated device, on one core: `python bench/emulated.py`.

Exits 1 if the fast build, threads forward, does the matvec or the sparse FFN at less than 100 million
weights a second of CPU time, or 50 million of F16.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType

from hotcold.kernels import ref
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Device, Prepared
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver
from hotcold.kernels.cuda.matvec import matvec
from hotcold.kernels.cuda.sparse_gated_ffn import sparse_gated_ffn
from hotcold.kernels.cuda.sum_groups import sum_groups
from hotcold.kernels.cuda.weights import weight_planes
from hotcold.kernels.formats import ACTIVATIONS, mask_words, n_groups
from hotcold.kernels.weight_table import QUANTISED, device_row_bytes

Type = GGMLQuantizationType
GOALS = {Type.F16: 50.0, Type.Q8_0: 100.0, Type.Q4_0: 100.0}
"""Million weights a second; of F16 half of them, since tensor cores are four operations of a warp for 256 weights."""
WEIGHTS = 1 << 20
ACTIVE = 0.3


@dataclass(frozen=True)
class Result:
    """Million weights a second of one build, order, type and row length."""

    build_kind: str
    order: int
    weight_type: Type
    n: int
    matvec: float
    ffn: float


def filled(device: Device, n_bytes: int, value: int) -> Buffer:
    """Bytes of one value: small positive numbers in every type."""
    buffer = device.empty(n_bytes, "u1")
    buffer.array[:] = value
    return buffer


def inputs(device: Device, weight_type: Type, n: int) -> tuple[Buffer, ...]:
    """What a kernel of this type takes for x."""
    x = device.empty(n, "f4")
    x.array[:] = 1
    if weight_type not in QUANTISED:
        return (x,)
    q, d, total = device.empty(n, "i1"), device.empty(n // 32, "f4"), device.empty(n // 32, "i4")
    q.array[:], d.array[:], total.array[:] = 1, 1, 32
    return q, d, total


def launches(device: Device, weight_type: Type, n: int) -> tuple[list[Prepared], list[Prepared]]:
    """The matvec, and the FFN with a third of the rows active."""
    rows = WEIGHTS // n
    planes = weight_planes(
        filled(device, rows * device_row_bytes(weight_type, n), 0x3B), weight_type, rows, n
    )
    x, y, words = inputs(device, weight_type, n), device.empty(max(rows, n), "f4"), mask_words(rows)
    mask, held, total = (device.empty(count, "u4") for count in (words, words, 1))
    bits = np.zeros((2, 32 * words), bool)
    bits[0, : 3 * int(ACTIVE * rows) : 3], bits[1, :rows], total.array[:] = True, True, 0
    mask.array[:], held.array[:] = ref.mask_bits(bits)
    partial = device.empty((n_groups(rows), n), "f4")
    product = matvec(weight_type, 1, rows, n).prepare(device, (*planes, *x, y, y, y, rows, n, 0))
    numbers, unread = (words, n, ACTIVATIONS["relu"]), (partial, device.empty(1, "i4"), 0)
    arguments = (*planes, *planes, *planes, *x, mask, held, total, partial, *numbers, *unread)
    ffn = sparse_gated_ffn((weight_type,) * 3, 1, rows, n, rows).prepare(device, arguments)
    reduce = sum_groups(1, rows, n).prepare(device, (partial, y, y, y, y, n_groups(rows), n, 0))
    return [product], [ffn, reduce]


def best_seconds(work: Callable[[], None], repeats: int = 5) -> float:
    """The least CPU time of several runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def measure(build_kind: str, order: int, weight_type: Type, n: int) -> Result:
    """One row of the table."""
    with Device(EmulatedDriver(build_kind=build_kind, order=order, policy="eager")) as device:
        product, ffn = launches(device, weight_type, n)

        def run(prepared: list[Prepared]) -> None:
            for launch in prepared:
                device.run(launch, device.compute)

        speeds = [WEIGHTS / best_seconds(lambda: run(product)) / 1e6]
        weights = 3 * int(ACTIVE * (WEIGHTS // n)) * n
        speeds.append(weights / best_seconds(lambda: run(ffn)) / 1e6)
    return Result(build_kind, order, weight_type, n, *speeds)


def main() -> None:
    """Print the table; fail if the goal is missed."""
    print("million weights a second of CPU time, one core; FFN: gate, up and down of a third of the rows")
    print(f"{'build':9}{'order':>6}  {'type':6}{'row':>6}{'matvec':>9}{'FFN':>9}")
    missed = False
    for build_kind, order in (("fast", 0), ("fast", 7), ("checked", 0), ("checked", 7)):
        for weight_type, goal in GOALS.items():
            for n in (256, 512, 2048, 4096):
                r = measure(build_kind, order, weight_type, n)
                print(f"{build_kind:9}{order:6}  {weight_type.name:6}{n:6}{r.matvec:9.0f}{r.ffn:9.0f}")
                missed |= (build_kind, order) == ("fast", 0) and n >= 512 and min(r.matvec, r.ffn) < goal
    sys.exit(
        "the fast build is too slow: " + ", ".join(f"{t.name} {g:.0f}" for t, g in GOALS.items())
        if missed
        else 0
    )


if __name__ == "__main__":
    main()
