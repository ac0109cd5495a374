"""Where compiled kernels go: named after the sources, usable anywhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hotcold.kernels.cpu import cache

FOLDER = "import hotcold.kernels.cpu as c, numba; print(numba.config.CACHE_DIR); print(c.needs_compiling())"


def folder_in(environment: dict[str, str]) -> tuple[Path, bool]:
    """What a fresh process with only this environment uses, and whether it must compile."""
    done = subprocess.run(
        [sys.executable, "-c", FOLDER], check=True, capture_output=True, text=True, env=environment
    )
    path, needed = done.stdout.split()
    return Path(path), needed == "True"


def test_a_changed_source_changes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.source_hash()
    copy = shutil.copytree(Path(cache.__file__).parent, tmp_path / "cpu")
    monkeypatch.setattr(cache, "__file__", str(copy / "cache.py"))
    assert cache.source_hash() == before
    (copy / "rows.py").write_text((copy / "rows.py").read_text() + "\n")
    assert cache.source_hash() != before


def test_order_of_places(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME")}
    environment = {name: str(path) for name, path in places.items()}
    for name, path in places.items():
        expected = path / ".cache" if name == "HOME" else path
        assert folder_in(environment)[0].is_relative_to(expected)
        del environment[name]
    assert folder_in({"TMPDIR": str(tmp_path)})[0].is_relative_to(tmp_path)


def test_an_unusable_home_falls_back_to_the_temporary_folder(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    path, needed = folder_in({"HOME": str(blocked), "TMPDIR": str(tmp_path)})
    assert path.is_relative_to(tmp_path)
    assert needed


def test_another_cpu_level_has_its_own_folder(tmp_path: Path) -> None:
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    levels = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    assert folder_in(environment)[0] != folder_in(environment | levels)[0]


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    code = "from hotcold.kernels.cpu.team import compile_kernels; compile_kernels()"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        files = sorted(p.name for p in tmp_path.rglob("*.nbc"))
        stamps = [p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("*.nbc"))]
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert sorted(p.name for p in tmp_path.rglob("*.nbc")) == files
    assert [p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("*.nbc"))] == stamps
    assert not folder_in(environment)[1]
