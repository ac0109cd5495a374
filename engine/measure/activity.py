"""How many neurons an engine's tokens look at and fire, from the executor's counters.

They are the CPU's. A device counts what it looks at, not what fires, and its bytes are no traffic of the
host's memory: of a split run only the CPU's part is told, and said to be that.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.measure.traffic import sparse_token_bytes


@dataclass(frozen=True)
class Activity:
    """Averages over tokens.

    Attributes:
        listed, firing: neurons a token, for each layer; empty when the FFN runs dense. Of experts that run
            dense both are all neurons of the chosen ones.
        bytes_a_token: of weights; 0 where a device reads a part of them.
        of: "model", or "cpu" where a device serves the other neurons.
    """

    listed: tuple[float, ...]
    firing: tuple[float, ...]
    bytes_a_token: float
    of: str = "model"

    def shares(self, n_ff: int) -> tuple[float, float]:
        """Mean over layers of listed and of firing neurons, as parts of n_ff; 1 for a dense FFN."""
        if not self.listed:
            return 1.0, 1.0
        n = len(self.listed) * n_ff
        return sum(self.listed) / n, sum(self.firing) / n


class ActivityMeter:
    """Counts from when it is made; `n_tokens` is what its user ran meanwhile."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before = self._counts()

    def _counts(self) -> NDArray[np.int64]:
        """Of each layer, neurons listed and firing; of experts all neurons of those that were chosen are listed."""
        counts: NDArray[np.int64] = self._engine.executor.counts.sum(1)
        return counts

    def read(self, n_tokens: int) -> Activity:
        """Averages over the n_tokens that ran since the start."""
        engine, model = self._engine, self._engine.model
        split = bool(engine.executor.devices)
        per_token = (self._counts() - self._before) / max(n_tokens, 1)
        listed, firing = per_token[:, 0].tolist(), per_token[:, 1].tolist()
        if engine.sparsity == "off":
            firing = listed = listed if model.experts is not None else []
        if split:
            return Activity(tuple(listed), tuple(firing), 0.0, "cpu")
        n_bytes = sparse_token_bytes(model, engine.sparsity, listed, firing)
        return Activity(tuple(listed), tuple(firing), n_bytes)
