"""A worker, in another process or on another machine: the model that it opens, and keeps open between tasks."""

import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Protocol, TypeVar

from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.loading import load_with
from hotcold.engine.generation.run_options import RunOptions
from hotcold.errors import FileError

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class WorkersModel:
    """What a worker opens.

    Attributes:
        path: of the model, as the worker sees it. header: SHA-256 of its header.
        version: of hotcold.
        populate: as `load_with` has it.
    """

    path: str
    header: str
    version: str
    options: RunOptions
    populate: bool = True


def workers_model(engine: Engine, options: RunOptions, populate: bool = True) -> WorkersModel:
    """What this engine's model is to workers."""
    path, version = str(engine.file.path.resolve()), metadata.version("hotcold")
    return WorkersModel(path, engine.file.header_hash(), version, options, populate)


class InOrder(Protocol):
    """Has workers do tasks; what they give comes in the tasks' order."""

    def __call__(self, function: Callable[[TaskT], ResultT], tasks: Iterable[TaskT]) -> Iterator[ResultT]:
        """`function` is one that another process can import, or a `partial` of one."""


@dataclass(frozen=True)
class ModelWorkers:
    """Workers, and the model that each of them opens."""

    in_order: InOrder
    model: WorkersModel


one_at_a_time = threading.Lock()
"""A cluster's worker may have threads of its own, and they share an engine."""


@lru_cache(maxsize=1)
def opened(model: WorkersModel) -> Engine:
    """The engine of this worker, with the lock held.

    Raises:
        FileError: hotcold has another version here, or the file is another one. Others: see `load_with`.
    """
    here, version = f"{platform.node()}, process {os.getpid()}", metadata.version("hotcold")
    if version != model.version:
        bound = f"on {here}; {model.version} is what asks"
        raise FileError("hotcold of a worker", version, bound, "install one version everywhere")
    engine = load_with(model.path, model.options, populate=model.populate)
    if engine.file.header_hash() != model.header:
        engine.close()
        bound = f"on {here} is another file than the one here"
        raise FileError("model of a worker", model.path, bound, "copy it there")
    return engine
