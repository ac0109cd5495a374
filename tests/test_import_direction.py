"""Imports go one way, from room to room and from module to module; and no deep-learning framework.

A room is a folder, or a file that stands alone; the longest name of ROOMS that a path begins with is its room.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "hotcold"
FRAMEWORKS = {"torch", "jax", "tensorflow", "transformers"}

# wings of one line do not know each other; each knows all below it
WINGS = (
    ("commands",),
    ("train", "calibrate", "serve"),
    ("dump", "measure", "profile", "chat"),
    ("generation",),
    ("run",),
    ("device",),
    ("host",),
    ("plan",),
    ("graph",),
    ("model", "tokenizer"),
)
FORMAT = {"gguf_io"}
CONVERSION = {"gguf_io/huggingface", "gguf_io/convert"}
HUB = {"gguf_io/hub"}
AGREED = {
    "kernels/formats",
    "kernels/kv_layout",
    "kernels/ref",
    "kernels/tensor_cores",
    "kernels/weight_table",
}
CPU = AGREED | {"kernels/cpu"}
DEVICE = AGREED | {"kernels/cuda", "kernels/cuda/device"}
# what a wing may import besides wings; who reads the CPU's side never opens the device's
BELOW = {
    "commands": CPU | DEVICE | CONVERSION | HUB | {"__init__"},
    "dump": CPU | DEVICE,
    "measure": CPU,
    "profile": CPU,
    "train": CPU,
    "calibrate": CPU,
    "chat": set[str](),
    "serve": set[str](),
    "generation": CPU | DEVICE,
    "run": CPU | DEVICE,
    "device": CPU | DEVICE | {"kernels/cuda/emulator"},
    "host": CPU,
    "plan": AGREED,
    "graph": AGREED,
    "model": AGREED | HUB,
    "tokenizer": set[str](),
}


def wings_below(name: str) -> set[str]:
    """The wings that a wing may import, without itself."""
    level = next(i for i, wings in enumerate(WINGS) if name in wings)
    return {f"engine/{wing}" for wings in WINGS[level + 1 :] for wing in wings}


LIBRARY = {"", "load", "Engine", "__version__"}  # what the package itself offers: the room "__init__"
LEAVES = {
    "closing",
    "errors",
    "text_file",
    "whole_file",
    "cache_folder",
    "code_files",
    "light_gguf",
    "compiled_code",
}  # every room may import them
# what each room may import besides itself and the leaves
ROOMS: dict[str, set[str]] = {
    "__init__": {"engine/generation"},
    "__main__": {"cli"},
    "cli": {"engine/commands"},
    "serve": {"engine/serve"},
    "engine": set(),
    "engine/settings": set(),
    **{f"engine/{name}": wings_below(name) | BELOW[name] | FORMAT | {"engine/settings"} for name in BELOW},
    "gguf_io": {"gguf_io/quantise"},
    "gguf_io/quantise": set(),
    "gguf_io/huggingface": FORMAT,
    "gguf_io/hub": FORMAT,
    "gguf_io/convert": FORMAT | {"gguf_io/huggingface"},
    "kernels": set(),
    "kernels/ref": {"kernels/formats"},
    "kernels/ref_experts": {"kernels/ref"},
    "kernels/order_of_sums": {"kernels/ref"},
    "kernels/order_of_device_sums": {"kernels/ref", "kernels/order_of_sums"},
    "kernels/formats": set(),
    "kernels/kv_layout": {"kernels/formats"},
    "kernels/tensor_cores": set(),
    "kernels/weight_table": set(),
    "kernels/cpu": AGREED,
    "kernels/cuda": AGREED | {"kernels/cuda/device"},
    "kernels/cuda/device": AGREED,
    "kernels/cuda/emulator": AGREED | {"kernels/cuda/device"},
    "closing": set(),
    "errors": set(),
    "text_file": set(),
    "whole_file": set(),
    "cache_folder": set(),
    "code_files": set(),
    "light_gguf": set(),
    "compiled_code": set(),
}


def sources() -> list[Path]:
    """Every source of ours, each once, though `src/hotcold` links to some."""
    folders = [ROOT / name for name in ("engine", "kernels", "gguf_io", "tests", "bench")]
    files = [ROOT / "cli.py", *sorted((ROOT / "src" / PACKAGE).glob("*.py"))]
    return [p for p in files if not p.is_symlink()] + [p for f in folders for p in sorted(f.rglob("*.py"))]


def name_of(path: Path) -> str:
    """The path that tells a source's room: without suffix, and a package's own file as its folder."""
    name = path.relative_to(ROOT).with_suffix("").as_posix()
    return name.removeprefix(f"src/{PACKAGE}/").removesuffix("/__init__")


@cache
def imported(source: str) -> frozenset[str]:
    """Full names of what a source imports, wherever in it; relative ones begin with a dot."""
    return frozenset(imports(ast.parse(source)))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def ours(source: str) -> set[str]:
    """What of the package a source imports, as paths in it."""
    names = {name for name in imported(source) if name.split(".")[0] == PACKAGE}
    return {name.removeprefix(PACKAGE).removeprefix(".").replace(".", "/") for name in names}


def room_of(name: str) -> str:
    """The room of a path; "" for what is in none."""
    if name in LIBRARY:
        return "__init__"
    found = [room for room in ROOMS if f"{name}/".startswith(f"{room}/")]
    return max(found, key=len, default="")


def forbidden(name: str, source: str) -> set[str]:
    """What a source of this name imports and must not."""
    bad = {other for other in imported(source) if other[0] == "." or other.split(".")[0] in FRAMEWORKS}
    room = room_of(name)
    if room:
        allowed = ROOMS[room] | {room} | LEAVES
        bad |= {other for other in ours(source) if room_of(other) not in allowed}
    return bad


def circle(texts: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a circle, the first one found; none: an empty list.

    Args:
        texts: source by name.
    """
    graph = {
        name: {module_of(other, texts) for other in ours(source)} - {"", name}
        for name, source in texts.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def module_of(name: str, texts: Mapping[str, str]) -> str:
    """The module that an imported name is, or is in; "" if it is none of these."""
    return next((end for end in (name, name.rpartition("/")[0]) if end in texts), "")


def test_imports_go_one_way() -> None:
    texts = {name_of(path): path.read_text() for path in sources()}
    found = {name: bad for name, text in texts.items() if (bad := forbidden(name, text))}
    assert not found


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not circle({name_of(path): path.read_text() for path in sources()})


def test_every_room_is_looked_at() -> None:
    names = [name_of(path) for path in sources()]
    assert {room_of(name) for name in names} >= ROOMS.keys() - {"kernels/formats", "kernels/weight_table"}
    assert {name.split("/")[0] for name in names} >= {"tests", "bench"}


def test_every_folder_of_the_engine_is_a_wing() -> None:
    folders = {p.name for p in (ROOT / "engine").iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert folders == {wing for wings in WINGS for wing in wings} == set(BELOW)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("kernels/ref", "from hotcold.engine.model.model import Weight"),
        ("kernels/ref", "from hotcold.kernels.cpu import program"),
        ("kernels/formats", "import hotcold.kernels.cpu.program"),
        ("kernels/cpu/rows", "from hotcold import gguf_io"),
        ("kernels/cpu/rows", "import hotcold"),
        ("kernels/cpu/rows", "from hotcold.kernels.cuda import rope"),
        ("kernels/cpu/rows", "def f():\n    import hotcold.engine.graph.graph as g"),
        ("kernels/cuda/rope", "from hotcold.kernels.cuda.emulator.driver import EmulatedDriver"),
        ("kernels/cuda/rope", "from hotcold.kernels.cpu import tiles"),
        ("kernels/cuda/device/device", "from hotcold.kernels.cuda import rope"),
        ("kernels/cuda/device/device", "from hotcold.kernels.cuda.emulator import driver"),
        ("kernels/cuda/emulator/driver", "from hotcold.kernels.cuda.rope import rope"),
        ("gguf_io/reader", "import hotcold.kernels.cpu"),
        ("gguf_io/reader", "from ..engine import model"),
        ("gguf_io/reader", "from hotcold.gguf_io.huggingface import fields"),
        ("gguf_io/huggingface/llama", "from hotcold.gguf_io.convert import outtypes"),
        ("gguf_io/quantise/rows", "from hotcold.gguf_io import blocks"),
        ("gguf_io/quantise/jit", "from hotcold.kernels.cpu import cache"),
        ("engine/model/model", "from hotcold.engine.tokenizer import vocabulary"),
        ("engine/graph/graph", "from hotcold.engine.plan.plan import Plan"),
        ("engine/graph/architectures/opt", "from hotcold.engine.plan.plan import Plan"),
        ("engine/plan/plan", "import hotcold.engine.host.side"),
        ("engine/host/side", "from hotcold.engine.device import side"),
        ("engine/host/side", "from hotcold.kernels.cuda.device import buffers"),
        ("engine/device/side", "from hotcold.engine.run.executor import Executor"),
        ("engine/run/executor", "from hotcold.engine.generation import generation"),
        ("engine/generation/loading", "from hotcold.engine import chat"),
        ("engine/chat/prompt", "from hotcold.engine.measure import traffic"),
        ("engine/dump/text", "from hotcold.engine.commands import terminal"),
        ("engine/generation/loading", "from hotcold.gguf_io.convert.conversion import convert"),
        ("engine/settings", "from hotcold.engine.tokenizer.bpe import Bpe"),
        ("engine/run/executor", "from hotcold.cli import app"),
        ("engine/run/executor", "from . import offload"),
        ("cli", "from hotcold.models import x"),
        ("errors", "from hotcold.engine import settings"),
        ("tests/test_library", "import torch.nn"),
        ("bench/ops", "from jax import numpy"),
        ("__init__", "from hotcold.engine.plan import budget"),
    ],
)
def test_imports_the_other_way_are_seen(name: str, source: str) -> None:
    assert forbidden(name, source)


@pytest.mark.parametrize(
    "source",
    [
        "from hotcold.engine.plan import c",
        "from hotcold.engine.plan.c import Name",
        "import hotcold.engine.plan.c",
        "def f():\n    from hotcold.engine.plan import c",
        "if TYPE_CHECKING:\n    from hotcold.engine.plan.c import Name",
    ],
)
def test_circles_are_seen(source: str) -> None:
    """Also those that only a type checker or a call would walk."""
    texts = {
        "engine/plan/a": source,
        "engine/plan/b": "from hotcold.engine.plan.a import Name",
        "engine/plan/c": "from hotcold.engine.plan import b",
    }
    assert set(circle(texts)) == set(texts)
    assert not circle(texts | {"engine/plan/c": "from hotcold.engine.plan import d"})
