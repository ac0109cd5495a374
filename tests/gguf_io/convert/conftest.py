"""Where conversions write."""

from pathlib import Path

import pytest


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A file in a folder of its own, which is not there yet."""
    return tmp_path / "out" / "out.gguf"
