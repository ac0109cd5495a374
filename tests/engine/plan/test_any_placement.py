"""Plans of any model and budget: the cap, the sums, and that more memory is never worse."""

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from any_model import Case, cases, everything
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_checks import budget, check_sums, hot

from hotcold.engine.dump.report import as_json
from hotcold.engine.graph.arena import ArenaSlot
from hotcold.engine.graph.graph import Tensor, tensors_of
from hotcold.engine.graph.offsets import placed_lifetimes
from hotcold.engine.graph.placed import GPU, PlacedNode, results
from hotcold.engine.plan import placement
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.wanted import Wanted
from hotcold.errors import DoesNotFitError


def planned(case: Case, n_bytes: int, **options: Any) -> Plan | None:
    model, counts, mode, n_ctx, n_batch = case
    try:
        return placement.plan(model, Wanted(mode, n_ctx, n_batch), budget(n_bytes), counts, **options)
    except DoesNotFitError:
        return None


@settings(max_examples=60, deadline=None)
@given(cases(), st.floats(0, 1.3))
def test_the_cap_is_never_passed_and_everything_adds_up(case: Case, share: float) -> None:
    plan = planned(case, int(share * everything(case[0])))
    if plan is not None:
        check_sums(plan)


@settings(max_examples=40, deadline=None)
@given(cases(), st.floats(0, 1.3))
def test_every_tensor_is_listed_once(case: Case, share: float) -> None:
    plan = planned(case, int(share * everything(case[0])))
    if plan is None:
        return
    model = case[0]
    names = [entry.name for entry in plan.weights]
    assert len(names) == len(set(names))
    layers = [
        [weight for field in fields(la) if (weight := getattr(la, field.name)) is not None]
        for la in model.layers
    ]
    once = (model.token_embd, model.output, model.output_norm, model.output_norm_bias, model.position_embd)
    whole = {weight.name: weight.n_bytes for weight in once if weight is not None}
    assert sum(e.n_bytes for e in plan.weights) == sum(whole.values()) + sum(
        w.n_bytes for la in layers for w in la
    )


SHARES = st.lists(st.floats(0, 1.3), min_size=2, max_size=5)


@settings(max_examples=15, deadline=None)
@given(cases(), SHARES)
def test_more_budget_never_covers_fewer_activations(case: Case, shares: list[float]) -> None:
    check_coverage(case, shares)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(cases(), SHARES)
def test_more_budget_never_covers_fewer_activations_of_many_plans(case: Case, shares: list[float]) -> None:
    check_coverage(case, shares)


def check_coverage(case: Case, shares: list[float]) -> None:
    """Of plans for these shares of all bytes."""
    sizes = sorted(int(share * everything(case[0])) for share in shares)
    plans = [plan for size in sizes if (plan := planned(case, size)) is not None]
    covered = [plan.coverage for plan in plans]
    assert covered == sorted(covered)
    assert [p.hot_share for p in plans] == sorted(p.hot_share for p in plans)


@settings(max_examples=40, deadline=None)
@given(cases(), st.floats(0, 1.3))
def test_overlapping_lifetimes_never_overlap_in_an_arena(case: Case, share: float) -> None:
    plan = planned(case, int(share * everything(case[0])))
    for graph in (plan.decode, plan.batch) if plan else ():
        spans = placed_lifetimes(graph.placed)
        for arena in graph.arenas.values():
            for i, a in enumerate(arena.slots):
                assert (a.first_step, a.last_step) == spans[a.name]
                for b in arena.slots[i + 1 :]:
                    together = a.first_step <= b.last_step and b.first_step <= a.last_step
                    apart = a.offset + a.n_bytes <= b.offset or b.offset + b.n_bytes <= a.offset
                    assert apart or not together


@settings(max_examples=40, deadline=None)
@given(cases(), st.floats(0.5, 3.0))
def test_what_crosses_the_bus_shares_no_bytes_with_what_runs_beside_it(case: Case, share: float) -> None:
    """Copies are in a stream of their own; the host waits for those down before it computes, and for nothing else."""
    model = case[0]
    hot = [np.arange(0, model.n_units, 2, dtype=np.int32)] * model.n_layer
    plan = planned(case, int(share * everything(model)), hot=hot)
    for graph in (plan.decode, plan.batch) if plan else ():
        slots = {slot.name: slot for slot in graph.arenas[GPU].slots}

        def overlap(a: str, b: str, slots: dict[str, ArenaSlot] = slots) -> bool:
            if a not in slots or b not in slots:
                return False
            first, second = slots[a], slots[b]
            return (
                first.offset < second.offset + second.n_bytes and second.offset < first.offset + first.n_bytes
            )

        running: list[PlacedNode] = []  # of the device, since the last copy down that the host has waited for
        sent: list[Tensor] = []  # what copies down may still read
        behind = 0  # how many of those running come before the last copy down
        for p in graph.placed.nodes:
            used = [*tensors_of(p.node), *results(p.node)]
            if p.side == GPU and p.node.op == "copy":
                others = [t.name for node in running for t in (*tensors_of(node.node), *results(node.node))]
                assert not any(overlap(to.name, other) for to in results(p.node) for other in others)
            elif p.side == GPU:
                assert not any(overlap(t.name, made.name) for t in sent for made in results(p.node))
                running.append(p)
            elif p.node.op == "copy":
                sent, behind = [*sent, *tensors_of(p.node)], len(running)
            elif used:
                running, sent, behind = running[behind:], [], 0


@settings(max_examples=15, deadline=None)
@given(cases(), st.floats(0, 1.3))
def test_thresholds_do_not_matter(case: Case, share: float) -> None:
    texts = set()
    for threshold in (-100.0, 0.0, 100.0):
        changed = (replace(case[0], sparse_threshold=threshold), *case[1:])
        plan = planned(changed, int(share * everything(case[0])))
        texts.add("" if plan is None else json.dumps(as_json(plan)) + str(hot(plan)))
    assert len(texts) == 1
