"""What plans send to a device for prompts: staging buffers within the budget, and every row once."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from any_model import by_neuron
from gguf import GGMLQuantizationType

from hotcold.engine.dump.report import as_json
from hotcold.engine.dump.text import prompt_lines
from hotcold.engine.graph.arena import aligned
from hotcold.engine.graph.placed import CPU, GPU
from hotcold.engine.model.model import Layer, Model, Weight
from hotcold.engine.model.shapes import like
from hotcold.engine.plan import placement
from hotcold.engine.plan.budget import Budget, of_cards
from hotcold.engine.plan.cards import CARDS
from hotcold.engine.plan.estimate import estimate
from hotcold.engine.plan.footprint import ffn_part
from hotcold.engine.plan.plan import Plan, Streaming
from hotcold.engine.plan.planning import checked_stream_batch
from hotcold.engine.plan.streaming import PART_BYTES, largest_piece
from hotcold.engine.plan.wanted import Wanted
from hotcold.errors import SettingError

MIB = 1 << 20


def eight_layers(model: Model) -> Model:
    return replace(model, layers=model.layers[:8], n_layer=8)


LLAMA, RELU = eight_layers(like("llama-2-7b:q4_0", None)), eight_layers(like("relullama-7b:q4_0", 128))


def plan_of(model: Model, n_mib: int, stream_batch: int | None, n_batch: int = 64) -> Plan:
    how = Wanted("predictor" if model is RELU else "off", 512, n_batch, stream_batch=stream_batch)
    return placement.plan(model, how, Budget(f"{n_mib}MiB", n_mib * MIB, "a test"))


@pytest.mark.parametrize(("model", "n_mib"), [(LLAMA, 450), (LLAMA, 800), (RELU, 520), (RELU, 900)])
def test_what_is_not_there_is_sent_once(model: Model, n_mib: int) -> None:
    plan = plan_of(model, n_mib, 32)
    streaming = plan.streaming
    assert streaming is not None and not plan.not_streamed
    assert plan.totals.staging >= 2 * streaming.buffer_bytes(range(plan.model.n_layer))
    assert plan.totals.used <= plan.totals.budget and plan.totals.left_over >= 0
    sent = {each.weight.name: each.n_rows for piece in streaming.pieces for each in piece.sent}
    assert len(sent) == sum(len(piece.sent) for piece in streaming.pieces)
    for entry in plan.weights:
        if entry.role in ("embedding", "rope", "head") or entry.layer is None:
            assert entry.tensor not in sent
        else:
            assert entry.device_rows + sent.get(entry.tensor, 0) == entry.n_rows, entry.name
    for piece in streaming.pieces:
        if piece.units is not None:
            both = np.concatenate([piece.units, plan.layers[piece.layer].hot])
            assert np.array_equal(np.sort(both), np.arange(plan.layers[piece.layer].n_ff))
    # only attention over a cache of the CPU, what comes from the map and the head are left to the CPU
    kinds = {p.node.op for p in streaming.graph.placed.nodes if p.side == CPU} - {"copy"}
    assert kinds <= {"embed", "rope", "kv_store", "attention", "rms_norm", "logits", "add"}
    cached = {
        p.node.layer for p in streaming.graph.placed.nodes if p.node.op == "attention" and p.side == GPU
    }
    assert cached == {cache.layer for cache in plan.caches if cache.side == GPU}


def test_buffers_are_as_large_as_the_largest_piece_and_the_rest_goes_to_neurons() -> None:
    plan = plan_of(RELU, 900, None)
    assert plan.streaming is not None
    largest = max(piece.n_bytes for piece in plan.streaming.pieces)
    assert 2 * largest <= plan.totals.staging < 2 * largest_piece(RELU, "predictor")
    without = plan_of(RELU, 900, 0)
    assert without.streaming is None and without.totals.staging == 0
    assert plan.hot_share < without.hot_share


@pytest.mark.parametrize("n_mib", [600, 800])
def test_a_larger_budget_holds_no_fewer_neurons_beside_the_buffers(n_mib: int) -> None:
    less, more = (plan_of(RELU, n, 32) for n in (n_mib, n_mib + 100))
    assert less.streaming is not None and more.streaming is not None
    for a, b in zip(less.layers, more.layers, strict=True):
        assert set(a.hot.tolist()) <= set(b.hot.tolist())
    assert more.streaming.sent_bytes < less.streaming.sent_bytes


def test_buffers_keep_no_head_off_the_device_unless_they_are_asked_for() -> None:
    """Behind a head that does not fit there are no neurons either."""
    whole, usual, asked = (plan_of(RELU, 600, stream_batch) for stream_batch in (0, None, 32))
    assert usual.head_side == whole.head_side == GPU and usual.streaming is None
    assert [s.n_hot for s in usual.layers] == [s.n_hot for s in whole.layers] and usual.hot_share > 0.1
    assert "no room for the head" in usual.not_streamed
    assert asked.head_side == CPU and not asked.hot_share and asked.streaming is not None
    later = plan_of(RELU, 660, None)
    assert later.head_side == GPU and later.streaming is not None


def test_why_one_card_has_no_buffers_is_told_beside_what_they_would_cost_another() -> None:
    """The first has no room for them; on the second they would leave none for the head."""
    whole = like("relullama-7b:q4_0", 128)
    model = replace(whole, layers=whole.layers[:10], n_layer=10)
    how = Wanted("predictor", 512, 64, stream_batch=None)
    budget = of_cards([Budget(f"{n}MiB", n * MIB, "a test") for n in (120, 600)])
    plan = placement.plan(model, how, budget)
    assert plan.streaming is None and plan.head_side == GPU
    of_the_first, of_the_second = plan.not_streamed.split("; on other cards ")
    assert of_the_first.startswith("layers 0 to 1: two staging buffers") and "do not fit" in of_the_first
    assert of_the_second == "staging buffers would leave no room for the head, nor for neurons"


def test_nothing_is_kept_for_what_cannot_be() -> None:
    everything = plan_of(LLAMA, 3000, 32)
    assert everything.streaming is None and everything.totals.staging == 0 and not everything.not_streamed
    small = plan_of(LLAMA, 190, 32)
    assert (
        small.streaming is None and "do not fit" in small.not_streamed and small.not_streamed in small.notes
    )
    by_itself = plan_of(LLAMA, 400, None)
    assert by_itself.streaming is None and "a quarter of the budget" in by_itself.not_streamed
    assert not by_itself.notes and plan_of(LLAMA, 400, 32).streaming is not None
    short = plan_of(LLAMA, 700, 128)
    assert "n_batch is 64" in short.not_streamed


def test_buffers_hold_a_part_of_a_mixtures_experts() -> None:
    """Of 0.8 GB a layer no more than PART_BYTES lies in a buffer, or an expert, but for one more of an uneven part."""
    model = eight_layers(like("mixtral-8x7b:q4_0", None))
    plan = plan_of(model, 4000, None)
    expert = ffn_part(model.layers[0], "off").n_bytes // 8
    assert plan.totals.staging <= 2 * (PART_BYTES + expert) < 2 * ffn_part(model.layers[0], "off").n_bytes / 2
    small = plan_of(model, 1000, 32)
    assert small.streaming is not None and small.totals.used <= small.totals.budget
    assert plan.streaming is not None and plan.streaming.least == plan.streaming.pays_from(25e9, 3e11)


def test_experts_are_sent_whole() -> None:
    plan = plan_of(eight_layers(like("mixtral-8x7b:q4_0", None)), 4000, 32)
    assert plan.streaming is not None and plan.totals.used <= plan.totals.budget
    for piece in plan.streaming.pieces:
        if piece.units is not None and piece.index is not None:
            assert [piece.index[e] for e in piece.units] == list(range(piece.units.size))
            assert (piece.index >= 0).sum() == piece.units.size
    cold = sum(each.n_rows * each.weight.ne[0] for piece in plan.streaming.pieces for each in piece.sent)
    assert plan.streaming.work < 0.3 * cold  # two of eight experts, and attention


@pytest.mark.sample(5)
@pytest.mark.parametrize(("n_mib", "sparsity"), [(830, "threshold"), (4000, "off"), (4000, "threshold")])
def test_neurons_of_experts_are_sent_by_where_each_expert_begins(n_mib: int, sparsity: str) -> None:
    model = with_thresholds_by_neuron(eight_layers(like("mixtral-8x7b:q4_0", None)))
    budget = Budget("", n_mib * MIB, "")
    counts = [np.random.default_rng(i).integers(1, 1000, model.n_units) for i in range(model.n_layer)]
    plan = placement.plan(model, Wanted(sparsity, 512, 64, stream_batch=32), budget, counts)
    assert plan.streaming is not None and plan.totals.used <= plan.totals.budget and model.experts is not None
    assert plan.totals.staging >= 2 * plan.streaming.buffer_bytes(range(model.n_layer))
    n_least = {"threshold": 1}.get(sparsity, 0)
    pieces = [piece for piece in plan.streaming.pieces if piece.units is not None]
    assert any(split.n_hot for split in plan.layers) == (n_mib == 4000)
    for split in plan.layers:
        here = [piece for piece in pieces if piece.layer == split.layer]
        assert [piece.rows for piece in here] == ["cold", "cold1", "cold2"]
        units = [piece.units for piece in here if piece.units is not None]
        assert np.array_equal(np.sort(np.r_[*units, split.hot]), np.arange(split.n_ff))
    for piece in pieces:
        assert piece.units is not None and piece.index is not None
        for e, (first, end) in enumerate(pairwise(piece.index)):
            assert np.all(piece.units[first:end] // model.experts.n_ff == e)
        assert piece.index[0] == 0 and piece.index[-1] == piece.units.size
        assert piece.n_thresholds == n_least * piece.units.size
        rows = sum(each.n_bytes for each in piece.sent)
        assert piece.n_bytes == rows + aligned(piece.index.nbytes) + aligned(4 * piece.n_thresholds)


def test_what_has_no_kernel_is_named() -> None:
    """In a part of the layers beside what is sent; in all of them in place of it, to who asked for it."""
    model = eight_layers(like("mixtral-8x7b:q4_0", None))
    stacked = replace(model, layers=tuple(map(with_experts_apart, model.layers)))
    some = replace(model, layers=(*stacked.layers[:3], *model.layers[3:]))
    (named,) = streaming_of_plan(plan_of(some, 4000, 32)).stays
    assert named == "FFN of 3 layers (its experts are tensors of their own: convert the file for a device)"
    assert streaming_of_plan(plan_of(model, 4000, 32)).stays == ()
    plan = plan_of(stacked, 4000, 32)
    assert plan.streaming is None and "FFN of 8 layers (its experts are" in plan.not_streamed
    assert plan.not_streamed in plan.notes and plan.not_streamed not in plan_of(stacked, 4000, None).notes
    several = Wanted("off", 512, 64, n_slots=40, stream_batch=32)
    slots = placement.plan(LLAMA, several, Budget("", 800 * MIB, ""))
    assert streaming_of_plan(slots).stays == ("attention of 8 layers (KV cache on the CPU)",)
    (line,) = [line for line in prompt_lines(as_json(slots)) if "attention" in line]
    assert line == "  but for attention of 8 layers (KV cache on the CPU)"


def streaming_of_plan(plan: Plan) -> Streaming:
    assert plan.streaming is not None, plan.not_streamed
    return plan.streaming


def with_experts_apart(layer: Layer) -> Layer:
    up = layer.ffn_up_exps
    assert up is not None
    return replace(layer, ffn_up_exps=replace(up, stacked=("a", "b")))


def with_thresholds_by_neuron(model: Model) -> Model:
    """The mixture with a row a neuron of the down projections, and a threshold each."""
    assert model.experts is not None
    ne = model.experts.n_ff, model.experts.n_expert
    least = Weight("ffn_threshold", GGMLQuantizationType.F32, ne, 4 * ne[0] * ne[1])
    return replace(
        model, layers=tuple(replace(by_neuron(layer), ffn_threshold=least) for layer in model.layers)
    )


def test_from_which_batch_on_it_pays() -> None:
    """Where sending takes as long as the CPU's part of so many tokens."""
    plan = plan_of(LLAMA, 700, None)
    streaming = plan.streaming
    assert streaming is not None
    numbers = sum(each.n_rows * each.weight.ne[0] for piece in streaming.pieces for each in piece.sent)
    assert streaming.work == numbers
    least = streaming.pays_from(20e9, 200e9)
    assert (least - 1) * numbers / 200e9 < streaming.sent_bytes / 20e9 <= least * numbers / 200e9
    assert streaming.pays_from(1e15, 1e9) == 2
    assert streaming.least == streaming.pays_from(25e9, 300e9)
    asked = plan_of(LLAMA, 700, 40).streaming
    assert asked is not None and asked.least == 40


