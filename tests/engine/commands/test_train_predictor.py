"""`hotcold train-predictor`: a file that convert and the engine take; what is finished is kept."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import run
from safetensors.numpy import load_file
from threshold_models import model_file

from hotcold import load
from hotcold.engine.commands.train_predictor import TrainPredictorCommand
from hotcold.engine.measure import perplexity
from hotcold.engine.train import collect, train
from hotcold.engine.train.ranks import Costs
from hotcold.engine.train.train import LayerResult
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert

OPTIONS = ("--rank", "32", "--steps", "2", "-c", "256")


@pytest.fixture
def text(tiny: Path) -> Path:
    """5 539 ids: few, but more than the fewest."""
    return tiny / "valid_excerpt.txt"


@pytest.mark.slow
def test_predictors_go_into_a_model(text: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    options = ("--rank", "64", "--steps", "120", "-c", "256")
    shown = run("train-predictor", "-f", str(text), "-o", str(out), *options)
    assert shown.returncode == 0 and f"predictors are in {out}" in shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert len(shown.stdout.splitlines()) == 10, "a head of two, six layers, and what all of them read"
    assert not (tmp_path / "p.safetensors.parts").exists()
    convert(tiny, out, tmp_path / "m.gguf", "q8_0")
    values = []
    for mode in ("exact", "predictor"):
        with load(tmp_path / "m.gguf", n_ctx=256, sparsity=mode) as engine:
            values.append(perplexity.measure(engine, text.read_bytes()[:9000]).value)
    assert values[1] < 1.1 * values[0]


@pytest.mark.slow
def test_an_interrupted_training_goes_on(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert run("train-predictor", "-f", str(text), "-o", str(whole), *OPTIONS).returncode == 0
    command = ("train-predictor", "-f", str(text), "-o", str(parts))
    ranks: list[int] = []

    def two_layers(samples: Any, rank: int, *others: Any, **named: Any) -> Any:
        if len(ranks) == 2:
            raise KeyboardInterrupt
        ranks.append(rank)
        return trained(samples, rank, *others, **named)

    trained: Callable[..., Any] = vars(train)["train"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "train", two_layers)
        stopped = run(*command, *OPTIONS)
    assert stopped.returncode == 130 and "the same command goes on" in stopped.stderr and not parts.exists()
    other = run(*command, *OPTIONS, "--seed", "2")
    assert other.returncode == 3 and "begun with other settings" in other.stderr
    assert "the same command" not in other.stderr
    again = run(*command, *OPTIONS, "--json")
    assert [layer["layer"] for layer in json.loads(again.stdout)["layers"]] == list(range(6))
    first, second = load_file(whole), load_file(parts)
    assert len(first) == 12 and all((first[name] == second[name]).all() for name in first)
    assert (
        first["layers.3.fc1.weight"].shape == (32, 256) and first["layers.3.fc1.weight"].dtype == np.float16
    )


@pytest.mark.slow
def test_any_workers_train_the_same(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, in two processes, and by a cluster of two workers, one of which is killed after the second layer."""
    distributed = pytest.importorskip("distributed")
    shown, n_shown, pids = TrainPredictorCommand._show, 0, dict[str, int]()

    def show(command: TrainPredictorCommand, result: LayerResult) -> None:
        nonlocal n_shown
        n_shown += 1
        if n_shown == 2 and pids:
            os.kill(next(iter(pids.values())), signal.SIGKILL)
        shown(command, result)

    def trained(name: str, *options: str) -> tuple[str, dict[str, Any]]:
        nonlocal n_shown
        n_shown, out = 0, tmp_path / f"{name}.safetensors"
        done = run("train-predictor", "-f", str(text), "-o", str(out), *OPTIONS, *options)
        assert done.returncode == 0 and n_shown == 6, done.stderr
        return done.stderr, load_file(out)

    monkeypatch.setattr(TrainPredictorCommand, "_show", show)
    _, here = trained("here")
    _, by_two = trained("two", "--workers", "2")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        pids |= client.run(os.getpid)
        told, by_cluster = trained("cluster", "--scheduler", cluster.scheduler_address)
    assert f"worker {next(iter(pids))} is gone" in told and len(here) == 12
    for other in (by_two, by_cluster):
        assert all((here[name] == other[name]).all() for name in here)


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("-o", "p.bin"), 2, "ends in .safetensors"),
        (("--rank", "33"), 2, "a multiple of 32"),
        (("--rank", "many"), 2, "a multiple of 32"),
        (("--recall", "1"), 2, "0.5 to below 1"),
        (("--steps", "0"), 2, "at least 1"),
        (("--seed", "-1"), 2, "--seed: -1 (0 or more)"),
        ((), 2, "-f FILE"),
        (("--device", "gpu"), 2, "auto, cpu, cuda"),
        (("--memory", "lots"), 2, "--memory: lots"),
        (
            ("-o", "p.safetensors", "--into", "./p.safetensors"),
            2,
            "--into: p.safetensors (is what -o names too)",
        ),
    ],
)
def test_settings_that_cannot_be(arguments: tuple[str, ...], code: int, problem: str) -> None:
    shown = run("train-predictor", *arguments)
    assert (shown.returncode, problem in shown.stderr) == (code, True), shown.stderr


