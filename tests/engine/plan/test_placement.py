"""The planner: the order of what it places, the best choice of neurons, and why."""

import re
from dataclasses import replace

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_checks import budget, check_sums, hot

from hotcold.engine.model.shape import Shape
from hotcold.engine.model.shapes import build, like
from hotcold.engine.plan import placement
from hotcold.engine.plan.budget import Budget
from hotcold.engine.plan.footprint import dense_part, device_bytes, ffn_part, layer_kv_bytes, neuron_bytes
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.ranking import rank
from hotcold.engine.plan.wanted import Wanted
from hotcold.errors import DoesNotFitError, SettingError
from hotcold.kernels.formats import GRANULE
from hotcold.kernels.weight_table import WEIGHT_TYPES

T = GGMLQuantizationType


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_as_good_as_an_exact_solver(data: st.DataObject) -> None:
    """Greedy by density is within one neuron's value of the optimum, and is it when costs are equal."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    n_layer, n_ff = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    costs = data.draw(st.lists(st.integers(1, 9), min_size=n_layer, max_size=n_layer))
    if data.draw(st.booleans()):
        costs = [costs[0]] * n_layer
    counts = [np.array(data.draw(st.lists(st.integers(0, 50), min_size=n_ff, max_size=n_ff))) for _ in costs]
    cap = data.draw(st.integers(0, n_ff * sum(costs)))
    ranking = rank(counts, costs)
    n = ranking.prefix(cap)
    got = sum(counts[la][i] for la, i in zip(ranking.layers[:n], ranking.neurons[:n], strict=True))
    values, sizes = np.concatenate(counts), np.repeat(costs, n_ff)
    best = milp(
        -values,
        constraints=LinearConstraint(sizes[None], 0, cap),
        integrality=np.ones(values.size),
        bounds=Bounds(0, 1),
    )
    optimum = round(-best.fun)
    missing = values.max() if n < values.size and len(set(costs)) > 1 else 0
    assert optimum - missing <= got <= optimum


def test_ties_interleave_over_the_layers() -> None:
    ranking = rank([np.array([5, 5, 1]), np.array([5, 5, 5])], [2, 2])
    assert list(zip(ranking.layers, ranking.neurons, strict=True)) == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
        (1, 2),
        (0, 2),
    ]
    assert ranking.ends.tolist() == [2, 4, 6, 8, 10, 12]


def test_a_neuron_that_costs_less_comes_first() -> None:
    ranking = rank([np.array([6]), None, np.array([4])], [3, 9, 1])
    assert ranking.layers.tolist() == [2, 0]
    assert [ids.tolist() for ids in ranking.hot(1, 3)] == [[], [], [0]]


MODEL = build("small", Shape("llama", 3, 256, 512, 4, 2, 100, 64, "relu"), T.Q4_0, 32)
COUNTS = [np.arange(512), np.arange(512) * 2, np.zeros(512, np.int64)]


def small(n_bytes: int, n_batch: int = 8) -> Plan:
    return placement.plan(MODEL, Wanted("predictor", 64, n_batch), budget(n_bytes), COUNTS)


MOST_PADDING = 3 * (GRANULE - 1)


def needed(plan: Plan) -> int:
    totals = plan.totals
    return sum(totals.slabs) - totals.hot_rows + MOST_PADDING


def unspent(plan: Plan) -> int:
    """What is left over where the slabs take all the padding that is reserved for them."""
    return plan.totals.left_over + plan.totals.padding - MOST_PADDING


def test_nothing_is_on_the_device_for_a_budget_of_nothing() -> None:
    plan = small(0)
    assert plan.totals.used == 0
    assert {entry.side for entry in plan.weights} == {"cpu"}
    assert all(p.side == "cpu" for p in plan.decode.placed.nodes)


def test_the_hottest_neurons_fill_the_budget() -> None:
    all_dense = needed(small(1 << 30))
    cost = neuron_bytes(MODEL.layers[0])
    plan = small(all_dense + 3 * cost + cost - 1)
    assert hot(plan) == [[], [509, 510, 511], []]
    assert unspent(plan) == cost - 1
    assert "1 bytes short" in plan.layers[0].why
    assert unspent(small(all_dense + 3 * cost)) == 0
    assert hot(small(all_dense + 3 * cost - 1)) == [[], [510, 511], []]


def test_no_neuron_before_the_head_is_in() -> None:
    all_dense = needed(small(1 << 30))
    plan = small(all_dense - 1)
    entries = {entry.name: entry for entry in plan.weights}
    assert entries["output.weight"].side == "cpu"
    assert "no budget left: 1 bytes short" in entries["output.weight"].why
    assert plan.coverage == 0
    head = device_bytes(MODEL.output) + device_bytes(MODEL.output_norm)
    cache = layer_kv_bytes(MODEL, 64, "f16")
    caches = [c.side for c in small(all_dense - head - 1).caches]
    assert caches == ["gpu", "gpu", "cpu"]
    assert [c.side for c in small(all_dense - head - 3 * cache - 1).caches] == ["cpu"] * 3
    assert small(all_dense - head - 3 * cache - 1).n_dense_layers == 2


def test_the_first_misfit_ends_it_though_a_smaller_one_would_fit() -> None:
    """The third layer's dense part is short by a byte; the KV caches and the head would have had room."""
    plan = small(
        needed(small(1 << 30))
        - device_bytes(MODEL.output)
        - device_bytes(MODEL.output_norm)
        - 3 * layer_kv_bytes(MODEL, 64, "f16")
        - 1
    )
    assert plan.totals.left_over > layer_kv_bytes(MODEL, 64, "f16")
    assert plan.totals.kv_cache == 0
    assert "no budget left after dense part of layer 2 did not fit" in plan.caches[0].why


