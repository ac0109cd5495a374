"""How fast the bus is, measured in a moment."""

from time import perf_counter

import numpy as np

from hotcold.kernels.cuda.device.buffers import Buffer, Pinned
from hotcold.kernels.cuda.device.device import Device

ROUNDS = 3


def bytes_a_second(device: Device, host: Pinned, buffer: Buffer) -> float:
    """Of copies to the device, the best of a few. What lies in the buffer is lost; nothing may be under way."""
    n_bytes, best = min(host.n_bytes, buffer.n_bytes), 0.0
    source, target = host.view(0, n_bytes, np.uint8), buffer.view(0, n_bytes, np.uint8)
    for _ in range(ROUNDS):
        started = perf_counter()
        device.upload(target, source, device.copy)
        device.copy.synchronize()
        best = max(best, n_bytes / (perf_counter() - started))
    return best