def test_expected_work_follows_the_counts() -> None:
    """A neuron that fires in one token of four costs the CPU a quarter; without counts all fire."""
    counts = [np.r_[np.full(8, 400.0), np.full(RELU.n_ff - 8, 100.0)]] * RELU.n_layer
    how = Wanted("predictor", 512, 64, stream_batch=None)
    plan = placement.plan(RELU, how, Budget("", 700 * MIB, ""), counts)
    assert plan.streaming is not None
    numbers = sum(each.n_rows * each.weight.ne[0] for piece in plan.streaming.pieces for each in piece.sent)
    assert plan.streaming.work == pytest.approx(numbers / 4, rel=1e-3)


@pytest.mark.parametrize("value", [1, -1, True, 2.5, "8"])
def test_a_number_that_means_nothing(value: object) -> None:
    with pytest.raises(SettingError, match="stream_batch"):
        checked_stream_batch(value)  # type: ignore[arg-type]


def test_a_card_of_the_table_reckons_with_what_is_sent() -> None:
    """A prompt takes what the bus takes, or the card, and not the CPU's time; a faster bus makes it no longer."""
    without, plan = (plan_of(LLAMA, 700, n, n_batch=512) for n in (0, None))
    card = CARDS["rtx4090"]
    assert plan.streaming is not None
    slow, usual = (
        estimate(plan, replace(card, bus_gbps=gbps)).prompt.seconds for gbps in (1.0, card.bus_gbps)
    )
    assert slow >= plan.streaming.sent_bytes / 1e9
    assert usual < slow < estimate(without, card).prompt.seconds
