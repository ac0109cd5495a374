"""Counting one chunk of ids: by an engine of this process, or by workers that each have one.

Chunks do not depend on each other, and what each counts has the same bits wherever it is counted and by how many
threads; they are added up in their order. So any number of workers gives the same profile.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor as Pool
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.loading import load_with
from hotcold.engine.generation.run_options import RunOptions
from hotcold.engine.profile.firing import Counted, Firing
from hotcold.engine.profile.passing import heard, run_chunk
from hotcold.errors import FileError

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Task:
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

    def count(self, task: Task) -> ChunkCounts:
        """Let a chunk pass."""
        n_layer, left = self._executor.model.n_layer, task.n_followed
        bits: list[list[NDArray[np.uint8]]] = [[] for _ in range(n_layer)]

        def follow() -> None:
            nonlocal left
            for layer, fired in enumerate(self._firing.fired):
                bits[layer].append(np.packbits(fired[:left], axis=1))
            left -= min(left, len(self._firing.fired[0]))

        with heard(self._executor, self._firing.hear):
            run_chunk(self._executor, task.ids, follow)
        return ChunkCounts(self._firing.take(), task.ids.size, tuple(map(np.concatenate, bits)))


@dataclass(frozen=True)
class WorkersModel:
    """What a worker opens.

    Attributes:
        path: of the model, as the worker sees it. header: SHA-256 of its header.
        version: of hotcold.
    """

    path: str
    header: str
    version: str
    options: RunOptions


def workers_model(engine: Engine, options: RunOptions) -> WorkersModel:
    """What this engine's model is to workers."""
    return WorkersModel(
        str(engine.file.path.resolve()), engine.file.header_hash(), metadata.version("hotcold"), options
    )


_one_at_a_time = threading.Lock()  # a cluster's worker may have threads of its own, and they share an engine


def count_by_worker(model: WorkersModel, task: Task) -> ChunkCounts:
    """What a worker does; it keeps the model open.

    Raises:
        FileError: hotcold has another version here, or the file is another one. Others: see `load_with`.
    """
    with _one_at_a_time:
        return _opened(model).count(task)


@lru_cache(maxsize=1)
def _opened(model: WorkersModel) -> Counter:
    version = metadata.version("hotcold")
    if version != model.version:
        bound = f"{model.version} counts"
        raise FileError("hotcold of a worker", version, bound, "install one version everywhere")
    engine = load_with(model.path, model.options)
    if engine.file.header_hash() != model.header:
        engine.close()
        raise FileError("model of a worker", model.path, "is another file than the one here", "copy it there")
    return Counter(engine)


def counted_by(pool: Pool, model: WorkersModel, tasks: Iterable[Task], ahead: int) -> Iterator[ChunkCounts]:
    """The tasks' counts in their order, `ahead` of them under way."""
    waiting: deque[Future[ChunkCounts]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(count_by_worker, model, task))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