@pytest.mark.parametrize(
    ("device", "problem"), [("emulated", "trained on arrays"), ("cuda:77", "cuda:77|CUDA|CuPy")]
)
def test_a_device_is_refused_before_anything_is_collected(
    text: Path, tmp_path: Path, device: str, problem: str
) -> None:
    shown = run("train-predictor", "-f", str(text), "-o", str(tmp_path / "p.safetensors"), "--device", device)
    assert shown.returncode in (2, 5) and re.search(problem, shown.stderr), shown.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["a pipe", "a directory", "a link to a pipe"])
def test_predictors_take_the_place_of_nothing_but_a_file(text: Path, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "p.safetensors"
    if kind == "a directory":
        place.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        place.symlink_to("pipe") if "link" in kind else (tmp_path / "pipe").rename(place)
    was = os.lstat(place)
    shown = run("train-predictor", "-f", str(text), "-o", str(place), *OPTIONS, "--force")
    assert shown.returncode == 3 and f"is {kind.removeprefix('a link to ')}" in shown.stderr
    assert os.path.samestat(os.lstat(place), was)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"identity": {}}', b'{"identity": {}, "collected": -1}', b"\xff"]
)
def test_a_damaged_state_is_named(text: Path, tmp_path: Path, content: bytes) -> None:
    state = tmp_path / "p.safetensors.parts" / "state.json"
    state.parent.mkdir()
    state.write_bytes(content)
    shown = run("train-predictor", "-f", str(text), "-o", str(tmp_path / "p.safetensors"), *OPTIONS)
    assert shown.returncode == 3 and f"{state} (is damaged); delete {state.parent}" in shown.stderr


