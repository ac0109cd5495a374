"""The second process that compiles: nobody waits for it, and nothing of it stays."""

import os
import time
from pathlib import Path

import pytest

from hotcold.kernels.cpu import build

PATIENT = "import sys; sys.stdin.read()"


def test_it_holds_no_output_and_leaves_the_table_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "START", PATIENT)
    monkeypatch.setattr(build, "_helpers", [])
    build._ask_for_help(["lead"])
    (process,) = build._helpers
    place = Path(f"/proc/{process.pid}")
    assert [os.readlink(place / "fd" / str(i)) for i in (1, 2)] == [os.devnull] * 2
    build.finish()
    assert not build._helpers
    deadline = time.monotonic() + 30
    while place.exists():  # also as long as it has ended and nobody asked
        assert time.monotonic() < deadline
        time.sleep(0.01)
