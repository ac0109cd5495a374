"""What ends up in the wheel, from a tree with and without its symbolic links, and what is found where."""

import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("engine", "kernels", "gguf_io")
LEFT_OUT = {".git", "build", "dist", ".venv", "tests", "docs", "bench", "__pycache__"}
OFFLINE = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")


@pytest.mark.parametrize("name", [*FOLDERS, "cli", "models", "tests"])
def test_nothing_of_ours_lands_at_the_top_of_site_packages(name: str) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd="/").returncode == 0


def test_the_command_runs_from_anywhere() -> None:
    command = [sys.executable, "-m", "hotcold", "--help"]
    done = subprocess.run(command, check=False, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0
    assert "generate" in done.stdout


def files_of_the_tree(folder: Path = ROOT) -> Iterator[Path]:
    """What a wheel can be made of: files, and links as they are."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.is_file():
            yield path
        elif path.name not in LEFT_OUT and not path.name.endswith((".egg-info", "_cache")):
            yield from files_of_the_tree(path)


def archive_of_the_tree(path: Path) -> None:
    """A .zip as forges make it: a link is an entry of its own kind, whose content is its target."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in files_of_the_tree():
            if file.is_symlink():
                entry = zipfile.ZipInfo(str(file.relative_to(ROOT)))
                entry.create_system = 3  # Unix
                entry.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(entry, os.readlink(file))
            else:
                archive.write(file, file.relative_to(ROOT))


MODELS = "tiny-relu-llama/tiny-relu-llama.q8_0.gguf", "tiny-moe-austen/tiny-moe-austen.q4_0.gguf"
SUFFIXES = ".py", ".cu", ".h", ".html"


def expected() -> set[str]:
    """Every file that a wheel has to have."""
    inside = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES]
    own = [p.name for p in (ROOT / "src" / "hotcold").glob("*.py")]
    models = [f"models/{name}" for name in MODELS]
    names = [*(str(path.relative_to(ROOT)) for path in inside), *own, "py.typed", "cli.py", *models]
    return {f"hotcold/{name}" for name in names}


def check_wheel(path: Path) -> None:
    """All of ours, all in one folder, and no file that only training needs."""
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert archive.read("hotcold/cli.py") == (ROOT / "cli.py").read_bytes()
    assert names == expected()


@pytest.mark.slow
def test_the_wheel_made_from_the_sdist_is_complete(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "-o", str(tmp_path), str(ROOT)], check=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    (wheel,) = tmp_path.glob("*.whl")
    check_wheel(wheel)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"engine/graph/graph.py", "cli.py", "setup.py", "src/hotcold/errors.py"}


@pytest.mark.slow
def test_a_tree_without_its_links_installs_and_generates(tmp_path: Path) -> None:
    """Python's zipfile makes a text file of each link; nothing is fetched, and nothing but ours is installed."""
    archive_of_the_tree(tmp_path / "tree.zip")
    tree, site = tmp_path / "tree", tmp_path / "site"
    with zipfile.ZipFile(tmp_path / "tree.zip") as archive:
        archive.extractall(tree)
    assert (tree / "src/hotcold/engine").read_text() == "../../engine"
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", *OFFLINE, "-w", str(tmp_path), str(tree)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    check_wheel(wheel)
    subprocess.run([*pip, "install", *OFFLINE, "--target", str(site), str(wheel)], check=True)
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"hotcold", "bin"}
    environment = os.environ | {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "hotcold", "generate", "-p", "It is a truth", "-n", "4", "--temp", "0"]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
