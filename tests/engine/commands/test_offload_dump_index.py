"""The split index of `hotcold offload-dump`: written, used, remade, and what it replaces."""

import json
import os
import stat
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from commands import run as run_command

from hotcold.engine.model.model_path import model_path
from hotcold.gguf_io.gpuidx import index_path, is_foreign

pytestmark = pytest.mark.usefixtures("no_card")
run = partial(run_command, "offload-dump")

POWERINFER = Path(__file__).parent.parent.parent / "data" / "powerinfer"
SIX = ("--vram-budget", "6MiB", "-b", "64", "-c", "256")


def model_copy(folder: Path) -> Path:
    source = model_path(None)
    path = folder / source.name
    path.write_bytes(source.read_bytes())
    return path


def test_our_index_is_written_used_and_remade_when_stale(tmp_path: Path) -> None:
    model = model_copy(tmp_path)
    assert "index written to" in run("-m", str(model), *SIX, "--gpu-index-for", "hotcold").stderr
    assert not is_foreign(index_path(model))
    result = run("-m", str(model), *SIX, "--json")
    assert "hot neurons from" in result.stderr
    fresh = run("-m", str(model), *SIX, "--json", "--reset-gpu-index")
    assert "hot neurons from" not in fresh.stderr
    assert [la["gpu_bucket"] for la in json.loads(result.stdout)["layers"]] == [
        la["gpu_bucket"] for la in json.loads(fresh.stdout)["layers"]
    ]
    stale = run("-m", str(model), "--vram-budget", "5MiB", "-b", "64", "-c", "256")
    assert "is not used: made for another budget" in stale.stderr


def test_an_index_that_is_written_once_more_is_of_the_counts_there_are(tmp_path: Path) -> None:
    """A run only says that there are others than it was made of."""
    model, counts = model_copy(tmp_path), tmp_path / "counts"
    run("-m", str(model), *SIX, "--gpu-index-for", "hotcold")
    counts.mkdir()
    for i in range(6):
        np.save(counts / f"activation_{i}.npy", np.arange(1024, dtype=np.uint64))
    with_counts = ("-m", str(model), *SIX, "--activation", str(counts))
    told = run(*with_counts).stderr
    assert "ranked by other counts" in told and "--gpu-index-for hotcold makes it anew" in told
    assert "hot neurons from" not in run(*with_counts, "--gpu-index-for", "hotcold").stderr
    found = run(*with_counts, "--json")
    assert "hot neurons from" in found.stderr and "other counts" not in found.stderr
    hot = json.loads(found.stdout)["layers"][0]["gpu_bucket"]
    assert (
        hot
        != json.loads(run("-m", str(model), *SIX, "--json", "--reset-gpu-index").stdout)["layers"][0][
            "gpu_bucket"
        ]
    )


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", ["a pipe", "a directory", "a device", "a link to a pipe"])
def test_an_index_takes_the_place_of_nothing_but_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Ours goes to the cache then; PowerInfer looks there alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = model_copy(tmp_path)
    place = index_path(model)
    if kind == "a directory":
        place.mkdir()
    elif kind == "a device":
        try:
            os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except OSError:
            pytest.skip("only root makes device nodes")
    else:
        os.mkfifo(tmp_path / "pipe")
        place.symlink_to("pipe") if "link" in kind else (tmp_path / "pipe").rename(place)
    was = os.lstat(place)
    for code, arguments in (
        (0, ()),
        (0, ("--gpu-index-for", "hotcold")),
        (3, ("--gpu-index-for", "powerinfer")),
    ):
        result = run("-m", str(model), *SIX, *arguments)
        assert result.returncode == code and str(place) in result.stderr
        assert os.path.samestat(os.lstat(place), was)


def test_disabling_the_index_leaves_no_hot_neurons(tmp_path: Path) -> None:
    got = json.loads(run(*SIX, "--disable-gpu-index", "--json").stdout)
    assert got["totals"]["gpu"]["hot_rows"] == 0
    assert got["totals"]["dense_layers"] == 6


def test_no_index_of_no_neurons_is_written(tmp_path: Path) -> None:
    model = model_copy(tmp_path)
    for kind in ("hotcold", "powerinfer"):
        result = run("-m", str(model), *SIX, "--disable-gpu-index", "--gpu-index-for", kind)
        assert result.returncode == 2
        assert f"--gpu-index-for: {kind} (does not go with --disable-gpu-index)" in result.stderr
    assert list(tmp_path.iterdir()) == [model]


def test_why_nothing_is_hot_is_the_option_where_no_index_is_used() -> None:
    got = json.loads(run(*SIX, "--disable-gpu-index", "--json").stdout)
    reasons = {row["why"] for row in got["weights"] if row["role"] == "ffn"}
    assert "FFN of layer 0: no neurons on the device, as --disable-gpu-index asks" in reasons
    assert not any("index file" in reason for reason in reasons)


def test_a_foreign_index_is_used_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = POWERINFER / "llama-f16.powerinfer.gguf"
    model = tmp_path / source.name
    model.write_bytes(source.read_bytes())
    content = index_path(source).read_bytes()
    index_path(model).write_bytes(content)
    big = ("-m", str(model), "--vram-budget", "16MiB", "-b", "16", "-c", "64")
    result = run(*big, "--json")
    assert "which hotcold did not write" in result.stderr
    assert [la["gpu_bucket"][0] for la in json.loads(result.stdout)["layers"]] == [768, 512]
    result = run(*big, "--reset-gpu-index", "--gpu-index-for", "hotcold")
    assert "stays: hotcold did not write it" in result.stderr
    assert str(tmp_path / "cache") in result.stderr
    assert index_path(model).read_bytes() == content
    refused = run(*big, "--gpu-index-for", "powerinfer")
    assert refused.returncode == 3 and index_path(model).read_bytes() == content
    small = run("-m", str(model), "--vram-budget", "1MiB", "-b", "1", "-c", "64", "--json")
    assert small.returncode == 0, small.stderr
    assert "is not used" in small.stderr or json.loads(small.stdout)["totals"]["coverage"] == 0


@pytest.mark.parametrize("content", [b"", b"PWRI", b"notes", None])
def test_a_broken_index_is_said_and_not_used(tmp_path: Path, content: bytes | None) -> None:
    model = model_copy(tmp_path)
    foreign = index_path(POWERINFER / "llama-f16.powerinfer.gguf").read_bytes()
    index_path(model).write_bytes(foreign if content is None else content)
    result = run("-m", str(model), *SIX)
    assert result.returncode == 0
    assert "is not used" in result.stderr


def test_powerinfers_counts_are_multiples_of_256(tmp_path: Path) -> None:
    from hotcold.gguf_io.gpuidx import read_index

    model = model_copy(tmp_path)
    assert run("-m", str(model), *SIX, "--gpu-index-for", "powerinfer").returncode == 0
    index = read_index(index_path(model), 6, 1024)
    assert {ids.size % 256 for ids in index.hot} == {0}
    assert index.identity is None and any(ids.size for ids in index.hot)
