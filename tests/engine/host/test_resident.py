"""What the CPU reads, and the machine's memory."""

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hotcold
from hotcold.engine.host import machine, resident
from hotcold.engine.host.resident import host_memory, make_resident, memory_note, read_into_memory
from hotcold.engine.model.load import load_model
from hotcold.engine.model.model_path import model_path
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.errors import DoesNotFitError
from hotcold.gguf_io import GGUFFile, open_gguf, residency
from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.residency import POPULATE_READ, ranges_of

DATA = Path(__file__).parent.parent.parent / "data" / "llamacpp"
Write = Callable[[dict[str, str]], Path]


@pytest.fixture
def root(tmp_path: Path) -> Write:
    """A machine's /proc and /sys: texts by path."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "root"

    return write


def plan_of(file: GGUFFile, sparsity: str = "off") -> Any:
    return plan_for_cpu(load_model(file), Wanted(sparsity, 32, 8))


MIB = 1 << 20


@pytest.mark.parametrize(
    ("files", "limit", "available"),
    [
        ({"proc/meminfo": "MemTotal: 90 kB\nMemAvailable: 2048 kB\n"}, None, 2 * MIB),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/memory.max": str(8 * MIB),
                "sys/fs/cgroup/a/memory.current": str(7 * MIB),
                "sys/fs/cgroup/a/memory.stat": f"anon 5\nactive_file {MIB}\ninactive_file {2 * MIB}",
                "sys/fs/cgroup/a/b/memory.max": "max",
            },
            8 * MIB,
            4 * MIB,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/job\n1:cpu:/x",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(5 * MIB),
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(6 * MIB),
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            5 * MIB,
            0,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/not/mounted",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "4096",
            },
            4096,
            4096,
        ),
    ],
)
def test_the_tightest_cgroup_counts(
    root: Write, files: dict[str, str], limit: int | None, available: int
) -> None:
    """Pages of files can be given back, so they are free."""
    place = root(files)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.physical_memory(place) == (limit or whole)
    assert machine.available_memory(place) == available


@pytest.mark.parametrize("name", ["llama.f16", "falcon.f16", "mixtral.q4_0"])
def test_what_does_not_fit_is_said(root: Write, name: str) -> None:
    with open_gguf(DATA / f"{name}.gguf") as file:
        plan = plan_of(file)
        wanted = host_memory(plan)
        assert wanted.weights > sum(entry.n_bytes for entry in plan.weights if entry.role == "ffn")
        exact = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": str(wanted.n_bytes)}
        assert memory_note(plan, root(exact)) == ""
        less = exact | {"sys/fs/cgroup/memory.max": str(wanted.n_bytes - 1)}
        note = memory_note(plan, root(less))
        assert "KV cache" in note and "wait for the disk" in note and "\n" not in note


@pytest.mark.parametrize("sparsity", ["predictor", "exact", "off"])
def test_pages_come_in_at_once_or_advice_is_given(
    root: Write, monkeypatch: pytest.MonkeyPatch, sparsity: str
) -> None:
    """By the tensors that the CPU reads, with progress that ends at all of them."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(residency, "populate_range", lambda each, first, n: asked.append((POPULATE_READ, n)))
    monkeypatch.setattr(residency, "AT_ONCE", 65536)
    told: list[tuple[int, bool]] = []
    monkeypatch.setattr(resident, "advise", lambda ranges, advice: told.append((advice, bool(ranges))))
    heard: list[tuple[int, int, float]] = []
    with open_gguf(model_path(None)) as file:
        plan = plan_of(file, sparsity)
        assert make_resident(plan, file, progress=lambda *said: heard.append(said)) == ()
        assert not told and len(asked) > 10
        assert sum(n for _, n in asked) >= sum(entry.host_bytes for entry in plan.weights)
        assert heard[-1][0] == heard[-1][1] and [done for done, _, _ in heard] == sorted(
            done for done, _, _ in heard
        )
        asked.clear()
        small = {"proc/meminfo": "MemAvailable: 100 kB\n"}
        make_resident(plan, file, root=root(small))
        assert not asked and told == [(mmap.MADV_RANDOM, sparsity != "off"), (mmap.MADV_SEQUENTIAL, True)]


