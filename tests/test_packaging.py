"""What ends up in the wheel, and what is found where."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("engine", "kernels", "gguf_io")


@pytest.mark.parametrize("name", [*FOLDERS, "cli", "tests"])
def test_nothing_of_ours_lands_at_the_top_of_site_packages(name: str) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd="/").returncode == 0


def test_the_command_runs_from_anywhere() -> None:
    command = [sys.executable, "-m", "hotcold", "--help"]
    done = subprocess.run(command, check=False, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0
    assert "generate" in done.stdout


@pytest.mark.slow
def test_the_wheel_made_from_the_sdist_is_complete(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "-o", str(tmp_path), str(ROOT)], check=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = [
        p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".cu", ".h")
    ]
    wanted = {f"hotcold/{path.relative_to(ROOT)}" for path in sources} | {
        "hotcold/cli.py",
        "hotcold/errors.py",
        "hotcold/py.typed",
        "hotcold/models/tiny-relu-llama/tiny-relu-llama.q8_0.gguf",
    }
    assert wanted <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"hotcold"}
    assert not [name for name in names if name.endswith(".safetensors")]
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("src/hotcold/engine/graph/graph.py") for name in archive.getnames())
