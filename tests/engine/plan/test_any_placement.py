"""Plans of any model and budget: the cap, the sums, and that more memory is never worse."""

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_checks import budget, check_sums, hot

from hotcold.engine.dump.report import as_json
from hotcold.engine.graph.offsets import placed_lifetimes
from hotcold.engine.model.model import Layer, Model
from hotcold.engine.model.shape import Shape
from hotcold.engine.model.shapes import build
from hotcold.engine.plan import placement
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.wanted import Wanted
from hotcold.errors import DoesNotFitError

T = GGMLQuantizationType
KINDS = [T.F32, T.F16, T.Q8_0, T.Q4_0, T.Q6_K]
Case = tuple[Model, list[np.ndarray[Any, Any]], str, int, int]


def _experts(**more: int) -> st.SearchStrategy[dict[str, Any]]:
    """Sizes of a mixture of experts."""
    n_expert = st.integers(1, 9)
    some = n_expert.flatmap(
        lambda n: st.fixed_dictionaries({"n_expert": st.just(n), "n_expert_used": st.integers(1, n)})
    )
    return st.builds(lambda sizes, n: sizes | {"n_ff_exp": 256 * n} | more, some, st.integers(1, 2))


MIXTURES = {
    "qwen3moe": _experts(head_dim=64),
    "qwen2moe": _experts(n_ff_shexp=512),
    "granitemoe": _experts(),
    "gpt-oss": _experts(window=16),
    "smallthinker": _experts(),
}
VARIANTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "qwen3": st.just({"head_dim": 32}),
    "phi3": st.just({}),
    "granite": st.just({}),
    "gemma3": st.fixed_dictionaries({"head_dim": st.just(64), "window": st.integers(0, 80)}),
}


def _by_neuron(layer: Layer) -> Layer:
    """The layer with its experts' down projections the other way round."""
    down = layer.ffn_down_exps
    assert down is not None
    n_ff, n_embd, n_expert = down.ne
    return replace(layer, ffn_down_exps=None, ffn_down_exps_t=replace(down, ne=(n_embd, n_ff, n_expert)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A model with mixed types, its counts (with many ties), a mode, n_ctx and n_batch."""
    architecture = draw(st.sampled_from(["llama", "bamboo", "falcon", "opt", "qwen2", *VARIANTS, *MIXTURES]))
    mixture = MIXTURES.get(architecture)
    own = draw((VARIANTS | MIXTURES).get(architecture, st.just({})))
    relu = mixture is None and (architecture != "llama" or draw(st.booleans()))
    shape = Shape(
        architecture,
        n_layer=draw(st.integers(1, 4)),
        n_embd=draw(st.sampled_from([256, 512])),
        n_ff=256 * draw(st.integers(1, 3)),
        n_head=4,
        n_head_kv=draw(st.sampled_from([1, 2, 4])),
        n_vocab=draw(st.integers(1, 300)),
        n_ctx_train=64,
        ffn_activation="relu" if relu else "silu" if mixture is None else "",
        **own,
        tied=draw(st.booleans()),
        n_positions=66 if architecture == "opt" else 0,
    )
    model = build("any", shape, draw(st.sampled_from(KINDS)), draw(st.sampled_from([0, 32])) if relu else 0)
    if draw(st.booleans()):  # layers of another type
        other = build("any", shape, draw(st.sampled_from(KINDS)), 32 if model.has_predictors else 0)
        layers = tuple(draw(st.sampled_from(pair)) for pair in zip(model.layers, other.layers, strict=True))
        model = replace(model, layers=layers)
    if model.experts is not None and draw(st.booleans()):
        model = replace(model, layers=tuple(map(_by_neuron, model.layers)))
    mode = "off"
    if model.ffn_activation == "relu":
        mode = draw(st.sampled_from(["off", "exact", *(["predictor"] if model.has_predictors else [])]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    n_counts = model.n_units
    if model.experts is not None and draw(st.booleans()):  # an expert's, for all of its neurons
        n_counts = model.experts.n_expert
    counts = [rng.integers(0, draw(st.sampled_from([1, 3, 10000])), n_counts) for _ in model.layers]
    n_ctx = draw(st.integers(1, 64 if model.windows is None else 300))
    return model, counts, mode, n_ctx, draw(st.sampled_from([1, 2, 7, 32]))


def everything(model: Model) -> int:
    weights = [
        model.token_embd,
        model.output,
        *(w for la in model.layers for w in (la.attn_q, *la.ffn_matrices)),
    ]
    return 4 * sum(weight.n_bytes for weight in weights) + (1 << 20)


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


@settings(max_examples=15, deadline=None)
@given(cases(), st.floats(0, 1.3))
def test_thresholds_do_not_matter(case: Case, share: float) -> None:
    texts = set()
    for threshold in (-100.0, 0.0, 100.0):
        changed = (replace(case[0], sparse_threshold=threshold), *case[1:])
        plan = planned(changed, int(share * everything(case[0])))
        texts.add("" if plan is None else json.dumps(as_json(plan)) + str(hot(plan)))
    assert len(texts) == 1
