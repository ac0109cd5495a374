"""Commands that write, where the disk is full: one line, exit code 4, and what was there before.

A limit on the size of files stands in for the disk: the system refuses the bytes behind it, at whatever call.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import Result, run

from hotcold.code_files import read_code, write_code
from hotcold.engine.model.model_path import model_path

DATA = Path(__file__).parents[2] / "data" / "llamacpp"
MODEL, TEXT = str(DATA / "llama.f16.gguf"), "She was looking. " * 40
CONVERT = ("convert", MODEL, "--outtype", "f16", "--force", "--outfile")


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_with_room(n_bytes: int, *arguments: str) -> Result:
    run("--version")  # compiles what is not compiled yet, outside of the limit
    with room_for(n_bytes):
        return run(*arguments)


@pytest.mark.slow
def test_a_session_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "one.session"
    options = ("-n", "4", "-t", "1", "-c", "64", "--temp", "0", "--session", str(path))
    assert run("generate", "-m", MODEL, *options, "-p", "She").returncode == 0
    before = path.read_bytes()
    done = run_with_room(1000, "generate", "-m", MODEL, *options, "-p", "She was looking")
    assert done.returncode == 4 and "one.session: File too large" in done.stderr.splitlines()[-1]
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("n_bytes", [0, 100, 4096, 8000])
@pytest.mark.parametrize(
    ("command", "name"),
    [
        (CONVERT, "out.gguf"),
        ((*CONVERT[:-1], "--split-max-size", "30000B", "--outfile"), "out.gguf"),
        (("offload-dump", "-m", MODEL, "--force", "--html"), "page.html"),
        (("imatrix", "-m", MODEL, "-f", "TEXT", "-c", "64", "--force", "-o"), "imatrix.gguf"),
    ],
    ids=["convert", "parts", "page", "imatrix"],
)
def test_what_was_there_stays(tmp_path: Path, command: tuple[str, ...], name: str, n_bytes: int) -> None:
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / name
    out.write_bytes(b"old")
    words = [str(tmp_path / "text") if word == "TEXT" else word for word in command]
    done = run_with_room(n_bytes, *words, str(out))
    assert (done.returncode, len(done.stderr.splitlines())) == (4, 1), done.stderr
    assert "File too large (nothing was kept); free some disk or choose another" in done.stderr
    assert [(left.name, left.read_bytes()) for left in out.parent.iterdir()] == [(name, b"old")]


@pytest.mark.sample(5)
@pytest.mark.parametrize("n_bytes", [0, 50, 1000])
@pytest.mark.parametrize("kind", ["hotcold", "powerinfer"])
def test_an_index_that_is_cut_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, n_bytes: int
) -> None:
    model = tmp_path / "model.gguf"
    model.symlink_to(model_path(None))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = run_with_room(
        n_bytes, "offload-dump", "-m", str(model), "--vram-budget", "6MiB", "--gpu-index-for", kind
    )
    assert done.returncode == 4 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "File too large" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [model]


@pytest.mark.parametrize("n_bytes", [0, 1, 16, 60])
@pytest.mark.parametrize("before", [None, b"older code"])
def test_code_that_does_not_fit_is_not_kept(tmp_path: Path, before: bytes | None, n_bytes: int) -> None:
    path = tmp_path / "op.kernel"
    if before is not None:
        write_code(path, before)
    with room_for(n_bytes):
        write_code(path, bytes(100))
    assert read_code(path) == before
    assert list(tmp_path.iterdir()) == ([] if before is None else [path])


@pytest.mark.slow
@pytest.mark.parametrize("n_bytes", [0, 3000])
def test_a_first_run_without_room_for_its_kernels(tmp_path: Path, n_bytes: int) -> None:
    """Some files fit, others do not: it is said once, the text comes, and the next run with room is an ordinary one."""
    script = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({n_bytes}, -1))\n"
    script += "from hotcold.cli import main\nmain()"
    words = ("generate", "-p", "She", "-n", "2", "--temp", "0", "-t", "1")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def said(*command: str) -> tuple[str, list[str]]:
        done = subprocess.run(
            [sys.executable, *command, *words], capture_output=True, text=True, env=environment, check=True
        )
        return done.stdout, [line for line in done.stderr.splitlines() if "prompt tokens" not in line]

    text, lines = said("-c", script)
    assert len(lines) == 2 and "compiling kernels, once" in lines[0] and "cannot be kept" in lines[1]
    assert not list(tmp_path.rglob("*.tmp*"))
    assert said("-m", "hotcold")[0] == text
    assert said("-m", "hotcold") == (text, [])
