"""Tests pass in the background too, where a shell or nohup lets SIGINT and SIGHUP be ignored."""

import signal
import subprocess
import sys

import pytest

WATCHED = (signal.SIGINT, signal.SIGHUP)
CHILD = "import signal; print([signal.getsignal(number) == signal.SIG_IGN for number in {numbers}])"


def test_what_tests_start_heeds_signals() -> None:
    code = CHILD.format(numbers=[int(number) for number in WATCHED])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, False]"


@pytest.mark.slow
def test_what_tests_start_heeds_signals_that_the_run_ignores() -> None:
    script = "trap '' INT HUP; exec \"$@\""
    test = f"{__file__}::{test_what_tests_start_heeds_signals.__name__}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n0", "-q", test]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout
