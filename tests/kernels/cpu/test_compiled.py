"""Compiled kernels on disk: files that are cut or another's, and a disk that takes no more."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RUN = """
import logging, sys
from hotcold import code_files
from hotcold.kernels.cpu import program
from hotcold.kernels.cpu.team import Program, Team
import numpy as np
{before}
x, y = np.ones(16, np.float32), np.full(16, 5, np.float32)
ops = [
    {{"code": code, "chunks": 1, "k": 16, "x": x.ctypes.data, "z": y.ctypes.data, "y": y.ctypes.data}}
    for code in (program.ADD, program.RELU)
]
job = Program(ops)
job.run[program.N_TOKENS] = 1
Team(1).walk(job)
print(y[0], "numba" in sys.modules)
"""
KERNELS = {"lead.kernel", "op_add.kernel", "op_relu.kernel"}


def run(folder: Path, before: str = "") -> tuple[bool, str]:
    """Whether anything had to be compiled, and what was said; what the kernels give is right."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", RUN.format(before=before)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    value, compiled = done.stdout.split()
    assert value == "1.0"
    return compiled == "True", done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def files(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.kernel"))
    assert {path.name for path in found} <= KERNELS
    return found


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


slow = pytest.mark.slow

SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "halved": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "a bit flipped": flipped,
    "text": lambda content: b"<html>",
    "empty": lambda content: b"",
}


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=() if how == "a bit flipped" else slow) for how in SPOILED]
)
def test_a_broken_file_is_made_again_with_a_notice(folder: Path, how: str) -> None:
    run(folder)  # what the test before it has left is mended
    assert len(files(folder)) == len(KERNELS)
    for path in files(folder):
        path.write_bytes(SPOILED[how](path.read_bytes()))
    compiled, said = run(folder)
    assert compiled
    assert said.count("are damaged: compiling again") == 1 and len(said.splitlines()) == 1
    assert run(folder) == (False, "")


@pytest.mark.slow
def test_the_code_of_another_kernel_is_seen(folder: Path) -> None:
    """Its file is whole."""
    run(folder)
    add, relu = (next(folder.rglob(f"op_{name}.kernel")) for name in ("add", "relu"))
    relu.write_bytes(add.read_bytes())
    compiled, said = run(folder)
    assert compiled and "damaged" in said
    assert run(folder) == (False, "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, pytest.param(errno.EROFS, marks=slow)])
def test_what_cannot_be_written_is_not_kept(tmp_path: Path, number: int) -> None:
    before = f"def full(**_): raise OSError({number}, 'full')\ncode_files.tempfile.NamedTemporaryFile = full"
    compiled, said = run(tmp_path, before)
    assert compiled and len(said.splitlines()) == 1 and "cannot be kept" in said
    assert not files(tmp_path)


@slow
def test_no_place_at_all(tmp_path: Path) -> None:
    before = "from hotcold.kernels.cpu import kernel_files\nkernel_files.folder = lambda: None"
    assert run(tmp_path, before) == (True, "")
    assert not files(tmp_path)


@pytest.mark.parametrize("value", ["1", "2", "true"])
def test_a_command_names_it_too(value: str) -> None:
    command = [sys.executable, "-m", "hotcold", "generate", "-p", "a", "-n", "1"]
    environment = os.environ | {"NUMBA_DISABLE_JIT": value}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert f"NUMBA_DISABLE_JIT: {value} (" in done.stderr and "Traceback" not in done.stderr


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