def test_n_batch_is_lowered_only_if_nothing_fits() -> None:
    with pytest.raises(DoesNotFitError) as error:
        small(1000, n_batch=64)
    least = re.search(r"needs (\d+) bytes", str(error.value))
    assert least
    plan = small(int(least[1]), n_batch=64)
    assert plan.n_batch == 1
    assert plan.notes[0] == "n_batch lowered from 64 to 1: not one layer fits otherwise"
    assert plan.n_dense_layers == 1
    assert small(1 << 24, n_batch=64).n_batch == 64
    with pytest.raises(DoesNotFitError):
        small(int(least[1]) - 1, n_batch=64)


def test_uniform_counts_are_said() -> None:
    spent = needed(small(1 << 30)) + 5 * neuron_bytes(MODEL.layers[0])
    plan = placement.plan(MODEL, Wanted("predictor", 64, 8), budget(spent), None)
    assert "uniform" in plan.notes[0]
    assert hot(plan) == [[0, 1], [0, 1], [0]]


def test_counts_of_another_model_are_refused() -> None:
    with pytest.raises(SettingError, match="3 layers of 512"):
        placement.plan(MODEL, Wanted("predictor", 64, 8), budget(0), COUNTS[:2])


def test_a_given_index_takes_the_place_of_the_ranking() -> None:
    ids = [np.array([1, 2], np.int32), np.array([], np.int32), np.array([7], np.int32)]
    plan = placement.plan(MODEL, Wanted("predictor", 64, 8), budget(1 << 30), COUNTS, hot=ids)
    assert hot(plan) == [[1, 2], [], [7]]
    check_sums(plan)
    room = needed(plan)
    with pytest.raises(DoesNotFitError, match="--reset-gpu-index"):
        placement.plan(MODEL, Wanted("predictor", 64, 8), budget(room), COUNTS, hot=ids)


def test_a_quantised_cache_is_counted_by_each_side() -> None:
    """34 bytes for 32 numbers; the host has whole blocks of 64 positions."""
    numbers = 2 * MODEL.n_head_kv * MODEL.head_dim // 32 * 34
    plan = placement.plan(MODEL, Wanted("predictor", 66, 8, "q8_0"), budget(1 << 30), COUNTS)
    assert [(cache.side, cache.n_bytes) for cache in plan.caches] == [("gpu", 66 * numbers)] * MODEL.n_layer
    assert plan.totals.kv_cache == MODEL.n_layer * 66 * numbers
    left = needed(plan) - MODEL.n_layer * 66 * numbers
    plan = placement.plan(MODEL, Wanted("predictor", 66, 8, "q8_0"), budget(left), COUNTS)
    assert ("cpu", 128 * numbers) in [(cache.side, cache.n_bytes) for cache in plan.caches]


