"""Where our index goes, and which file's neurons are used."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hotcold.engine.dump import inputs as dump
from hotcold.engine.plan import gpu_index, planning
from hotcold.engine.plan.gpu_index import cache_path, hottest, plan_with_index, store
from hotcold.engine.plan.plan import Plan
from hotcold.errors import FileError
from hotcold.gguf_io.gpuidx import GpuIndex, Identity, index_path, read_index, write_index

SOURCE = dump.open_source(None, None, None, None)
HOW = planning.wanted(SOURCE, "auto", 64, 8, "f16")
BUDGET = dump.budget_of("6MiB", None)
IDENTITY = planning.identity(SOURCE, HOW, BUDGET)


def planned(hot: object = None, budget: str = "6MiB") -> Plan:
    return planning.make_plan(SOURCE, HOW, dump.budget_of(budget, None), hot)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own may have an index of the same model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_folder_that_cannot_be_written_falls_back_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "m.gguf"

    def write(path: Path, index: GpuIndex, n_ff: int) -> None:
        if path == index_path(model):
            raise FileError("index file", path, "Read-only file system")
        write_index(path, index, n_ff)

    monkeypatch.setattr(gpu_index, "write_index", write)
    line = store(planned(), model, IDENTITY)
    assert "Read-only file system" in line
    cached = cache_path(model, IDENTITY)
    assert str(cached) in line
    plan = planned()
    hot = read_index(cached, 6, 1024).hot
    assert [ids.tolist() for ids in hot] == [split.hot.tolist() for split in plan.layers]
    used = plan_with_index(SOURCE.model, model, IDENTITY, planned)
    assert used.lines == (f"hot neurons from {cached}",)


def test_what_is_no_index_is_named_once(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    index_path(model).write_bytes(b"junk of another program")
    line = plan_with_index(SOURCE.model, model, IDENTITY, planned).lines[0]
    assert line.startswith(f"index {index_path(model)} is not used: begins with b'junk'")
    assert line.count(str(model)) == 1 and "download" not in line


def test_an_index_that_does_not_fit_is_said_and_the_ranking_is_used(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    everything = tuple(np.arange(1024, dtype=np.int32) for _ in range(6))
    write_index(index_path(model), GpuIndex(everything, 0), 1024)
    used = plan_with_index(SOURCE.model, model, IDENTITY, planned)
    assert "hot rows of the index" in used.lines[0]
    assert [split.n_hot for split in used.plan.layers] == [split.n_hot for split in planned().layers]
    small = plan_with_index(SOURCE.model, model, IDENTITY, lambda hot: planned(hot, "2MiB"))
    assert "is not used" in small.lines[0]
    assert small.plan.hot_share == 0


def test_a_stale_index_is_said_and_made_again(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    store(planned(), model, IDENTITY)
    other = Identity("00" * 32, IDENTITY.size, IDENTITY.budget, IDENTITY.n_ctx)
    used = plan_with_index(SOURCE.model, model, other, planned)
    said = f"index {index_path(model)} is not used: made for another model"
    assert used.lines == (said, f"index written to {index_path(model)}")
    again = plan_with_index(SOURCE.model, model, other, planned)
    assert again.lines == (f"hot neurons from {index_path(model)}",)


@pytest.mark.parametrize(("setting", "other"), [("kv_type", "q8_0"), ("n_slots", 2)])
def test_an_index_for_another_cache_is_made_again(tmp_path: Path, setting: str, other: object) -> None:
    """What the cache takes of the budget, no hot rows can have; with a smaller one some of it would lie idle."""
    model = tmp_path / "m.gguf"
    store(planned(), model, IDENTITY)
    identity = planning.identity(SOURCE, replace(HOW, **{setting: other}), BUDGET)  # type: ignore[arg-type]
    used = plan_with_index(SOURCE.model, model, identity, planned)
    assert used.lines[0] == f"index {index_path(model)} is not used: made for another {setting}"
    assert used.lines[1:] == (f"index written to {index_path(model)}",)


def test_an_index_of_other_counts_stays_and_is_told(tmp_path: Path) -> None:
    """It may be of an --activation that nobody names a second time. Without counts, or of the same, nothing is told."""
    model = tmp_path / "m.gguf"
    source = replace(SOURCE, frequencies=[np.arange(1024) for _ in range(6)], frequencies_from="a/")
    identity = planning.identity(source, HOW, BUDGET)

    def line_for(made_for: Identity) -> str:
        index_path(model).unlink(missing_ok=True)
        store(planned(), model, made_for)
        plans = partial(planning.make_plan, source, HOW, BUDGET)
        return plan_with_index(source.model, model, identity, plans).lines[0]

    plain = f"hot neurons from {index_path(model)}"
    for others in ("none", "ab" * 32):
        told = line_for(replace(identity, counts=others))
        assert told.startswith(
            f"{plain}, ranked by other counts than those of a/; hotcold offload-dump --gpu-index-for hotcold"
        )
    assert line_for(identity) == line_for(replace(identity, counts="")) == plain
    store(planned(), model, identity)
    without = planning.identity(replace(source, frequencies=None), HOW, BUDGET)
    assert plan_with_index(source.model, model, without, planned).lines == (plain,)


def test_reset_and_disable(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    write_index(index_path(model), GpuIndex((np.array([1], np.int32),) * 6, 0), 1024)
    assert plan_with_index(SOURCE.model, model, IDENTITY, planned).plan.layers[0].n_hot == 1
    assert plan_with_index(SOURCE.model, model, IDENTITY, planned, reset=True).plan.layers[0].n_hot > 1
    disabled = plan_with_index(SOURCE.model, model, IDENTITY, planned, disable=True)
    assert disabled.plan.hot_share == 0 and disabled.plan.n_dense_layers == 6


def test_the_hottest_of_equal_ones_have_the_lower_numbers() -> None:
    assert hottest(np.array([1, 5, 5, 5, 0]), 2).tolist() == [1, 2]
    assert hottest(np.array([1, 5, 5, 5, 0]), 4).tolist() == [0, 1, 2, 3]
