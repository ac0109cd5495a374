"""Imports go one way: cli, engine, then kernels and gguf_io; and no deep-learning framework."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# "" is the package itself: what a library user imports
ALLOWED = {
    "cli.py": {"engine", "kernels", "gguf_io", "errors", "load", "Engine", "__version__", ""},
    "engine": {"engine", "kernels", "gguf_io", "errors"},
    "kernels": {"kernels", "errors"},
    "gguf_io": {"gguf_io", "errors"},
}
FRAMEWORKS = {"torch", "jax", "tensorflow", "transformers"}


def sources() -> list[Path]:
    folders = [ROOT / name for name in ("engine", "kernels", "gguf_io", "tests", "bench")]
    files = [ROOT / "cli.py", *sorted((ROOT / "src" / "hotcold").glob("*.py"))]
    return [p for p in files if not p.is_symlink()] + [p for f in folders for p in sorted(f.rglob("*.py"))]


def imported(source: str) -> Iterator[str]:
    """Full names of the modules that a source imports, wherever in it; relative ones begin with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.ImportFrom) and node.module == "hotcold":
            yield from (f"hotcold.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def forbidden(room: str, source: str) -> set[str]:
    """What a source in one of the rooms imports and must not."""
    names = set(imported(source))
    bad = {name for name in names if name.startswith(".") or name.split(".")[0] in FRAMEWORKS}
    if room in ALLOWED:
        ours = {name for name in names if name.split(".")[0] == "hotcold"}
        bad |= {name for name in ours if (name + ".").split(".")[1] not in ALLOWED[room]}
    return bad


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    assert not forbidden(path.relative_to(ROOT).parts[0], path.read_text())


def test_every_room_is_looked_at() -> None:
    rooms = {path.relative_to(ROOT).parts[0] for path in sources()}
    assert rooms >= {*ALLOWED, "src", "tests", "bench"}


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("kernels", "from hotcold.engine.model.model import Weight"),
        ("kernels", "from hotcold import gguf_io"),
        ("kernels", "import hotcold"),
        ("kernels", "def f():\n    import hotcold.engine.graph.graph as g"),
        ("gguf_io", "import hotcold.kernels.cpu"),
        ("gguf_io", "from ..engine import model"),
        ("engine", "from hotcold.cli import app"),
        ("engine", "from . import model"),
        ("cli.py", "from hotcold.models import x"),
        ("tests", "import torch.nn"),
        ("src", "from jax import numpy"),
    ],
)
def test_imports_the_other_way_are_seen(room: str, source: str) -> None:
    assert forbidden(room, source)
