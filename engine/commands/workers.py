"""Work in several processes: of this machine, or of a Dask cluster."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from hotcold.engine.commands.options import part
from hotcold.engine.commands.reports import note
from hotcold.engine.generation.run_options import RunOptions
from hotcold.engine.host.machine import cpu_count
from hotcold.errors import FileError, HotcoldError, SettingError

if TYPE_CHECKING:
    from hotcold.engine.generation.generation import Engine
    from hotcold.engine.generation.worker import WorkersModel

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

AHEAD = 2  # tasks a worker that wait for it
TIMEOUT = "10s"


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Who does it."""

    workers: Annotated[
        int, typer.Option(metavar="N", help="Processes that share the work: one a CPU at most.")
    ] = 1
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of a Dask cluster that does it: tcp://HOST:8786.")
    ] = None

    @property
    def n_processes(self) -> int:
        """Of this machine: no more than it has CPUs, since they would wait for each other and hold memory."""
        return min(self.workers, cpu_count())


@dataclass
class Workers:
    """Where tasks are handed to.

    Attributes:
        start: gives a pool, and another one when all of it ended with one of its processes.
        ahead: how many tasks are under way.
        ended: names those with whom a pool ended.
        gone: names those who have left a pool that goes on, since it was last asked.
    """

    start: Callable[[], Executor]
    ahead: int
    ended: Callable[[], list[str]]
    gone: Callable[[], list[str]]

    def __post_init__(self) -> None:
        self._pool = self.start()

    def in_order(self, function: Callable[[TaskT], ResultT], tasks: Iterable[TaskT]) -> Iterator[ResultT]:
        """What the tasks give, in their order; those of a process that ends are done once more.

        Raises:
            HotcoldError: a task's processes ended twice.
        """
        waiting: deque[tuple[TaskT, Future[ResultT]]] = deque()
        try:
            for task in tasks:
                waiting.append((task, self._submit(function, task)))
                if len(waiting) >= self.ahead:
                    yield self._first(function, waiting)
            while waiting:
                yield self._first(function, waiting)
        finally:
            for _, future in waiting:
                future.cancel()

    def _submit(self, function: Callable[[TaskT], ResultT], task: TaskT) -> Future[ResultT]:
        try:
            return self._pool.submit(function, task)
        except BrokenExecutor as error:  # heard of when its turn comes
            failed: Future[ResultT] = Future()
            failed.set_exception(error)
            return failed

    def _first(
        self, function: Callable[[TaskT], ResultT], waiting: deque[tuple[TaskT, Future[ResultT]]]
    ) -> ResultT:
        for is_last in (False, True):
            try:
                result = waiting[0][1].result()
            except BrokenExecutor as error:
                self._pool.shutdown()  # all have ended then, and have exit codes
                names = " and ".join(self.ended()) or "a process"
                if is_last:
                    raise _lost(names) from error
                note(f"{names} ended in the middle of its work, which is done once more")
                self._pool = self.start()
                tasks = [task for task, _ in waiting]
                waiting.clear()
                waiting.extend((task, self._submit(function, task)) for task in tasks)
            else:
                break
        for name in self.gone():
            note(f"{name} is gone; what it was doing is done once more")
        waiting.popleft()
        return result


@contextmanager
def workers_of(options: WorkerOptions, quiet: bool = False) -> Iterator[Workers | None]:
    """The workers that are asked for, or one a CPU, which is told unless `quiet`; None for this process alone.

    Raises:
        SettingError: no such number, both kinds, no scheduler at the address, or no package to reach it with.
        HotcoldError: all who tried a task have ended.
    """
    if options.workers < 1:
        raise SettingError("--workers", options.workers, "at least 1", "such as --workers 2")
    if options.scheduler is not None:
        if options.workers > 1:
            raise SettingError("--workers", options.workers, "a cluster has its own", "leave one of both out")
        with _cluster(options.scheduler) as workers:
            yield workers
        return
    n = options.n_processes
    if n < options.workers and not quiet:
        who = f"{n} processes share the work" if n > 1 else "this process does the work alone"
        note(f"--workers {options.workers}: {who}, since {n} CPU{'s' * (n > 1)} can be used")
    if n == 1:
        yield None
    else:
        with _processes(n) as workers:
            yield workers


