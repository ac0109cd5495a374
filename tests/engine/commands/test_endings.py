"""`hotcold generate` in a process of its own: Ctrl-C, readers that leave, a full disk, odd terminals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import process

from hotcold.engine.commands import terminal
from hotcold.errors import FileError

PROMPT = "It is a truth universally acknowledged"


def test_text_that_the_terminal_cannot_show() -> None:
    """Characters that the encoding of stdout lacks become question marks."""
    result = process(
        "generate", "-p", "né", "-n", "1", "-q", "--echo", PYTHONIOENCODING="ascii", PYTHONUTF8="0"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("n?")


def test_interrupt_prints_statistics_and_exits_130() -> None:
    command = [
        sys.executable,
        "-m",
        "hotcold",
        "generate",
        "-p",
        PROMPT,
        "-n",
        "-1",
        "-c",
        "100000",
        "--ignore-eos",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.read(40)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert b"interrupted" in err.splitlines()[-1]
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    "start",
    [
        "from hotcold.__main__ import main; main()",
        "import runpy; runpy.run_module('hotcold', run_name='__main__')",
    ],
)
def test_ctrl_c_is_heeded_before_anything_of_ours_is_imported(start: str) -> None:
    """As the installed command starts, and as `python -m hotcold` does."""
    code = f"""
import sys, _signal
def said(number, handler):
    print(number, sorted(name for name in sys.modules if name.startswith("hotcold")), flush=True)
    sys.exit()
_signal.signal = said
{start}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = ["hotcold", "hotcold.__main__"] if "main()" in start else ["hotcold"]
    assert done.stdout == f"{int(signal.SIGINT)} {modules}\n"


def test_an_interrupt_while_everything_is_imported_is_quiet(tmp_path: Path) -> None:
    """In place of a library that takes long to import stands one that says when it begins to."""
    (tmp_path / "typer.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "hotcold", "generate", "-p", PROMPT]
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"importing\n"
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, b"")


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    command = [sys.executable, "-m", "hotcold", "generate", "-p", PROMPT, "-n", "-1", "-q", "--ignore-eos"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.read(3)
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 0


def test_a_full_disk_is_one_line() -> None:
    command = [sys.executable, "-m", "hotcold", "generate", "-p", PROMPT, "-n", "2", "-q"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 3
    reason = "standard output (No space left on device); send it where there is room"
    assert result.stderr == f"hotcold: error: {reason}\n"


def test_a_closed_output_is_named() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        with pytest.raises(FileError, match="standard output: closed"):
            terminal.write("a")
