"""Plans over several cards: whole layers in order, each card's own cap, one hidden state from a card to the next."""

from typing import Any

import numpy as np
import pytest
from any_model import Case, cases, everything
from gguf import GGMLQuantizationType as T
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_checks import check_sums

from hotcold.engine.dump.inputs import budget_of, facts_for
from hotcold.engine.dump.report import as_json
from hotcold.engine.dump.text import prompt_lines, short_form
from hotcold.engine.graph.offsets import placed_lifetimes
from hotcold.engine.graph.placed import CPU
from hotcold.engine.model.shape import Shape
from hotcold.engine.model.shapes import build
from hotcold.engine.plan import placement
from hotcold.engine.plan.budget import Budget, budget_for_each, of_cards, parse_budgets
from hotcold.engine.plan.cards import CARDS
from hotcold.engine.plan.estimate import estimate
from hotcold.engine.plan.launches import launches_of_a_token
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.wanted import Wanted
from hotcold.errors import DoesNotFitError, SettingError

MIB = 1 << 20
MODEL = build("relu", Shape("llama", 6, 512, 2048, 4, 4, 1000, 512, "relu"), T.Q4_0, 64)
HOW = Wanted("predictor", 256, 32)


def budgets(*sizes: int) -> Budget:
    return of_cards([Budget(str(n_bytes), n_bytes, "a test") for n_bytes in sizes])


def plan_of(*sizes: int, how: Wanted = HOW) -> Plan:
    return placement.plan(MODEL, how, budgets(*sizes))


def test_layers_go_by_budget_in_order_and_the_head_to_the_last() -> None:
    plan = plan_of(16 * MIB, 8 * MIB)
    check_sums(plan)
    assert [card.layers for card in plan.cards] == [range(4), range(4, 6)]
    assert {e.card for e in plan.weights if e.role == "head" and e.device_rows} == {1}
    alike = plan_of(12 * MIB, 12 * MIB, 12 * MIB)
    assert [card.layers for card in alike.cards] == [range(2), range(2, 4), range(4, 6)]


def test_one_hidden_state_crosses() -> None:
    """Down from one card and up to the next, beside the embedding's row and the logits."""
    one, two = plan_of(64 * MIB), plan_of(32 * MIB, 32 * MIB)
    assert one.hot_share == two.hot_share == 1
    nodes = [(p.node.name, p.side) for p in two.decode.placed.nodes if p.node.op == "copy"]
    edge = two.cards[0].layers.stop - 1
    assert nodes[1:-1] == [(f"l_out-{edge}@cpu", "cpu"), (f"l_out-{edge}@gpu1", "gpu1")]
    assert [side for _, side in nodes] == ["gpu", "cpu", "gpu1", "cpu"]
    others = [p.node.name for p in one.decode.placed.nodes]
    assert [p.node.name for p in two.decode.placed.nodes if f"l_out-{edge}@" not in p.node.name] == others
    assert launches_of_a_token(two) == launches_of_a_token(one)
    card = CARDS["rtx4090"]
    assert estimate(one, card).token < estimate(two, card).token < 1.2 * estimate(one, card).token


def test_each_card_streams_through_buffers_of_its_own() -> None:
    plan = plan_of(9 * MIB, 6 * MIB, how=Wanted("predictor", 256, 32, stream_batch=8))
    check_sums(plan)
    streaming = plan.streaming
    assert streaming is not None
    for card in plan.cards:
        pieces = streaming.pieces_of(card.layers)
        assert 2 * max(piece.n_bytes for piece in pieces) <= card.totals.staging
    assert sum(len(streaming.pieces_of(card.layers)) for card in plan.cards) == len(streaming.pieces)


def test_a_card_without_room_for_its_buffers_is_sent_nothing() -> None:
    """The others are; of its layers a batch has on the CPU what a token has there."""
    plan = plan_of(9 * MIB, 4 * MIB, how=Wanted("predictor", 256, 32, stream_batch=8))
    check_sums(plan)
    assert plan.streaming is not None and plan.cards[0].totals.staging and not plan.cards[1].totals.staging
    here = plan.cards[1].layers
    assert plan.not_streamed.startswith(f"layers {here.start} to {here.stop - 1}: two staging buffers")
    assert plan.not_streamed in plan.notes and not plan.streaming.pieces_of(here)
    on_cpu = [
        {(p.node.name, p.side) for p in graph.placed.nodes if p.side == CPU and p.node.layer in here}
        for graph in (plan.batch, plan.streaming.graph)
    ]
    assert on_cpu[0] == on_cpu[1] and on_cpu[0]
    (line,) = [line for line in prompt_lines(as_json(plan)) if "nothing" in line]
    assert plan.not_streamed in line


