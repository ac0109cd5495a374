"""What a launch, a copy with its wait and a graph of launches cost, and whether every kernel loads without spills.

python bench/launches.py                        the first card
python bench/launches.py --device emulated      that the bench itself works; the figures mean nothing
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from gguf import GGMLQuantizationType as Type

from hotcold.engine.device.choice import parse_device
from hotcold.engine.device.devices import open_device
from hotcold.engine.plan.graph_memory import NODE_BYTES
from hotcold.errors import HotcoldError
from hotcold.kernels.cuda.add import HAS_OTHER, add, merge
from hotcold.kernels.cuda.device.cuda_driver import CudaDriver
from hotcold.kernels.cuda.device.device import Device, Prepared
from hotcold.kernels.cuda.device.units import of_type, untyped
from hotcold.kernels.cuda.matvec3 import Rooms, matvec3
from hotcold.kernels.cuda.rms_norm import rms_norm_quantised
from hotcold.kernels.cuda.weights import weight_planes
from hotcold.kernels.weight_table import WEIGHT_TYPES, device_row_bytes

N = 4096
IN_A_GRAPH, GRAPHS = 200, 10
TYPES = Type.F16, Type.Q4_0, Type.Q8_0, Type.Q4_K, Type.Q6_K
"""Whose kernels are loaded: each takes NVRTC some seconds."""


@dataclass(frozen=True)
class Cost:
    """Of one call, on average.

    Attributes:
        host: microseconds until the call returns.
        done: microseconds until the device has done it.
    """

    what: str
    host: float
    done: float

    def __str__(self) -> str:
        return f"| {self.what} | {self.host:.2f} | {self.done:.2f} |"


def cost(what: str, device: Device, call: Callable[[], None], repeats: int) -> Cost:
    """Call it many times, then wait once."""
    call()
    device.compute.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    host = time.perf_counter() - started
    device.compute.synchronize()
    return Cost(what, 1e6 * host / repeats, 1e6 * (time.perf_counter() - started) / repeats)


def prepared_add(device: Device) -> Prepared:
    """y = x + x of 4096 numbers, launched and checked once.

    Raises:
        RuntimeError: the sum is wrong.
    """
    x, y, host = device.empty(N, "f4"), device.empty(N, "f4"), device.pinned(N, "f4")
    host.array[:] = np.arange(N)
    device.upload(x, host, device.compute)
    device.compute.synchronize()  # the page-locked buffer is the copy's until then
    launch = add(N).prepare(device, (x, x, y, N))
    device.run(launch, device.compute)
    device.download(host, y, device.compute)
    device.compute.synchronize()
    if not np.array_equal(host.array, 2 * np.arange(N, dtype=np.float32)):
        raise RuntimeError("add: wrong sums")
    return launch


def prepared_matvec3(device: Device) -> Prepared:
    """The launch with the most arguments: q, k and v of 4096 in Q4_0."""
    n_bytes = N * device_row_bytes(Type.Q4_0, N)
    planes = [weight_planes(device.empty(n_bytes, "u1"), Type.Q4_0, N, N) for _ in range(3)]
    q, d, sums = device.empty(N, "i1"), device.empty(N // 32, "f4"), device.empty(N // 32, "i4")
    y = [device.empty(N, "f4") for _ in range(3)]
    arguments = (
        *planes[0],
        *planes[1],
        *planes[2],
        q,
        d,
        sums,
        *y,
        *y,
        N,
        N,
        N,
        N,
        0,
        *Rooms.none(y[0]).arguments,
    )
    return matvec3((Type.Q4_0,) * 3, 1, (N, N, N), N).prepare(device, arguments)


def prepared_norm(device: Device) -> Prepared:
    """A norm whose output is rounded to int8."""
    x, q = device.empty(N, "f4"), device.empty(N, "i1")
    d, sums = device.empty(N // 32, "f4"), device.empty(N // 32, "i4")
    return rms_norm_quantised(1, N).prepare(device, (x, x, *(q, d, sums) * 2, N, 1e-5, 0))


def sections(device: Device, repeats: int) -> Iterator[Iterator[Cost]]:
    """What is measured, in parts that need not wait for each other: one that goes wrong takes no other with it."""
    yield alone(device, repeats)
    yield in_a_graph(device, repeats)
    yield (
        cost(what, device, partial(device.run, launch, device.compute), repeats)
        for what, launch in reading(device)
    )
    yield (forked(device, each) for each in (repeats,))


def alone(device: Device, repeats: int) -> Iterator[Cost]:
    """Launches with few and many arguments, a norm, and a copy that is waited for."""
    for what, launch in (
        ("add, 4 arguments", prepared_add(device)),
        ("matvec3 Q4_0, 28 MB", prepared_matvec3(device)),
        ("rms_norm_quantised 4096", prepared_norm(device)),
    ):
        yield cost(what, device, partial(device.run, launch, device.compute), repeats)
    buffer, host, event = device.empty(N, "f4"), device.pinned(N, "f4"), device.event()

    def copy_and_wait() -> None:
        device.download(host, buffer, device.compute)
        event.record(device.compute)
        event.synchronize()

    yield cost("16 KB down, and the wait for it", device, copy_and_wait, repeats)


def in_a_graph(device: Device, repeats: int) -> Iterator[Cost]:
    """Launches that one call enqueues."""
    few, norm = prepared_add(device), prepared_norm(device)

    def many_launches() -> None:
        for _ in range(IN_A_GRAPH // 2):
            device.run(few, device.compute)
            device.run(norm, device.compute)

    graph = device.capture(many_launches, device.compute)
    whole = cost("", device, lambda: device.run_graph(graph, device.compute), max(1, repeats // IN_A_GRAPH))
    yield Cost(f"one of {IN_A_GRAPH} launches in a graph", whole.host / IN_A_GRAPH, whole.done / IN_A_GRAPH)


def reading(device: Device) -> Iterator[tuple[str, Prepared]]:
    """A merge whose addend is in the card's memory, and one that reads it in the host's, as a split layer's does.

    Raises:
        RuntimeError: it reads something else than the host has written, or what it wrote before.
    """
    x, y, host = device.empty(N, "f4"), device.empty(N, "f4"), device.pinned(N, "f4")
    there = merge(1, N, HAS_OTHER).prepare(device, (x, y, x, y, y, N, HAS_OTHER))
    here = merge(1, N, HAS_OTHER).prepare(device, (x, y, host, y, y, N, HAS_OTHER))
    host.array[:], found = 0, device.pinned(N, "f4")
    device.upload(x, host, device.compute)
    device.compute.synchronize()
    for value in range(1, 4):
        host.array[:] = value
        device.run(here, device.compute)
        device.download(found, y, device.compute)
        device.compute.synchronize()
        if not (found.array == value).all():
            raise RuntimeError("a kernel reads stale or wrong page-locked memory: report it")
    yield "merge of 4096, all in the card's memory", there
    yield "merge of 4096 that reads 16 KB of page-locked memory", here


def forked(device: Device, repeats: int) -> Cost:
    """A graph as a split layer's: the host waits for an event in the middle of it, behind a copy down.

    Returns:
        until the event, and until the whole graph is done.

    Raises:
        RuntimeError: the event lets the host pass before the copy is done.
    """
    beside, repeats = prepared_add(device), min(max(1, repeats // IN_A_GRAPH), 100)
    x, host, event = device.empty(N, "f4"), device.pinned(N, "f4"), device.event(external=True)
    double = add(N).prepare(device, (x, x, x, N))
    host.array[:] = 1
    device.upload(x, host, device.compute)
    device.compute.synchronize()

    def work() -> None:
        for _ in range(IN_A_GRAPH):  # so long that who does not wait is too early
            device.run(beside, device.compute)
        device.run(double, device.compute)
        device.crossing.follow(device.compute)
        device.download(host, x, device.crossing)
        event.record(device.crossing)
        for _ in range(IN_A_GRAPH):
            device.run(beside, device.compute)
        device.compute.follow(device.crossing)

    graph, until, whole = device.capture(work, device.compute), 0.0, 0.0
    for i in range(repeats):
        started = time.perf_counter()
        device.run_graph(graph, device.compute)
        event.synchronize()
        until += time.perf_counter() - started
        if not (host.array == 2.0 ** (1 + i)).all():
            raise RuntimeError(
                "an event within a graph: the host passes too early; use --no-graphs, and report it"
            )
        device.compute.synchronize()
        whole += time.perf_counter() - started
    what = f"a graph of {2 * IN_A_GRAPH}, until an event in its middle"
    return Cost(what, 1e6 * until / repeats, 1e6 * whole / repeats)


def graph_node_bytes(device: Device) -> float:
    """Bytes of device memory that a launch takes in a graph, of `GRAPHS` that are there at once.

    A driver takes its memory in pieces of some MiB, so few launches would say nothing.
    """
    launch, free = prepared_add(device), device.memory()[0]

    def many_launches() -> None:
        for _ in range(IN_A_GRAPH):
            device.run(launch, device.compute)

    graphs = [device.capture(many_launches, device.compute) for _ in range(GRAPHS)]
    for graph in graphs:
        device.run_graph(graph, device.compute)
    device.compute.synchronize()
    return (free - device.memory()[0]) / (GRAPHS * IN_A_GRAPH)


def spills(driver: CudaDriver) -> dict[str, int]:
    """Bytes of local memory of each kernel that has any; loads every kernel of `TYPES` and those without."""
    units = untyped(), *(of_type(WEIGHT_TYPES[kind].ending) for kind in TYPES)
    kernels = [kernel for unit in units for kernel in unit.signatures]
    started = time.perf_counter()
    found = {kernel: driver.local_bytes(kernel) for kernel in kernels}
    print(f"{len(kernels)} kernels load in {time.perf_counter() - started:.1f} s")
    return {kernel: n_bytes for kernel, n_bytes in found.items() if n_bytes}


def run(given: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a kernel spills, or something goes wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or emulated")
    parser.add_argument("--repeats", type=int, default=2000, help="of each call")
    arguments = parser.parse_args(given)
    started = time.perf_counter()
    device = open_device(parse_device(arguments.device))
    if device is None:
        raise SystemExit("--device cpu: nothing to measure")
    with device:
        free, total = device.memory()
        opened = time.perf_counter() - started
        print(f"{device.facts.description}: open in {opened:.2f} s, {free} of {total} bytes free\n")
        spilled = spills(device.driver) if isinstance(device.driver, CudaDriver) else {}
        print(f"local memory (none is right): {spilled or 'none'}\n")
        print("| | us of the host | us until done |\n| --- | ---: | ---: |")
        wrong = list(filter(None, map(show, sections(device, arguments.repeats))))
        taken = graph_node_bytes(device)
        print(f"\na launch in a graph takes {taken:.0f} bytes of device memory; plans assume {NODE_BYTES}")
        print("".join(f"\nwrong: {problem}" for problem in wrong))
    return 1 if spilled or wrong else 0


def show(costs: Iterator[Cost]) -> str:
    """Print lines of the table as they come; what goes wrong with them, or nothing."""
    try:
        for each in costs:
            print(each, flush=True)
    except (RuntimeError, HotcoldError) as error:
        return str(error)
    return ""


if __name__ == "__main__":
    raise SystemExit(run())
