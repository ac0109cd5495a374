"""Perplexity against the bytes of the FFNs, level by level, and the level that a cost allows."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.calibrate.levels import LEVELS, Thresholds, Worth
from hotcold.engine.generation.generation import Engine
from hotcold.engine.measure import perplexity
from hotcold.engine.measure.traffic import dense_bytes, sparse_token_bytes, token_bytes
from hotcold.engine.model.calibration import Calibration
from hotcold.errors import FileError

FEWEST_CHUNKS = 4
HELD_BACK = 0.25  # of the chunks, whose perplexity is measured


@dataclass(frozen=True)
class Point:
    """A level with what it costs and brings.

    Attributes:
        ffn_bytes: of the FFNs a token, as a part of all.
        deviation: standard error of the perplexity.
    """

    calibration: Calibration
    deviation: float
    ffn_bytes: float

    def numbers(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        rest = {"deviation": self.deviation, "ffn_bytes": self.ffn_bytes, "cost": self.calibration.cost}
        return perplexity.finite_numbers(asdict(self.calibration) | rest)


def divided(
    chunks: Sequence[NDArray[np.int32]], n_ctx: int
) -> tuple[list[NDArray[np.int32]], NDArray[np.int32]]:
    """Chunks to calibrate on, and the last ones of full length, int32 [n, n_ctx], to measure on.

    Raises:
        FileError: there are too few.
    """
    n_held = max(1, int(HELD_BACK * len(chunks)))
    held = [chunk for chunk in chunks if chunk.size == n_ctx][-n_held:]
    if len(chunks) < FEWEST_CHUNKS or not held:
        bound = f"at least {FEWEST_CHUNKS} chunks of {n_ctx} ids"
        raise FileError("texts", f"{sum(c.size for c in chunks)} ids", bound, "give more text, or lower -c")
    others = {id(chunk) for chunk in held}
    return [chunk for chunk in chunks if id(chunk) not in others], np.stack(held)


def measure(
    engine: Engine,
    thresholds: Thresholds,
    worth: Worth,
    held: NDArray[np.int32],
    progress: Callable[[str, int, int], None],
) -> Iterator[Point]:
    """A point a level, from none left out on, as they come; `thresholds` are the engine's own.

    Args:
        progress: hears of a level's name, its ids that have passed, and all of them.

    Raises:
        FileError: the perplexity with all neurons is infinite.
    """
    of_all = 0.0
    for level in (0.0, *LEVELS):
        worth.fill(thresholds, level)
        engine.take_turn()
        found = perplexity.of_chunks(engine, held, _named(f"{level:.0%} left out", progress))
        of_all = of_all or found.value
        if not math.isfinite(of_all):
            bound = "a finite one, to which costs can be compared"
            step = "look at file and texts with hotcold perplexity"
            raise FileError("perplexity", "infinite", bound, step)
        _, computed = found.activity.shares(engine.model.n_neurons)
        if engine.model.experts is not None:
            computed *= engine.model.experts.n_expert / engine.model.experts.n_used
        calibration = Calibration(level, computed, found.value, of_all)
        yield Point(
            calibration, found.deviation, _ffn_bytes(engine, found.activity.listed, found.activity.firing)
        )


def _named(name: str, progress: Callable[[str, int, int], None]) -> perplexity.Progress:
    return lambda done, total, value: progress(name, done, total)


def _ffn_bytes(engine: Engine, listed: Sequence[float], firing: Sequence[float]) -> float:
    model = engine.model
    dense = dense_bytes(model, predictors=False)
    read = sparse_token_bytes(model, "threshold", list(listed), list(firing)) - dense
    return read / (token_bytes(model) - dense)
