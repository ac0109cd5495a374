"""Who does a command's work: processes that may end, a cluster that may not be there or be of another version."""

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import run
from ending_tasks import sleep, tenfold_after_ends

from hotcold.engine.commands.workers import AHEAD, WorkerOptions, Workers, model_of_workers, workers_of
from hotcold.errors import FileError, HotcoldError, SettingError

CPU_COUNT = "hotcold.engine.commands.workers.cpu_count"


@pytest.fixture(autouse=True)
def cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two, wherever this runs."""
    monkeypatch.setattr(CPU_COUNT, lambda: 2)


@pytest.fixture
def two() -> Iterator[Workers]:
    with workers_of(WorkerOptions(workers=2)) as found:
        assert found is not None
        yield found


def test_what_a_process_did_that_ends_is_done_once_more(
    two: Workers, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert [*two.in_order(partial(tenfold_after_ends, tmp_path, 1), range(9))] == [*range(0, 90, 10)]
    told = capfd.readouterr().err
    assert "(signal 9) ended in the middle of its work, which is done once more" in told
    assert len(told.splitlines()) == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_task_that_ends_its_process_again_is_not_done_a_third_time(tmp_path: Path) -> None:
    given = list[int]()
    with (
        pytest.raises(HotcoldError, match=r"process \d+ .signal 9. ended.*what is finished is kept"),
        workers_of(WorkerOptions(workers=2)) as workers,
    ):
        assert workers is not None
        given.extend(workers.in_order(partial(tenfold_after_ends, tmp_path, 9), range(9)))
    assert 2 <= len(list(tmp_path.iterdir())) <= 3


def test_ctrl_c_does_not_wait_for_what_is_under_way() -> None:
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), workers_of(WorkerOptions(workers=2)) as workers:
        assert workers is not None
        for _ in workers.in_order(sleep, [0, 60, 60, 60, 60]):
            raise KeyboardInterrupt
    assert time.perf_counter() - started < 50


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize(
    ("n_cpus", "n_workers", "words"),
    [
        (2, 1000, "2 processes share the work, since 2 CPUs"),
        (1, 2, "this process does the work alone, since 1 CPU "),
    ],
)
def test_there_are_no_more_processes_than_cpus(
    n_cpus: int,
    n_workers: int,
    words: str,
    quiet: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(CPU_COUNT, lambda: n_cpus)
    options = WorkerOptions(workers=n_workers)
    with workers_of(options, quiet) as found:
        assert (1 if found is None else found.ahead // AHEAD) == n_cpus
    said = capsys.readouterr().err
    assert said == "" if quiet else f"--workers {n_workers}: {words}" in said
    with workers_of(WorkerOptions(workers=n_cpus)):
        assert capsys.readouterr().err == ""


def test_processes_of_this_machine_share_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are, not as were asked for."""
    given = list[int]()
    monkeypatch.setattr(
        "hotcold.engine.generation.worker.workers_model",
        lambda engine, options, populate: given.append(options.threads),
    )
    engine: Any = SimpleNamespace(n_threads=4, sparsity="off")
    model_of_workers(WorkerOptions(workers=1000), engine)
    assert given == [2]


@pytest.mark.parametrize("command", ["profile", "train-predictor"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workers", "0"), "--workers: 0"),
        (("--workers", "2", "--scheduler", "tcp://127.0.0.1:1"), "leave one of both out"),
    ],
)
def test_workers_that_make_no_sense_are_refused(
    tiny: Path, tmp_path: Path, command: str, arguments: Any, words: str
) -> None:
    out = ("-f", str(tiny / "valid_excerpt.txt"), "-o", str(tmp_path / "out.safetensors"))
    shown = run(command, *out, *arguments)
    assert shown.returncode == 2 and words in shown.stderr


def test_a_cluster_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(SettingError, match="pip install 'hotcold.cluster.'"),
        workers_of(WorkerOptions(scheduler="tcp://127.0.0.1:1")),
    ):
        pass


def test_a_scheduler_that_is_not_there_is_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("hotcold.engine.commands.workers.TIMEOUT", "1s")
    out = ("-f", str(tiny / "valid_excerpt.txt"), "-o", str(tmp_path / "out"))
    shown = run("profile", *out, "--scheduler", "tcp://127.0.0.1:1")
    assert shown.returncode == 2 and len(shown.stderr.splitlines()) == 1
    assert "--scheduler: tcp://127.0.0.1:1 (no Dask scheduler answers there" in shown.stderr
    assert "start one with `dask scheduler`" in shown.stderr


@pytest.mark.slow
def test_workers_of_a_cluster_are_asked_for_their_version(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    forget = "import importlib.metadata as m\ndef version(name): raise m.PackageNotFoundError(name)\nm.version = version"
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        (name,) = cluster.scheduler_info["workers"]
        for given, words in (
            ("0.0.1", "has hotcold .*; this is 0.0.1"),
            ("0.0.2", "has no hotcold; this is 0.0.2"),
        ):
            monkeypatch.setattr("hotcold.__version__", given)
            with (
                pytest.raises(FileError, match=f"worker: {name} .{words}"),
                workers_of(WorkerOptions(scheduler=cluster.scheduler_address)),
            ):
                pass
            with distributed.Client(cluster) as client:
                client.run(exec, forget, {})
