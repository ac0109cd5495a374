"""Caches of several sequences on a device: so many times one, as far as they fit."""

from dataclasses import replace

import pytest
from gguf import GGMLQuantizationType as T
from plan_checks import budget, check_sums

from hotcold.engine.dump.report import as_json
from hotcold.engine.dump.text import cache_line
from hotcold.engine.model.shape import Shape
from hotcold.engine.model.shapes import build
from hotcold.engine.plan import placement
from hotcold.engine.plan.budget import of_cards
from hotcold.engine.plan.footprint import head_part
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.wanted import Wanted
from hotcold.errors import DoesNotFitError

MIB = 1 << 20
MODEL = build("relu", Shape("llama", 6, 512, 2048, 8, 4, 1000, 512, "relu"), T.Q4_0, 64)
HOW = Wanted("predictor", 300, 64)


def plan_of(n_bytes: int, n_slots: int, how: Wanted = HOW) -> Plan:
    made = placement.plan(MODEL, replace(how, n_slots=n_slots), budget(n_bytes))
    check_sums(made)
    return made


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_each_slot_counts(kv_type: str) -> None:
    how = replace(HOW, kv_type=kv_type)
    one, four = (plan_of(64 * MIB, n, how) for n in (1, 4))
    assert [cache.n_bytes for cache in four.caches] == [4 * cache.n_bytes for cache in one.caches]
    assert {cache.side for cache in four.caches} == {"gpu"} and four.hot_share == 1
    assert four.totals.kv_cache == 4 * one.totals.kv_cache
    grown = {name for name, n_bytes in four.workspace.items() if n_bytes != one.workspace[name]}
    assert grown == {"positions", "attention", "arrived"}
    assert four.workspace["positions"] == 2 * one.workspace["positions"] == 8 * 64
    assert four.workspace["attention"] == 4 * one.workspace["attention"] > 0
    row = as_json(four)["kv_cache"][0]
    assert (row["slots"], row["device"], row["bytes"]) == (4, "gpu", four.caches[0].n_bytes)
    assert "4 x 300 positions" in cache_line(row)


def test_all_fit_or_none_and_then_neurons_have_the_room() -> None:
    dense = plan_of(64 * MIB, 4)
    n_bytes = dense.totals.used - dense.totals.hot_rows - head_part(MODEL).n_bytes + 2048
    assert {each.side for each in plan_of(n_bytes, 4).caches} == {"gpu"}
    made = plan_of(n_bytes - 8192, 4)  # by more than what slabs are rounded up to
    assert {each.side for each in made.caches} == {"cpu"} and made.hot_share > 0
    assert all("the KV caches of 4 slots do not fit: 7.0 MiB, and " in each.why for each in made.caches)
    (note,) = [note for note in made.notes if "slots" in note]
    assert note.startswith(made.caches[0].why) and "take fewer slots, or a smaller n_ctx" in note
    assert not [note for note in dense.notes if "slots" in note]
    assert [each.n_bytes for each in made.caches] == [4 * each.n_bytes for each in plan_of(0, 1).caches]


def test_each_card_by_itself() -> None:
    how = replace(HOW, n_slots=4)
    made = placement.plan(MODEL, how, of_cards([budget(64 * MIB), budget(8 * MIB)]))
    check_sums(made)
    assert [(each.card, each.side) for each in made.caches] == [(0, "gpu")] * 5 + [(1, "gpu")]


def test_a_batch_keeps_a_token_of_each_slot() -> None:
    """However little fits, for that is what a run of several sequences is."""
    with pytest.raises(DoesNotFitError, match="smallest useful plan") as refused:
        plan_of(1 * MIB, 8)
    needed = int(str(refused.value).split(" needs ")[1].split(" bytes")[0])
    assert plan_of(needed, 8).n_batch == 8
