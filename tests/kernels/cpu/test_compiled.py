"""Compiled functions on disk: files that are cut or another's, and a disk that takes no more."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCE = """
from numba import types
from hotcold.kernels.cpu.compiled import compiled, compiled_code

@compiled
def doubled(n: int) -> int:
    return 2 * n

@compiled
def squared(n: int) -> int:
    return n * n

@compiled_code(types.void(types.int64))
def nothing(n: int) -> None:
    pass
"""
RUN = """
import sys, os
sys.path.insert(0, sys.argv[1])
import hotcold.kernels.cpu
from numba.core import config
config.CACHE_DIR = sys.argv[2]
from hotcold import compiled_code
{before}
import functions
print(functions.doubled(21), functions.squared(5), functions.nothing.address != 0)
print(functions.nothing.cache_hits + sum(sum(f.stats.cache_hits.values()) for f in (functions.doubled, functions.squared)))
"""


class Place:
    """A module with three compiled functions, and the folder of their files."""

    def __init__(self, folder: Path) -> None:
        self.sources, self.cache = folder / "sources", folder / "cache"
        self.sources.mkdir()
        self.cache.mkdir()
        (self.sources / "functions.py").write_text(SOURCE)

    def run(self, before: str = "") -> tuple[int, str]:
        """How many functions came from disk, and what was said; what they give is right."""
        command = [sys.executable, "-c", RUN.format(before=before), str(self.sources), str(self.cache)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        values, hits = done.stdout.splitlines()
        assert values == "42 25 True"
        return int(hits), done.stderr

    def files(self, ending: str) -> list[Path]:
        return sorted(self.cache.rglob(f"*{ending}"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield Place(tmp_path_factory.mktemp("compiled"))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "halved": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "a bit flipped": flipped,
    "text": lambda content: b"<html>",
}


@pytest.mark.parametrize(
    ("ending", "how"),
    [(".nbi", "halved"), (".nbi", "zeros"), *((".nbc", how) for how in SPOILED)],
)
def test_a_broken_file_is_made_again_with_a_notice(place: Place, ending: str, how: str) -> None:
    place.run()  # what the test before it has left is mended
    for path in place.files(ending):
        path.write_bytes(SPOILED[how](path.read_bytes() or b"left over"))
    hits, said = place.run()
    assert hits == 0
    assert said.count("are damaged: compiling again") == 1 and len(said.splitlines()) == 1
    assert place.run() == (3, "")


def test_the_code_of_another_function_is_seen(place: Place) -> None:
    """Its file is whole, and its types are the same."""
    place.run()
    doubled = next(path for path in place.files(".nbc") if "doubled" in path.name)
    squared = next(path for path in place.files(".nbc") if "squared" in path.name)
    squared.write_bytes(doubled.read_bytes())
    hits, said = place.run()
    assert hits == 2 and "damaged" in said
    assert place.run() == (3, "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_what_cannot_be_written_is_not_kept(tmp_path: Path, number: int) -> None:
    place = Place(tmp_path)
    before = (
        "def full(self, path):\n"
        f"    raise OSError({number}, os.strerror({number}))\n"
        "compiled_code.KernelFiles._open_for_write = full"
    )
    hits, said = place.run(before)
    assert hits == 0 and len(said.splitlines()) == 1 and "cannot be kept" in said
    assert not place.files(".nbc")


def test_no_place_at_all(tmp_path: Path) -> None:
    place = Place(tmp_path)
    before = "compiled_code.caching.CacheImpl._locator_classes = []"
    hits, said = place.run(before)
    assert hits == 0 and "cannot be kept" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "code", ["import hotcold.kernels.cpu", "import hotcold; hotcold.load", "from hotcold.cli import main"]
)
def test_numba_that_may_not_compile_is_named(code: str) -> None:
    script = f"from hotcold.errors import SettingError\ntry:\n    {code}\nexcept SettingError as error:\n    print(error)"
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stderr == ""
    if "cli" not in code:
        assert "NUMBA_DISABLE_JIT: 1 (hotcold's kernels are compiled); unset it" in done.stdout
