"""Chunks that other processes count: the same counts to the bit, whoever counts them, and whoever dies."""

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from threshold_models import model_file

from hotcold import load
from hotcold.engine.commands.workers import WorkerOptions, workers_of
from hotcold.engine.generation.run_options import RunOptions
from hotcold.engine.generation.worker import workers_model
from hotcold.engine.profile import profile as profiles
from hotcold.engine.profile.counting import Chunk, count_by_worker
from hotcold.engine.profile.profile import measure
from hotcold.errors import FileError

OPTIONS = RunOptions(n_ctx=32, n_batch=16, device="cpu", threads=1, kv_type="f32")
ARGUMENTS = ("-c", "32", "-b", "16")


@pytest.fixture(autouse=True)
def cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two, wherever this runs."""
    monkeypatch.setattr("hotcold.engine.commands.workers.cpu_count", lambda: 2)


@pytest.fixture
def text(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes((tiny / "valid_excerpt.txt").read_bytes()[:1500])
    return path


def kept(folder: Path) -> tuple[dict[str, Any], list[bytes]]:
    """The report, and the counts of each layer."""
    report = json.loads((folder / "profile.json").read_text())
    return report, [path.read_bytes() for path in sorted(folder.glob("activation_*.npy"))]


def test_two_processes_count_what_one_counts(text: Path, tmp_path: Path) -> None:
    for n in ("1", "2"):
        shown = run("profile", "-f", str(text), "-o", str(tmp_path / n), "--workers", n, *ARGUMENTS)
        assert shown.returncode == 0, shown.stderr
    assert kept(tmp_path / "1") == kept(tmp_path / "2")
    assert kept(tmp_path / "1")[0]["held"]


def chunks() -> list[Any]:
    random = np.random.default_rng(3)
    return [random.integers(3, 37, 24).astype(np.int32) for _ in range(9)]


def test_weights_do_not_depend_on_who_counts(tmp_path: Path) -> None:
    """Sums of floats: each chunk's are its own, and they are added in their order."""
    path, _ = model_file(tmp_path, "llama")
    with (
        load(path, n_ctx=32, n_batch=16, kv_type="f32") as engine,
        workers_of(WorkerOptions(workers=2)) as two,
    ):
        assert two is not None
        model, begun = workers_model(engine, OPTIONS), profiles.empty(engine, 9)
        alone = measure(engine, chunks(), begun)
        shared = measure(engine, chunks(), begun, by=partial(two.in_order, partial(count_by_worker, model)))
    assert alone.of == profiles.WEIGHT and (alone.counts == shared.counts).all()
    assert (alone.first_half == shared.first_half).all() and alone.n_tokens == shared.n_tokens


@pytest.mark.slow
def test_a_cluster_whose_worker_dies_counts_the_same(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A real scheduler and two workers on this machine; one is killed when a third is counted."""
    distributed = pytest.importorskip("distributed")
    ids, n_done, killed = chunks(), 0, 0

    def kill_one(done: int, total: int, speed: float) -> None:
        nonlocal n_done, killed
        n_done += 1
        if n_done == 3:
            killed = next(iter(pids.values()))
            os.kill(killed, signal.SIGKILL)

    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster) as client, load(n_ctx=32, n_batch=16, kv_type="f32") as engine:
        pids = client.run(os.getpid)
        assert len(pids) == 2
        alone = measure(engine, ids, profiles.empty(engine, 9))
        with workers_of(WorkerOptions(scheduler=cluster.scheduler_address)) as workers:
            assert workers is not None and workers.ahead == 4
            model = workers_model(engine, OPTIONS)
            shared = measure(
                engine,
                ids,
                profiles.empty(engine, 9),
                kill_one,
                by=partial(workers.in_order, partial(count_by_worker, model)),
            )
    assert n_done == 9 and (alone.counts == shared.counts).all() and alone.hit_rates == shared.hit_rates
    (dead,) = [address for address, pid in pids.items() if pid == killed]
    assert f"worker {dead} is gone; what it was doing is done once more" in capfd.readouterr().err


def test_workers_of_another_version_or_another_file_are_refused(tiny: Path) -> None:
    with load(n_ctx=32) as engine:
        model = workers_model(engine, OPTIONS)
    chunk = Chunk(np.array([1, 5, 6, 7], np.int32), 0)
    with pytest.raises(FileError, match=r"hotcold of a worker: .*process \d+; 0.0.1 is what asks"):
        count_by_worker(replace(model, version="0.0.1"), chunk)
    with pytest.raises(FileError, match="is another file than the one here"):
        count_by_worker(replace(model, header="0" * 64), chunk)
