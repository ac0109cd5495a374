"""The `hotcold` command: in this process, and in one of its own."""

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from hotcold.cli import app
from hotcold.kernels.cpu import build
from hotcold.kernels.cpu.compiled import RECIPES
from hotcold.kernels.cpu.kernel_files import file_of, folder
from hotcold.kernels.cpu.machine_code import alone


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


@cache
def compile_kernels() -> None:
    """Have every kernel compiled, by one process, so that no command says that it compiles."""
    place, names = folder(), sorted(RECIPES)
    if place is None or all((file_of(name) or place).exists() for name in names):
        return
    with alone(place):
        build.compile_all(names)
        build.finish()


def run(*arguments: str, stdin: bytes = b"", **environment: str) -> Result:
    """The command in this process, with its three streams replaced."""
    compile_kernels()
    streams = [io.TextIOWrapper(io.BytesIO(data), "utf-8") for data in (stdin, b"", b"")]
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        patch.setattr(sys, "argv", ["hotcold", *arguments])
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            app(list(arguments), prog_name="hotcold")
    for stream in streams[1:]:
        stream.seek(0)
    return Result(int(ended.value.code or 0), streams[1].read(), streams[2].read())


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with nothing on stdin."""
    compile_kernels()
    return subprocess.run(
        [sys.executable, "-m", "hotcold", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
        timeout=300,
    )


def left_in(folder: Path, code: str, **environment: str) -> list[str]:
    """What a process leaves in a folder that is its home and its place for temporary files."""
    places = {name: str(folder) for name in ("HOME", "TMPDIR")}
    without = {
        name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "CUPY_CACHE_DIR")
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=without | places | environment)
    return sorted(path.name for path in folder.iterdir())
