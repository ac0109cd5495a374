"""The benches run models."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _compiled(compiled_kernels: None) -> None:
    """Nobody measures how long kernels compile."""
