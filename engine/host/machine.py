"""What this machine lets a process use: physical cores, the quota of its cgroup, memory, a driver for cards."""

import ctypes
import math
import os
import sys
from pathlib import Path

from hotcold.engine.settings import whole_number

MAX_THREADS = 1024


def thread_count(wanted: int | None) -> int:
    """The wanted number of threads, else `default_threads()`."""
    if wanted is None:
        return default_threads()
    return whole_number("threads", wanted, 1, MAX_THREADS, such_as="-t 2")


def default_threads(root: Path = Path("/"), affinity: set[int] | None = None) -> int:
    """Physical cores that this process may use, and no more than its cgroup's CPU quota, at least 1.

    A second hardware thread of a core adds no memory bandwidth, and a quota below the number of threads
    stops all of them while they wait for each other.

    Args:
        root: where /sys and /proc are.
        affinity: the CPUs of this process; None asks the system.
    """
    cpus = _affinity() if affinity is None else affinity
    return _within_quota(physical_cores(root, cpus), root)


def cpu_count(root: Path = Path("/"), affinity: set[int] | None = None) -> int:
    """CPUs that this process may use, and no more than its cgroup's quota, at least 1; see `default_threads`."""
    return _within_quota(len(_affinity() if affinity is None else affinity), root)


def _within_quota(n: int, root: Path) -> int:
    quota = cpu_quota(root)
    return max(1, n if quota is None else min(n, math.floor(quota)))


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(root: Path, cpus: set[int]) -> int:
    """Distinct cores among `cpus`; a CPU whose core is not known counts as one."""
    cores = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package, core = _read(topology / "physical_package_id"), _read(topology / "core_id")
        die = _read(topology / "die_id") or "0"
        cores.add((package, die, core) if package is not None and core is not None else ("cpu", "", str(cpu)))
    return len(cores)


def cpu_quota(root: Path) -> float | None:
    """CPUs of the tightest quota among this process's cgroup (version 1 or 2) and those above it."""
    quotas = [q for folder in _cgroup_folders(root, "cpu") if (q := _folder_quota(folder)) is not None]
    return min(quotas, default=None)


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """The process's cgroup of a controller and its parents, where each is mounted by custom."""
    folders = []
    for line in (_read(root / "proc/self/cgroup") or "0::/").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        parts = [part for part in group.split("/") if part and part != ".."]
        folders += [mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
        if controllers:
            folders += [root / "sys/fs/cgroup" / controller]
    return folders


def _folder_quota(folder: Path) -> float | None:
    """Quota / period of one cgroup; cpu.max is version 2 ("max" is no limit), the others version 1."""
    words = (_read(folder / "cpu.max") or "").split()
    if not words:
        words = [_read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    try:
        quota, period = float(words[0]), float(words[1])
    except (IndexError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def physical_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this machine has, or the tightest of its cgroups may use."""
    limits = [limit for folder in _cgroup_folders(root, "memory") if (limit := _memory_limit(folder))]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that can be had now: what is free, and the files' pages that would give way."""
    free = _meminfo(root).get("MemAvailable", physical_memory(root))
    for folder in _cgroup_folders(root, "memory"):
        if limit := _memory_limit(folder):
            free = min(free, limit - _memory_in_use(folder))
    return max(free, 0)


def _meminfo(root: Path) -> dict[str, int]:
    """Bytes by name, of /proc/meminfo."""
    lines = (line.split() for line in (_read(root / "proc/meminfo") or "").splitlines())
    return {
        words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[1:] and words[1].isdecimal()
    }


def _memory_limit(folder: Path) -> int:
    """Bytes that one cgroup may use, of version 2 or 1; 0 for no limit."""
    text = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes") or ""
    return int(text) if text.isdecimal() else 0


def _memory_in_use(folder: Path) -> int:
    """Bytes that one cgroup uses and cannot give back: its pages of files do not count."""
    text = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes") or "0"
    pairs = (line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
    stat = {words[0]: int(words[1]) for words in pairs if len(words) == 2 and words[1].isdecimal()}
    of_files = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("active_file", "inactive_file"))
    return max(int(text) - of_files, 0) if text.isdecimal() else 0


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def has_cuda_driver() -> bool:
    """Whether the library of NVIDIA's driver is installed.

    Without it there is no card to look for, and CuPy, which takes a tenth of a second to import, need not be asked.
    """
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
