"""Which bytes of a model's maps are in memory: brought there in one go, kept there, or left to the system."""

import contextlib
import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from hotcold.gguf_io.reader import GGUFFile

POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which Python's mmap does not name
AT_ONCE = 64 << 20  # bytes between two words about progress, and two chances to be interrupted
ReadProgress = Callable[[int, int, float], None]
"""Hears of bytes that are in memory, bytes in all, and seconds."""


@dataclass(frozen=True)
class Range:
    """Whole pages of a map: the first byte, and how many."""

    mapping: mmap.mmap
    first: int
    n_bytes: int


def ranges_of(file: GGUFFile, names: Collection[str]) -> list[Range]:
    """The pages that some tensors lie on, in the order of the files; neighbours are one."""
    ranges: list[Range] = []
    for part in file.parts:
        placed = sorted(
            (part.tensors[name] for name in part.tensors.keys() & set(names)), key=lambda t: t.offset
        )
        for info in placed:
            first = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            end = info.offset + info.n_bytes
            last = ranges[-1] if ranges else None
            if (
                last is not None
                and last.mapping is part.mapping
                and first <= last.first + last.n_bytes + mmap.PAGESIZE
            ):
                ranges[-1] = Range(part.mapping, last.first, max(end - last.first, last.n_bytes))
            elif info.n_bytes:
                ranges.append(Range(part.mapping, first, end - first))
    return ranges


def populate(ranges: Sequence[Range], progress: ReadProgress | None = None) -> bool:
    """Bring pages into memory and into the process's page table, so that no thread faults on them later.

    Returns:
        Whether the system could. An old one is asked to read ahead instead; one that cannot reads when a
        page is touched, as it would have.
    """
    started, done, total = time.perf_counter(), 0, sum(each.n_bytes for each in ranges)
    for each in ranges:
        for first in range(each.first, each.first + each.n_bytes, AT_ONCE):
            n_bytes = min(AT_ONCE, each.first + each.n_bytes - first)
            try:
                populate_range(each, first, n_bytes)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    advise(ranges, mmap.MADV_WILLNEED)
                return False
            done += n_bytes
            if progress is not None:
                progress(done, total, time.perf_counter() - started)
    return True


def populate_range(each: Range, first: int, n_bytes: int) -> None:
    """Part of a range, at once; OSError if the system does not know how, or cannot."""
    each.mapping.madvise(POPULATE_READ, first, n_bytes)


def advise(ranges: Sequence[Range], advice: int) -> None:
    """Tell the system how pages will be read; one that does not know the word is left alone."""
    for each in ranges:
        with contextlib.suppress(OSError):
            each.mapping.madvise(advice, each.first, each.n_bytes)


def lock(ranges: Sequence[Range]) -> str:
    """Keep pages in memory until the map is closed; why they are not, in words, or "" if they are."""
    mlock = ctypes.CDLL(None, use_errno=True).mlock
    mlock.argtypes, mlock.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_int
    for each in ranges:
        start = np.frombuffer(each.mapping, np.uint8, 1, each.first).__array_interface__["data"][0]
        if mlock(start, each.n_bytes):
            return os.strerror(ctypes.get_errno())
    return ""
