"""Broken kernels end in an error that names kernel, block, thread and line, never in a crash."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.driver import KernelFault
from hotcold.kernels.cuda.device.sources import program

Open = Callable[..., Device]
SOURCE = Path(__file__).with_name("faults.cu")
MAPS = Path("/proc/self/maps")
ORDERS = (0, 1, 7, 1234)
FAULTS = {  # what is said, and in which orders it can be seen
    "returns_before_barrier": ("32 threads wait there, 32 have already returned", ORDERS),
    "waits_at_two_barriers": ("__syncthreads at .* while others wait at", ORDERS),
    "leaves_lanes_out": ("deadlock in the warp operation.*lanes 7fffffff came, lanes ffffffff", ORDERS),
    "is_not_in_its_mask": ("lane 31 is not in its own mask 7fffffff", ORDERS),
    "reads_a_lane_outside_the_mask": ("shuffle from lane 20, which is not in the mask 0000ffff", ORDERS),
    "meets_in_two_places": (r"mask ffffffff.*lane \d+ is at", ORDERS),
    "indexes_outside_an_array": ("undefined behaviour", ORDERS),
    "shifts_too_far": ("undefined behaviour", ORDERS),
    "divides_by_zero": ("undefined behaviour", ORDERS),
    "loads_askew": ("undefined behaviour", ORDERS),
    "writes_after_the_end": ("bad memory access to byte 256 of a buffer of 256 bytes", (0, 7, 1234)),
    "writes_before_the_start": ("bad memory access to byte -4 of a buffer of 256 bytes", (1,)),
    "leaves_dynamic_shared": ("after 256 bytes of dynamic shared memory", ORDERS),
    "copies_askew": ("an asynchronous copy of 16 bytes that is not aligned", ORDERS),
    "copies_into_its_own_memory": ("an asynchronous copy to outside shared memory", ORDERS),
    "returns_with_a_copy_under_way": ("1 asynchronous copies were never waited for", ORDERS),
    "reads_nowhere": ("bad memory access to 0x8", ORDERS),
    "fills_its_stack": ("more than 61440 bytes of stack", ORDERS),
}
CASES = [(kernel, order) for kernel, (_, orders) in FAULTS.items() for order in orders]


def marked_lines(kernel: str) -> list[str]:
    """`faults.cu:N` of the kernel's lines that say "here"."""
    text = SOURCE.read_text()
    start = text.index(f"KERNEL {kernel}(")
    first = text.count("\n", 0, start) + 1
    body = text[start : text.index("\n}", start)].splitlines()
    return [f"faults.cu:{first + i}" for i, line in enumerate(body) if line.endswith("here")]


@pytest.mark.parametrize(("kernel", "order"), CASES)
def test_a_fault_is_named(open_emulated: Open, kernel: str, order: int) -> None:
    device = open_emulated(source=program(SOURCE), order=order)
    out = device.empty(64, "i4")
    shared = 256 if kernel == "leaves_dynamic_shared" else 0
    device.launch(kernel, 1, 64, (out,), device.compute, shared)
    with pytest.raises(KernelFault, match=FAULTS[kernel][0]) as caught:
        device.synchronize()
    text = str(caught.value)
    assert text.startswith(f"kernel {kernel}, block (0,0,0), thread (")
    assert all(f"{line}" in text for line in marked_lines(kernel))


@pytest.mark.parametrize("build_kind", ["checked", "fast", "races"])
def test_the_next_device_works_after_a_fault(
    open_emulated: Open, seam_source: str, put: Callable[..., object], build_kind: str
) -> None:
    broken = open_emulated(source=seam_source, build_kind=build_kind)
    arguments = (broken.empty(8, "f4"), broken.empty(1, "f4"), 8)
    broken.launch("peek", 1, 32, arguments, broken.compute)
    with pytest.raises(KernelFault):
        broken.synchronize()
    device = open_emulated(source=seam_source, build_kind=build_kind)
    x = put(device, np.ones(8, "f4"))
    device.launch("scale", 1, 32, (x, device.empty(8, "f4"), 1.0, 8), device.compute)
    device.synchronize()


@pytest.mark.slow
def test_libraries_share_the_stacks_of_their_threads(open_emulated: Open, seam_source: str) -> None:
    """Each has hundreds of guard pages, and a process that loads a library a type has a limit of maps."""
    ran, before = [], len(MAPS.read_text().splitlines())
    for i in range(2):
        device = open_emulated(source=f"{seam_source}\n// library {i}\n")
        x, y, host = device.empty(64, "f4"), device.empty(64, "f4"), device.pinned(64, "f4")
        host.array[:] = np.arange(64)
        device.upload(x, host, device.compute)
        device.compute.synchronize()
        ran.append((device, x, y, host))
    for device, x, y, host in (*ran, *ran[::-1]):
        device.launch("scale", 1, 64, (x, y, 2.0, 64), device.compute)
        device.download(host, y, device.compute)
        device.compute.synchronize()
        assert (host.array == 2 * np.arange(64)).all()
    assert len(MAPS.read_text().splitlines()) - before < 3 * 256
