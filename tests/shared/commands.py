"""The `hotcold` command: in this process, and in one of its own."""

import io
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from hotcold.cli import app


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, stdin: bytes = b"", **environment: str) -> Result:
    """The command in this process, with its three streams replaced."""
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
    return subprocess.run(
        [sys.executable, "-m", "hotcold", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
        timeout=300,
    )
