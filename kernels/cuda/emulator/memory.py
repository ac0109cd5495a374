"""Memory of the emulated device: every block of it lies between two pages that may not be touched."""

import ctypes
import mmap
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.errors import DeviceError, DoesNotFitError
from hotcold.kernels.formats import granules

POISON = 0xFF
"""Fresh memory is full of this byte: NaN as a float, -1 as an int."""
ALIGNMENT = 16


@cache
def _libc() -> ctypes.CDLL:
    """The C library; loaded at first use, since this file is imported on every system."""
    return ctypes.CDLL(None, use_errno=True)


class Block:
    """`n_bytes` of memory that end, or with `at_start` begin, at a guard page."""

    def __init__(self, n_bytes: int, at_start: bool) -> None:
        self.n_bytes = n_bytes
        room = -(-n_bytes // ALIGNMENT) * ALIGNMENT
        self.inner = max(1, -(-room // mmap.PAGESIZE)) * mmap.PAGESIZE
        self.map = mmap.mmap(-1, self.inner + 2 * mmap.PAGESIZE)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self._protect(self.base, mmap.PAGESIZE)
        self._protect(self.base + mmap.PAGESIZE + self.inner, mmap.PAGESIZE)
        self.address = self.base + mmap.PAGESIZE + (0 if at_start else self.inner - room)
        ctypes.memset(self.base + mmap.PAGESIZE, POISON, self.inner)

    @staticmethod
    def _protect(address: int, n_bytes: int) -> None:
        if _libc().mprotect(ctypes.c_void_p(address), ctypes.c_size_t(n_bytes), 0):
            raise DeviceError("emulated memory", ctypes.get_errno(), "mprotect failed", "free some memory")

    def array(self) -> NDArray[np.uint8]:
        """The block's bytes."""
        return np.ctypeslib.as_array((ctypes.c_ubyte * self.n_bytes).from_address(self.address))

    def retire(self) -> None:
        """Give the memory back and keep its addresses: whoever still uses them faults."""
        self.map.madvise(mmap.MADV_DONTNEED)
        self._protect(self.base, self.inner + 2 * mmap.PAGESIZE)

    def __contains__(self, address: int) -> bool:
        return self.base <= address < self.base + self.inner + 2 * mmap.PAGESIZE


class Allocator:
    """An allocator: of the emulated device, and of its page-locked host memory.

    Attributes:
        total: bytes that there are.
        used: bytes taken from it, in whole granules.
        others: addresses and bytes of what belongs to others, and may be used here too.
    """

    def __init__(self, total: int, at_start: bool) -> None:
        self.total, self.at_start, self.used = total, at_start, 0
        self.blocks: dict[int, Block] = {}
        self.retired: list[Block] = []
        self.others: dict[int, int] = {}

    def allocate(self, n_bytes: int) -> NDArray[np.uint8]:
        """A fresh block's bytes, poisoned.

        Raises:
            DoesNotFitError: the device or the host has not that much left.
        """
        size = granules(n_bytes)
        if self.used + size > self.total:
            raise DoesNotFitError(
                "device memory", n_bytes, f"{self.total - self.used} of {self.total} bytes left"
            )
        try:
            block = Block(n_bytes, self.at_start)
        except (OSError, ValueError) as error:
            raise DoesNotFitError("device memory", n_bytes, f"the host refuses: {error}") from error
        self.blocks[block.address] = block
        self.used += size
        return block.array()

    def release(self, array: Any) -> None:
        """Take back what `allocate` returned."""
        block = self.blocks.pop(array.ctypes.data)
        self.used -= granules(block.n_bytes)
        block.retire()
        self.retired.append(block)

    def covers(self, address: int, n_bytes: int) -> bool:
        """Whether these bytes all lie in one block that is in use."""
        return any(
            block.address <= address and address + n_bytes <= block.address + block.n_bytes
            for block in self.blocks.values()
        ) or any(
            start <= address and address + n_bytes <= start + size for start, size in self.others.items()
        )

    def describe(self, address: int) -> str:
        """Which block an address lies in or beside, in words; empty if in none."""
        for kind, blocks in (("", self.blocks.values()), ("freed ", self.retired)):
            for block in blocks:
                if address in block:
                    return f"byte {address - block.address} of a {kind}buffer of {block.n_bytes} bytes"
        return ""
