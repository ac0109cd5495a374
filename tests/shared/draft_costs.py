"""Machines on which a draft's length costs what a test says, whatever this one measures."""

from typing import Any

import numpy as np

from hotcold.engine.generation.draft import MAX_DRAFT, RunCosts


class FixedCosts(RunCosts):
    """A run of n tokens takes 1 + each (n - 1) times one."""

    def __init__(self, each: float = 0.0) -> None:
        super().__init__()
        self._fixed = 1 + each * np.maximum(np.arange(MAX_DRAFT + 2) - 1, 0)

    def times(self) -> Any:
        """By number of tokens."""
        return self._fixed