def test_a_training_goes_on_with_what_it_was_begun(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inputs of layers depend on the cache's type and the FFN's function; older folders do not tell them."""

    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_all", stop)
    command = ("train-predictor", "-f", str(text), "-o", str(tmp_path / "p.safetensors"), *OPTIONS)
    assert [run(*command).returncode for _ in range(2)] == [130, 130]
    other = run(*command, "--kv-type", "q8_0")
    assert other.returncode == 3 and "(it was begun with other --kv-type); delete it" in other.stderr
    state = tmp_path / "p.safetensors.parts" / "state.json"
    kept = json.loads(state.read_bytes())
    assert kept["identity"].pop("--ffn-activation") == "relu"
    state.write_text(json.dumps(kept))
    older = run(*command)
    wanted = "(it was begun by a hotcold that did not keep its --ffn-activation); delete it"
    assert older.returncode == 3 and wanted in older.stderr


def test_a_collections_own_files_are_not_in_its_way(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has room for one collection; most of one that was interrupted is on it."""
    with load(n_ctx=256, sparsity="off") as engine:
        ids = engine.tokenizer.encode(text.read_bytes())
        chunks = [np.array(ids[:4096], np.int32)[i : i + 256] for i in range(0, 4096, 256)]
        size = collect.needed_bytes(engine.model, 4096) + 4096
        left = tmp_path / "inputs_0.npy"
        left.write_bytes(bytes(size // 2))

        def usage(folder: Path) -> SimpleNamespace:
            return SimpleNamespace(free=size - sum(file.stat().st_size for file in folder.iterdir()))

        monkeypatch.setattr("shutil.disk_usage", usage)
        assert collect.collect(engine, chunks, tmp_path) == 4096


def test_a_collection_goes_on_where_it_was(text: Path, tmp_path: Path) -> None:
    whole, parts, passed = tmp_path / "whole", tmp_path / "parts", list[int]()
    with load(n_ctx=256, sparsity="off") as engine:
        ids = engine.tokenizer.encode(text.read_bytes())
        chunks = [np.array(ids[:4096], np.int32)[i : i + 256] for i in range(0, 4096, 256)]

        def stop(done: int, total: int) -> None:
            passed.append(done)
            if len(passed) == 5:
                raise KeyboardInterrupt

        for folder in (whole, parts):
            folder.mkdir()
        collect.collect(engine, chunks, whole)
        kept = list[int]()
        with pytest.raises(KeyboardInterrupt):
            collect.collect(engine, chunks, parts, stop, keep=kept.append)
        assert kept == [5]
        assert collect.collect(engine, chunks, parts, stop, begun=5, keep=kept.append) == 4096
    assert kept == [5, 16] and passed == [*range(256, 4097, 256)]
    for layer in range(6):
        for name in (f"inputs_{layer}.npy", f"fired_{layer}.npy"):
            assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_a_mixture_is_refused_before_anything_is_collected(text: Path, tmp_path: Path, data: Path) -> None:
    model = data / "llamacpp" / "smallthinker.f16.gguf"
    shown = run(
        "train-predictor",
        "-m",
        str(model),
        "-f",
        str(text),
        "-c",
        "32",
        "-o",
        str(tmp_path / "p.safetensors"),
    )
    assert shown.returncode == 2 and "its FFN is experts" in shown.stderr
    assert not list(tmp_path.glob("*.parts"))


def test_too_little_text_and_neurons_that_are_never_idle(text: Path, tmp_path: Path, data: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_bytes(text.read_bytes()[:2000])
    shown = run("train-predictor", "-f", str(short), "-o", str(tmp_path / "p.safetensors"), "-c", "64")
    assert shown.returncode == 4 and "at least 4096" in shown.stderr
    silu = run(
        "train-predictor", "-m", str(data / "llamacpp" / "llama.f16.gguf"), "-f", str(text), "-c", "32",
        "-o", str(tmp_path / "p.safetensors"),
    )  # fmt: skip
    assert silu.returncode == 2 and "only ReLU has idle neurons" in silu.stderr
    single = run("train-predictor", "-f", str(text), "-b", "3", "-o", str(tmp_path / "p.safetensors"))
    assert single.returncode == 2 and "at least 4 to look at batches" in single.stderr
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.slow
def test_training_writes_the_model_with_its_predictors(text: Path, tiny: Path, tmp_path: Path) -> None:
    """From a file without, the tensors that convert writes from the same predictors."""
    plain, out, into = tmp_path / "plain.gguf", tmp_path / "p.safetensors", tmp_path / "with.gguf"
    convert(tiny, None, plain, "q8_0")
    command = ("train-predictor", "-m", str(plain), "-f", str(text), "-o", str(out), "--into", str(into))
    shown = run(*command, *OPTIONS)
    assert shown.returncode == 0 and "runs with them by itself" in shown.stderr, shown.stderr
    convert(tiny, out, tmp_path / "wanted.gguf", "q8_0")
    with open_gguf(into) as file, open_gguf(tmp_path / "wanted.gguf") as wanted:
        assert file.is_powerinfer and {*file.tensors} == {*wanted.tensors}
        assert all((file.data(name) == wanted.data(name)).all() for name in wanted.tensors)
    with load(into, n_ctx=32) as engine:
        assert engine.sparsity == "predictor"


@pytest.mark.slow
def test_layers_that_are_better_off_without_get_none(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the first and the last; both ways into a file leave them out, and where none gains nothing is written."""
    plain, out, into = tmp_path / "plain.gguf", tmp_path / "p.safetensors", tmp_path / "with.gguf"
    convert(tiny, None, plain, "q8_0")
    ranks = iter([None, 32, 32, 64, 32, None, *6 * [None]])
    monkeypatch.setattr(train, "best_rank", lambda *given: next(ranks))
    monkeypatch.setattr(train, "is_enough", lambda recall, wanted: True)
    monkeypatch.setattr(Costs, "pays", lambda costs, rank, quality: True)
    command = ("train-predictor", "-m", str(plain), "-f", str(text), "-o", str(out), "--into", str(into))
    shown = run(*command, "--steps", "2", "-c", "256")
    assert shown.returncode == 0 and "of all layers but 0, 5, which read less as exact" in shown.stderr
    assert [line.split()[1] for line in shown.stdout.splitlines()[2:8]] == [
        "none",
        "32",
        "32",
        "64",
        "32",
        "none",
    ]
    convert(tiny, out, tmp_path / "wanted.gguf", "q8_0")
    with open_gguf(into) as file, open_gguf(tmp_path / "wanted.gguf") as wanted:
        assert {*file.tensors} == {*wanted.tensors} and len(file.tensors) == 57 + 8
        assert all((file.data(name) == wanted.data(name)).all() for name in wanted.tensors)
    for path in (into, tmp_path / "wanted.gguf"):
        with load(path, n_ctx=32) as engine:
            assert engine.sparsity == "predictor" and engine.model.exact_layers == (0, 5)
    monkeypatch.undo()
    again = tmp_path / "again.gguf"
    refined = ("train-predictor", "-m", str(into), "-f", str(text), "-o", str(tmp_path / "q.safetensors"))
    assert run(*refined, "--into", str(again), *OPTIONS).returncode == 0
    with load(again, n_ctx=32) as engine:
        assert engine.model.exact_layers == (), "all of them have one now"
    monkeypatch.setattr(train, "best_rank", lambda *given: None)
    none = run(
        "train-predictor", "-f", str(text), "-o", str(tmp_path / "r.safetensors"), "-c", "256", "--json"
    )
    assert (
        none.returncode == 0
        and "none are written" in none.stderr
        and not (tmp_path / "r.safetensors").exists()
    )
    assert [layer["rank"] for layer in json.loads(none.stdout)["layers"]] == [0] * 6


def test_a_model_that_no_predictors_go_into_is_refused(text: Path, tiny: Path, tmp_path: Path) -> None:
    path, _ = model_file(tmp_path, "llama", sparse_layout=False, hidden_act="relu")
    ids = tmp_path / "text.txt"
    ids.write_text("".join(chr(0x4E00 + i % 30) for i in range(100)))
    command = ("train-predictor", "-m", str(path), "-f", str(ids), "-o", str(tmp_path / "p.safetensors"))
    shown = run(*command, "-c", "32", "--into", str(path))
    assert shown.returncode == 2 and "out.gguf" in shown.stderr
    silu, _ = model_file(tmp_path / "silu", "llama")
    command = ("train-predictor", "-m", str(silu), "-f", str(ids), "-o", str(tmp_path / "p.safetensors"))
    shown = run(*command, "-c", "32", "--into", str(tmp_path / "with.gguf"))
    assert shown.returncode == 2 and "a ReLU model with a row a neuron" in shown.stderr
    assert not (tmp_path / "with.gguf").exists()
