"""Threads are the physical cores that a process may use."""

from pathlib import Path
from typing import Any

import pytest

from hotcold.engine.host import machine
from hotcold.errors import SettingError


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def cpus(*cores: tuple[int, int]) -> dict[str, str]:
    """/sys of CPUs by (package, core)."""
    files: dict[str, str] = {}
    for cpu, (package, core) in enumerate(cores):
        topology = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files |= {f"{topology}/physical_package_id": str(package), f"{topology}/core_id": str(core)}
    return files


FOUR_CORES = cpus((0, 0), (0, 1), (0, 2), (0, 3), (0, 0), (0, 1), (0, 2), (0, 3))


def test_threads_are_physical_cores(tmp_path: Path) -> None:
    assert machine.default_threads(tree(tmp_path, FOUR_CORES), set(range(8))) == 4


def test_cores_of_two_packages_have_the_same_numbers(tmp_path: Path) -> None:
    root = tree(tmp_path, cpus((0, 0), (0, 1), (1, 0), (1, 1)))
    assert machine.default_threads(root, set(range(4))) == 4


@pytest.mark.parametrize(("affinity", "expected"), [({0, 4}, 1), ({0, 1, 5}, 2), ({6, 7}, 2), (set(), 1)])
def test_threads_stay_within_the_affinity(tmp_path: Path, affinity: set[int], expected: int) -> None:
    assert machine.default_threads(tree(tmp_path, FOUR_CORES), affinity) == expected


def test_without_topology_every_cpu_counts(tmp_path: Path) -> None:
    assert machine.default_threads(tmp_path, {0, 1, 2}) == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 4),
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, 4),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "300000 100000"}, 3),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "300000 100000",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/other/cpu.max": "100000 100000"}, 4),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/other",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/not/mounted",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4,
        ),
    ],
)
def test_threads_stay_within_the_quota(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert machine.default_threads(tree(tmp_path, FOUR_CORES | files), set(range(8))) == expected


@pytest.mark.parametrize(
    ("quota", "affinity", "expected"),
    [
        ("max 100000", set(range(8)), 8),
        ("max 100000", {0, 4}, 2),
        ("250000 100000", set(range(8)), 2),
        ("50000 100000", set(range(8)), 1),
    ],
)
def test_cpus_are_those_of_the_affinity_within_the_quota(
    tmp_path: Path, quota: str, affinity: set[int], expected: int
) -> None:
    """Two of a core count as two."""
    root = tree(tmp_path, FOUR_CORES | {"sys/fs/cgroup/cpu.max": quota})
    assert machine.cpu_count(root, affinity) == expected


def test_threads_of_this_machine() -> None:
    assert 1 <= machine.default_threads() <= machine.MAX_THREADS
    assert machine.thread_count(None) == machine.default_threads()
    assert machine.thread_count(3) == 3


@pytest.mark.parametrize("value", [0, -1, 1025, 1.5, True, "2"])
def test_bad_thread_counts_are_named(value: Any) -> None:
    shown = f'"{value}"' if isinstance(value, str) else value
    with pytest.raises(SettingError, match=rf"^threads: {shown} \(a whole number from 1 to 1024\)"):
        machine.thread_count(value)


@pytest.mark.parametrize("there", [True, False])
def test_a_driver_is_there_if_its_library_is(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    def open_library(name: str) -> None:
        if "cuda" not in name or not there:
            raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", open_library)
    assert machine.has_cuda_driver() is there
