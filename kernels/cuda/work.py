"""What one launch is: sizes for the device, bytes for the plan and the benches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hotcold.kernels.cuda.device.buffers import Stream
from hotcold.kernels.cuda.device.device import Device, Prepared

BLOCK = 256
"""Threads a block where nothing else is said: eight warps."""


@dataclass(frozen=True)
class Work:
    """A kernel with its grid, block and dynamic shared memory (bytes).

    With it are the bytes of device memory that it must read and write, each counted once.
    """

    kernel: str
    grid: tuple[int, int]
    block: int
    bytes_read: int
    bytes_written: int
    shared: int = 0

    def prepare(self, device: Device, arguments: Sequence[Any]) -> Prepared:
        """The launch with these arguments, checked."""
        return device.prepare(self.kernel, self.grid, self.block, arguments, self.shared)

    def launch(self, device: Device, arguments: Sequence[Any], stream: Stream) -> None:
        """Check and enqueue."""
        device.launch(self.kernel, self.grid, self.block, arguments, stream, self.shared)


def cover(n: int, by: int) -> int:
    """How many pieces of `by` cover n; one at least, since a launch is never empty."""
    return max(1, -(-n // by))