@pytest.mark.parametrize(
    ("number", "asked"), [(errno.EINVAL, [mmap.MADV_WILLNEED]), (errno.ENOMEM, []), (errno.EFAULT, [])]
)
def test_an_old_system_reads_ahead(monkeypatch: pytest.MonkeyPatch, number: int, asked: list[int]) -> None:
    """And one that cannot reads when a page is touched."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    told: list[int] = []
    monkeypatch.setattr(residency, "populate_range", refuse)
    monkeypatch.setattr(residency, "advise", lambda ranges, advice: told.append(advice))
    with open_gguf(DATA / "llama.f16.gguf") as file:
        assert not residency.populate(ranges_of(file, file.tensors))
    assert told == asked


def resident_pages(file: GGUFFile) -> int:
    """Pages of the map that are in this process's page table."""
    address = file.data("token_embd.weight").__array_interface__["data"][0]
    lines = Path("/proc/self/smaps").read_text().splitlines()
    inside = False
    for line in lines:
        if "-" in line.split()[0]:
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            inside = low <= address < high
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) // 4
    raise AssertionError("not mapped")


@pytest.mark.parametrize("name", ["llama.f32", "llama.q8_0", "mixtral.f16"])
def test_populated_pages_are_in_the_page_table(name: str) -> None:
    with open_gguf(DATA / f"{name}.gguf") as file:
        before = resident_pages(file)
        if not residency.populate(ranges_of(file, file.tensors)):
            pytest.skip("the system has no MADV_POPULATE_READ")
        assert resident_pages(file) > before
        assert resident_pages(file) * 4096 >= sum(info.n_bytes for info in file.tensors.values())


@pytest.mark.parametrize(
    "names", [None, ["blk.0.ffn_up.weight"], ["blk.1.attn_q.weight", "output_norm.weight"]]
)
def test_ranges_cover_their_tensors(names: list[str] | None) -> None:
    with open_gguf(DATA / "llama.q8_0.gguf") as file:
        wanted = list(file.tensors) if names is None else names
        ranges = ranges_of(file, wanted)
        for name in wanted:
            info = file.tensors[name]
            assert any(
                r.first <= info.offset and info.offset + info.n_bytes <= r.first + r.n_bytes for r in ranges
            )
        assert all(each.first % mmap.PAGESIZE == 0 for each in ranges)
        assert len(ranges) == (1 if names is None else len(wanted))


@pytest.mark.parametrize("split", [False, True])
def test_without_a_map_the_same_comes_out(tmp_path: Path, split: bool) -> None:
    path = DATA / "llama.f16.gguf"
    if split:
        path = convert(path, None, tmp_path / "m.gguf", "f16", max_bytes=60_000).files[0]
    with hotcold.load(path, device="cpu") as engine:
        want = engine.logits([1, 5, 7])
    with hotcold.load(path, device="cpu", no_mmap=True, mlock=True) as engine:
        assert np.array_equal(engine.logits([1, 5, 7]), want)


def test_a_file_in_memory_does_not_mind_being_cut(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes((DATA / "llama.f16.gguf").read_bytes())
    heard: list[int] = []
    with open_gguf(path) as file:
        read_into_memory(file, lambda done, total, seconds: heard.append(done))
        os.truncate(path, 0)
        assert file.data("output.weight").any()
        assert heard[-1] == file.size


def test_what_is_too_large_to_be_read_is_refused(root: Write) -> None:
    little = root({"proc/meminfo": "MemAvailable: 1 kB\n"})
    refused = pytest.raises(DoesNotFitError, match="--no-mmap.*leave it out")
    with open_gguf(DATA / "llama.f16.gguf") as file, refused:
        read_into_memory(file, root=little)


@pytest.mark.parametrize("problem", ["Cannot allocate memory", "Operation not permitted"])
def test_weights_that_cannot_be_locked_are_a_line(monkeypatch: pytest.MonkeyPatch, problem: str) -> None:
    monkeypatch.setattr(resident, "lock", lambda ranges: problem)
    with open_gguf(DATA / "llama.f16.gguf") as file:
        (line,) = make_resident(plan_of(file), file, keep=True)
        assert problem in line and "ulimit -l" in line