def test_what_has_no_kernel_stays_and_does_not_stop_the_rest() -> None:
    model = build("small", Shape("llama", 2, 256, 512, 4, 2, 100, 64, "relu"), T.Q8_K, 32)
    model = replace(model, output=MODEL.output)
    plan = placement.plan(model, Wanted("predictor", 64, 8), budget(1 << 30), None)
    entries = {entry.name: entry for entry in plan.weights}
    assert entries["blk.0.attn_q.weight"].side == "cpu"
    assert "no kernel for Q8_K" in entries["blk.0.attn_q.weight"].why
    assert entries["output.weight"].side == "gpu"
    assert plan.totals.hot_rows == plan.totals.index == 0
    assert {cache.side for cache in plan.caches} == {"cpu"}  # of use beside its layer alone


@pytest.mark.parametrize("architecture", ["opt", "falcon"])
def test_neurons_stay_where_their_biases_are(architecture: str) -> None:
    """A dense part without a kernel stays, its biases with it, and an FFN that has biases follows."""
    n_positions = 66 if architecture == "opt" else 0
    shape = Shape(architecture, 2, 256, 512, 4, 4, 100, 64, "relu", n_positions=n_positions)
    model = build("small", shape, T.F16)
    biased = model.layers[0].ffn_up_bias is not None
    assert biased == (architecture == "opt")
    attn_q = replace(model.layers[0].attn_q, type=T.Q8_K)
    model = replace(model, layers=(replace(model.layers[0], attn_q=attn_q), model.layers[1]))
    plan = placement.plan(model, Wanted("exact", 64, 8), budget(1 << 30), None)
    entries = {entry.name: entry for entry in plan.weights}
    assert entries["blk.0.attn_output.weight"].side == "cpu"
    assert entries["blk.1.attn_output.weight"].side == "gpu"
    assert [layer.n_hot for layer in plan.layers] == [0 if biased else 512, 512]
    if biased:
        assert "biases stay on the CPU" in entries["blk.0.ffn_up.weight"].why
    check_sums(plan)


@pytest.mark.parametrize("sparsity", ["exact", "off"])
def test_an_ffn_may_be_of_any_types(sparsity: str) -> None:
    model = build("small", Shape("llama", 1, 256, 512, 4, 2, 100, 64, "relu"), T.Q4_K, 32)
    layer = model.layers[0]
    assert layer.ffn_gate is not None and layer.ffn_up is not None
    mixed = replace(
        layer, ffn_up=replace(layer.ffn_up, type=T.Q6_K), ffn_gate=replace(layer.ffn_gate, type=T.F16)
    )
    assert not ffn_part(mixed, sparsity).obstacle
    q4_k, q6_k = 256 // 256 * (16 + 16 + 16 + 128), 256 // 256 * (128 + 64 + 16 + 16)
    assert neuron_bytes(mixed) == 2 * 256 + q6_k + q4_k


def test_vectors_are_f32_on_the_device() -> None:
    layer = MODEL.layers[0]
    halved = replace(layer, attn_norm=replace(layer.attn_norm, type=T.F16))
    assert "no kernel for F16" in str(dense_part(halved, "exact").obstacle)
    assert not dense_part(layer, "exact").obstacle


@pytest.mark.parametrize("kind", list(WEIGHT_TYPES))
def test_no_type_stays_on_the_cpu_for_want_of_a_kernel(kind: T) -> None:
    model = build("small", Shape("llama", 2, 256, 512, 4, 2, 100, 64, "relu"), kind, 256)
    plan = placement.plan(model, Wanted("predictor", 64, 8), budget(1 << 30), None)
    assert {entry.side for entry in plan.weights if entry.role != "embedding"} == {"gpu"}
    assert {cache.side for cache in plan.caches} == {"gpu"}


def test_matrices_that_are_stacked_in_one_tensor_have_names_of_their_own() -> None:
    """Phi-3's q, k and v, and its gate and up."""
    model = like("phi-3-mini:q4_0")
    names = [entry.name for entry in placement.plan(model, Wanted("off", 64, 8), Budget("0", 0, "")).weights]
    assert len(names) == len(set(names)) and "blk.31.ffn_up.weight[8192:16384]" in names
