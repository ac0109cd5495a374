"""How many threads of a kernel can be on one multiprocessor at once, by arithmetic.

Limits: CUDA C++ Programming Guide, "Features and Technical Specifications", by compute capability.
"""

from dataclasses import dataclass

from hotcold.kernels.cuda.device.nvrtc import Resources

REGISTERS = 65536
"""Of a multiprocessor, of every architecture below; handed out to warps in units of 256."""


@dataclass(frozen=True)
class Multiprocessor:
    """Most threads and blocks at once, bytes of shared memory, and what the system takes a block."""

    threads: int
    blocks: int
    shared: int
    reserved: int


MULTIPROCESSORS = {
    75: Multiprocessor(1024, 16, 64 << 10, 0),
    80: Multiprocessor(2048, 32, 164 << 10, 1 << 10),
    86: Multiprocessor(1536, 16, 100 << 10, 1 << 10),
    89: Multiprocessor(1536, 24, 100 << 10, 1 << 10),
    90: Multiprocessor(2048, 32, 228 << 10, 1 << 10),
    120: Multiprocessor(1536, 24, 100 << 10, 1 << 10),
}
"""By architecture: the six that the kernels are compiled for."""


def blocks_at_once(architecture: int, resources: Resources, block: int, dynamic_shared: int = 0) -> int:
    """How many blocks of threads fit on one multiprocessor: the least of four quotients."""
    limits = MULTIPROCESSORS[architecture]
    registers = _up(_up(resources.registers, 8) * 32, 256) * (block // 32)
    shared = _up(resources.shared + dynamic_shared + limits.reserved, 128)
    fit = [limits.threads // block, limits.blocks, REGISTERS // registers if registers else limits.blocks]
    return min(fit if shared == 0 else [*fit, limits.shared // shared])


def occupancy(architecture: int, resources: Resources, block: int, dynamic_shared: int = 0) -> float:
    """The share of a multiprocessor's threads that the kernel can fill, 0 to 1."""
    blocks = blocks_at_once(architecture, resources, block, dynamic_shared)
    return blocks * block / MULTIPROCESSORS[architecture].threads


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
