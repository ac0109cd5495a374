"""Imports go one way: cli, engine, then kernels and gguf_io; and no deep-learning framework."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "cli.py": {"engine", "kernels", "gguf_io", "errors"},
    "engine": {"engine", "kernels", "gguf_io", "errors"},
    "kernels": {"kernels", "errors"},
    "gguf_io": {"gguf_io", "errors"},
}
FRAMEWORKS = {"torch", "jax", "tensorflow", "transformers"}


def sources() -> list[Path]:
    folders = [ROOT / "cli.py", *(ROOT / name for name in ("engine", "kernels", "gguf_io", "tests", "bench"))]
    return [p for f in folders for p in ([f] if f.is_file() else sorted(f.rglob("*.py")))]


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "hotcold")


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    names = list(imported(path))
    assert not FRAMEWORKS & {name.split(".")[0] for name in names}
    if room in ALLOWED:
        inside = {name.split(".")[1] for name in names if name.startswith("hotcold.")}
        assert inside <= ALLOWED[room] | ({"load", "Engine", "__version__"} if room == "cli.py" else set())
