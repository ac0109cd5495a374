"""Work in several processes: of this machine, or of a Dask cluster."""

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from hotcold.errors import HotcoldError, SettingError

MOST = 1024
AHEAD = 2  # tasks a worker that wait for it
TIMEOUT = "10s"


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Who does it."""

    workers: Annotated[int, typer.Option(metavar="N", help="Processes that share the texts.")] = 1
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of a Dask cluster that does it: tcp://HOST:8786.")
    ] = None


@dataclass(frozen=True)
class Workers:
    """Where tasks are handed to, and how many of them at once."""

    pool: Executor
    ahead: int


@contextmanager
def workers_of(options: WorkerOptions) -> Iterator[Workers | None]:
    """The workers that are asked for; None for this process alone.

    Raises:
        SettingError: no such number, both kinds, no scheduler at the address, or no package to reach it with.
        HotcoldError: all who tried a task have ended.
    """
    if not 1 <= options.workers <= MOST:
        raise SettingError("--workers", options.workers, f"1 to {MOST}", "such as --workers 2")
    if options.scheduler is not None:
        if options.workers > 1:
            raise SettingError("--workers", options.workers, "a cluster has its own", "leave one of both out")
        with _cluster(options.scheduler) as workers:
            yield workers
    elif options.workers == 1:
        yield None
    else:
        with _processes(options.workers) as workers:
            yield workers


@contextmanager
def _processes(n: int) -> Iterator[Workers]:
    pool = ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), _leave_interrupts)
    try:
        yield Workers(pool, AHEAD * n)
    except BrokenProcessPool as error:
        raise _lost("a process") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    """Ctrl-C is for the process that shares out the work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
        n = len(client.scheduler_info(n_workers=-1)["workers"])
        if not n:
            raise SettingError("--scheduler", address, "has no workers", "start some with `dask worker`")
        try:
            yield Workers(client.get_executor(), AHEAD * n)
        except (KilledWorker, CancelledError) as error:
            raise _lost("workers of the cluster, one after the other,") from error


def _lost(who: str) -> HotcoldError:
    next_step = "what is finished is kept; lower --workers, or give them more memory"
    return HotcoldError("work", "not done", f"{who} ended in the middle of it", next_step)