class _Processes(ProcessPoolExecutor):
    """Processes of this machine that can be named when they have ended."""

    def __init__(self, n: int) -> None:
        self._others, self._seen = set(multiprocessing.active_children()), set[BaseProcess]()
        super().__init__(n, multiprocessing.get_context("spawn"), _begin)

    def submit(self, function: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        """As any pool's; it may start a process."""
        future = super().submit(function, *args, **named)
        self._seen |= set(multiprocessing.active_children()) - self._others
        return future

    def ended(self) -> list[str]:
        """Who ended, and not by the SIGTERM with which a broken pool ends the rest."""
        codes = {one.pid: one.exitcode for one in self._seen}
        return [_ended(pid, code) for pid, code in codes.items() if code not in (None, 0, -signal.SIGTERM)]

    def stop(self) -> None:
        """Do not wait for what is under way."""
        for one in self._seen:
            one.terminate()


def _ended(pid: int | None, code: int | None) -> str:
    how = f"code {code}" if code is None or code >= 0 else f"signal {-code}"
    return f"process {pid} ({how})"


@contextmanager
def _processes(n: int) -> Iterator[Workers]:
    pools = list[_Processes]()

    def start() -> Executor:
        pools.append(_Processes(n))
        return pools[-1]

    try:
        # a pool of this machine ends with any of its processes: nobody leaves one that goes on
        yield Workers(start, AHEAD * n, ended=lambda: pools[-1].ended(), gone=list)
    except BaseException:
        pools[-1].stop()
        raise
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Ctrl-C is for the process that shares out the work; when that is no more, neither is this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


@contextmanager
def _cluster(address: str) -> Iterator[Workers]:
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        bound = "the package distributed is not there"
        raise SettingError("--scheduler", address, bound, "pip install 'hotcold[cluster]'") from error
    try:
        client = Client(address, timeout=TIMEOUT)
    except (OSError, ValueError) as error:
        bound = f"no Dask scheduler answers there: {error}"
        raise SettingError("--scheduler", address, bound, "start one with `dask scheduler`") from error
    with client:
        _check_versions(address, client)
        known = _addresses(client)

        def gone() -> list[str]:
            nonlocal known
            before, known = known, _addresses(client)
            return [f"worker {name}" for name in sorted(before - known)]

        try:
            yield Workers(client.get_executor, AHEAD * len(known), ended=gone, gone=gone)
        except (KilledWorker, CancelledError) as error:
            raise _lost("workers of the cluster, one after the other,") from error


def _addresses(client: Any) -> set[str]:
    return set(client.scheduler_info(n_workers=-1)["workers"])


def _check_versions(address: str, client: Any) -> None:
    """Refuse workers without hotcold, or with another one than this."""
    from hotcold import __version__ as own

    found: dict[str, Any] = client.run(metadata.version, "hotcold", on_error="return")
    if not found:
        raise SettingError("--scheduler", address, "has no workers", "start some with `dask worker`")
    for worker, version in sorted(found.items()):
        if version != own:
            has = "no hotcold" if isinstance(version, Exception) else f"hotcold {version}"
            bound = f"has {has}; this is {own}"
            raise FileError("worker", worker, bound, "install one version everywhere")


def model_of_workers(how: WorkerOptions, engine: "Engine", populate: bool = True) -> "WorkersModel":
    """What workers open: the engine's model as it runs here; processes of this machine share its threads."""
    from hotcold.engine.generation.worker import workers_model

    each = engine.n_threads if how.scheduler is not None else max(1, engine.n_threads // how.n_processes)
    options = part(RunOptions, how, threads=each, device="cpu", sparsity=engine.sparsity)
    return workers_model(engine, options, populate)


def _lost(who: str) -> HotcoldError:
    next_step = "what is finished is kept; lower --workers, or give them more memory"
    return HotcoldError("work", "not done", f"{who} ended in the middle of it", next_step)
