"""Counting one chunk of ids: by an engine of this process, or by workers that each have one.

Chunks do not depend on each other, and what each counts has the same bits wherever it is counted and by how many
threads; they are added up in their order. So any number of workers gives the same profile.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.worker import WorkersModel, one_at_a_time, opened
from hotcold.engine.profile.firing import Counted, Firing
from hotcold.engine.profile.passing import heard, run_chunk
from hotcold.engine.profile.passing_device import tokens_at_once


@dataclass(frozen=True)
class Chunk:
    """A chunk, and how many of its tokens are followed one by one."""

    ids: NDArray[np.int32]
    n_followed: int


@dataclass(frozen=True)
class ChunkCounts:
    """What a chunk's neurons did.

    Attributes:
        counts: see `Firing.take`.
        fired: of each layer the followed tokens' neurons, bits uint8 [n_followed, n_units / 8]; none where none fire.
    """

    counts: Counted
    n_tokens: int
    fired: tuple[NDArray[np.uint8], ...]


class Counter:
    """Counts chunks on an engine."""

    def __init__(self, engine: Engine) -> None:
        self._executor, self._firing = engine.executor, Firing(engine.executor)
        executor = engine.executor
        self._most = tokens_at_once(executor.plan.model) if executor.stores else None

    def count(self, chunk: Chunk) -> ChunkCounts:
        """Let a chunk pass."""
        n_layer, left = self._executor.model.n_layer, chunk.n_followed
        bits: list[list[NDArray[np.uint8]]] = [[] for _ in range(n_layer)]

        def follow() -> None:
            nonlocal left
            for layer, fired in enumerate(self._firing.fired):
                bits[layer].append(np.packbits(fired[:left], axis=1))
            left -= min(left, len(self._firing.fired[0]))

        with heard(self._executor, self._firing.hear, on_device=True):
            run_chunk(self._executor, chunk.ids, follow, self._most)
        return ChunkCounts(self._firing.take(), chunk.ids.size, tuple(map(np.concatenate, bits)))


def count_by_worker(model: WorkersModel, chunk: Chunk) -> ChunkCounts:
    """What a worker does; errors: see `opened`."""
    with one_at_a_time:
        return _counter(opened(model)).count(chunk)


@lru_cache(maxsize=1)
def _counter(engine: Engine) -> Counter:
    return Counter(engine)