def test_the_dump_tells_each_card() -> None:
    report = as_json(plan_of(16 * MIB, 8 * MIB))
    cards = report["totals"]["cards"]
    assert [card["layers"] for card in cards] == [[0, 3], [4, 5]]
    for key, value in report["totals"]["gpu"].items():
        assert value == sum(card[key] for card in cards)
    assert {row["device"] for row in report["kv_cache"]} == {"gpu", "gpu1"}
    said = short_form(report)
    assert said[1].startswith("card 0: layers 0 to 3, ") and "layers 4 to 5 and the head" in said[2]


@pytest.mark.parametrize(
    ("text", "sizes"), [("8MB,6MB", [8_000_000, 6_000_000]), ("1,2", [1 << 30, 2 << 30]), ("3", [3 << 30])]
)
def test_a_list_of_budgets(text: str, sizes: list[int]) -> None:
    assert [each.n_bytes for each in budget_of(text, None).each] == sizes
    facts = facts_for("4GiB", text)
    assert [each.n_bytes for each in budget_of("auto,auto", facts).each] == [(4 << 30) - 512 * MIB] * 2


def test_bad_lists() -> None:
    with pytest.raises(SettingError, match="a card of several has a budget above 0"):
        parse_budgets("8GB,0")
    with pytest.raises(SettingError, match=r"vram_budget: 1,2,3 \(3 budgets for 2 cards\)"):
        budget_for_each(parse_budgets("1,2,3"), 2)
    with pytest.raises(SettingError, match=r"2 budgets for 1 card\)"):
        budget_for_each(parse_budgets("1,2"), 1)
    assert len(budget_for_each(parse_budgets("1"), 3)) == 3
    with pytest.raises(SettingError, match="7 cards"):
        plan_of(*[8 * MIB] * 7)
    with pytest.raises(
        DoesNotFitError, match=r"1000, 1000 bytes \(the smallest useful plan of layers 5 to 5"
    ):
        plan_of(16 * MIB, 1000)


def several(case: Case, shares: list[float], **more: Any) -> Plan | None:
    model, counts, mode, n_ctx, n_batch = case
    sizes = [max(1, int(share * everything(model))) for share in shares]
    try:
        return placement.plan(model, Wanted(mode, n_ctx, n_batch, **more), budgets(*sizes), counts)
    except (DoesNotFitError, SettingError):
        return None


def check_any(case: Case, shares: list[float], streams: bool) -> None:
    plan = several(case, shares, stream_batch=2 if streams else 0)
    if plan is None:
        return
    check_sums(plan)
    for graph in plan.all_graphs:
        sides = {p.node.output.name: p.side for p in graph.placed.nodes}
        order = [int(p.side.removeprefix("gpu") or 0) for p in graph.placed.nodes if p.side != CPU]
        assert order == sorted(order)  # no card comes again
        for p in graph.placed.nodes:
            for operand in p.node.inputs:
                if p.node.op != "copy" and operand.name in sides:
                    in_place = p.node.op == "merge" and sides[operand.name] == CPU
                    assert in_place or sides[operand.name] == p.side or operand.dtype == "none"  # type: ignore[union-attr]
        spans = placed_lifetimes(graph.placed)
        for arena in graph.arenas.values():
            for i, a in enumerate(arena.slots):
                for b in arena.slots[i + 1 :]:
                    if a.first_step <= b.last_step and b.first_step <= a.last_step:
                        assert a.offset + a.n_bytes <= b.offset or b.offset + b.n_bytes <= a.offset
                assert (a.first_step, a.last_step) == spans[a.name]


SHARES = st.lists(st.floats(0.02, 1.3), min_size=2, max_size=3)


@settings(max_examples=25, deadline=None)
@given(cases(), SHARES, st.booleans())
def test_any_model_and_budgets(case: Case, shares: list[float], streams: bool) -> None:
    check_any(case, shares, streams)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(cases(), SHARES, st.booleans())
def test_many_models_and_budgets(case: Case, shares: list[float], streams: bool) -> None:
    check_any(case, shares, streams)


def test_neurons_of_each_card_are_those_that_its_own_budget_has_room_for() -> None:
    """Both cards hold their hottest, whatever the other one has."""
    counts = [np.arange(2048)[::-1] * (10 if i < 3 else 1) for i in range(6)]
    whole = placement.plan(MODEL, HOW, budgets(64 * MIB, 64 * MIB), counts)
    sizes = [
        card.totals.used - card.totals.hot_rows // n for n, card in zip((2, 3), whole.cards, strict=True)
    ]
    plan = placement.plan(MODEL, HOW, budgets(*sizes), counts)
    check_sums(plan)
    for card in plan.cards:
        layers = [plan.layers[i] for i in card.layers]
        assert all(layer.hot.tolist() == list(range(layer.n_hot)) for layer in layers)
        assert any(0 < layer.n_hot < layer.n_ff for layer in layers)
