"""The command line of bench/ops.py."""

import subprocess
import sys
from pathlib import Path

import pytest

OPS = Path(__file__).parents[2] / "bench" / "ops.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [(["0.1", "matvecs"], "matvecs is no table"), (["soon"], "invalid float value: 'soon'")],
)
def test_a_word_that_it_does_not_know_is_refused(words: list[str], message: str) -> None:
    """A slip would measure every table, for many minutes."""
    done = subprocess.run([sys.executable, str(OPS), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
