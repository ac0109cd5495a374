"""A prompt by the model of a card: numbers worked out by hand, for whatever a kernel multiplies with.

Matrices of llama-2-7b, 32 layers: four of 4096 x 4096 and three of 4096 x 11008. Of 512 tokens each sees
256.5 positions on average.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from any_model import by_neuron
from commands import run
from gguf import GGMLQuantizationType as T

from hotcold.engine.dump.inputs import open_source
from hotcold.engine.model.model import Layer
from hotcold.engine.plan.budget import DeviceFacts, parse_budget, resolve_budget
from hotcold.engine.plan.cards import CARDS
from hotcold.engine.plan.estimate import estimate
from hotcold.engine.plan.estimate_prompt import DP4A, FMA, MMA, ROWS, PromptEstimate, positions_seen, rate_of
from hotcold.engine.plan.planning import make_plan, wanted

SQUARE, WIDE = 4096 * 4096, 4096 * 11008
REACHED, OF_MEMORY = 0.4, 0.85
ATTENTION = 32 * 4 * 4096 * 512 * 256.5
"""Operations of llama-2-7b's attention: two products a number, two operations each."""


@cache
def prompt(
    like: str,
    card: str,
    kv_type: str = "f16",
    budget: str = "auto",
    n_batch: int = 512,
    change: Callable[[Layer], Layer] | None = None,
) -> PromptEstimate:
    source = open_source(None, like, None, None)
    if change is not None:
        source = replace(source, model=replace(source.model, layers=tuple(map(change, source.model.layers))))
    how = wanted(source, "auto", 1024, n_batch, kv_type, stream_batch=None)
    facts = DeviceFacts(card, CARDS[card].memory)
    return estimate(make_plan(source, how, resolve_budget(parse_budget(budget), facts)), CARDS[card]).prompt


def test_quantised_weights_meet_int8_tensor_cores() -> None:
    """4090: 660.6e12 of them, and 165.2e12 of halves, of which attention takes two terms."""
    found = prompt("llama-2-7b:q4_0", "rtx4090")
    products = 32 * (4 * SQUARE + 3 * WIDE) * 1024 / (REACHED * 660.6e12)
    assert products == pytest.approx(25.10e-3, rel=1e-3)
    assert found.seconds == found.units[MMA] == pytest.approx(products + ATTENTION / (REACHED * 82.6e12))
    assert found.seconds == pytest.approx(27.18e-3, rel=1e-3)
    assert found.units[DP4A] == found.units[FMA] == found.host == found.bus == 0


def test_an_input_of_halves_is_two_or_three_terms() -> None:
    """A100: 312e12. H200: 989.5e12, of which `mma.sync` reaches 0.63."""
    numbers = 32 * (4 * SQUARE + 3 * WIDE)
    of_f16, of_bf16 = prompt("llama-2-7b:f16", "a100"), prompt("llama-2-7b:bf16", "h200")
    assert of_f16.seconds == pytest.approx(2 * (1024 * numbers + ATTENTION) / (REACHED * 312e12))
    hopper = REACHED * 0.63 * 989.5e12
    assert of_bf16.seconds == pytest.approx((3 * 1024 * numbers + 2 * ATTENTION) / hopper)
    assert of_f16.units[FMA] == of_bf16.units[FMA] == 0


def test_floats_and_caches_of_other_types_are_multiplied_as_floats() -> None:
    of_f32, usual = prompt("llama-2-7b:f32", "h200"), prompt("llama-2-7b:q4_0", "a100")
    numbers = 32 * (4 * SQUARE + 3 * WIDE)
    assert of_f32.units[FMA] == pytest.approx(1024 * numbers / (REACHED * 66.9e12))
    for kv_type in ("f32", "q8_0"):
        found = prompt("llama-2-7b:q4_0", "a100", kv_type)
        assert found.units[FMA] == pytest.approx(ATTENTION / (REACHED * 19.5e12))
        assert usual.units[MMA] - found.units[MMA] == pytest.approx(2 * ATTENTION / (REACHED * 312e12))


def test_a_down_projection_with_a_row_a_neuron_is_multiplied_as_floats() -> None:
    """And its FFN 64 tokens at a time, of which a gate's bytes take longer than its products: 2304 bytes a row."""
    found = prompt("relullama-7b:q4_0", "rtx4090")
    assert found.units[FMA] == pytest.approx(32 * WIDE * 1024 / (REACHED * 82.6e12))
    assert found.units[FMA] == pytest.approx(44.72e-3, rel=1e-3)
    gate = 8 * 11008 * 2304 / (OF_MEMORY * 1008e9)
    assert gate > WIDE * 1024 / (REACHED * 660.6e12)
    rank = 4096 * 1024
    tensor = 32 * (4 * SQUARE + rank) * 1024 / (REACHED * 660.6e12) + ATTENTION / (REACHED * 82.6e12)
    assert found.units[MMA] == pytest.approx(tensor + 32 * 2 * gate)


def test_a_predictors_second_matrix_goes_row_by_row() -> None:
    """By 64 dot products of four a clock, on 128 multiprocessors of 2.52 GHz."""
    second, dots = 32 * 11008 * 1024 * 1024, 8 * 64 * 128 * 2.52e9
    assert prompt("relullama-7b:q4_0", "rtx4090").units[DP4A] == pytest.approx(second / (REACHED * dots))


def test_rows_alone_use_an_eighth_of_a_tensor_cores_products() -> None:
    """And of their terms two at a time, so of BF16's three as many as of four."""
    card = CARDS["a100"]
    units, rates = zip(*(rate_of(card, kind, ROWS) for kind in (T.F16, T.BF16, T.Q4_K, T.F32)), strict=True)
    assert units == (MMA, MMA, DP4A, FMA)
    assert rates == pytest.approx((312e12 / 8 / 2, 312e12 / 8 / 4, 8 * 64 * 108 * 1.41e9, 19.5e12))


def test_experts_are_read_as_often_as_tokens_come_in_pieces() -> None:
    """OLMoE: 16 layers of 64 experts of 1024 x 2048, 64 tokens at a time, which choose eight each and so read all."""
    found, reached = prompt("olmoe-7b:q4_0", "h200"), REACHED * 0.63 * 1979e12
    experts = 8 * 3 * 64 * 1024 * 2048 * 18 / 32 / (OF_MEMORY * 4800e9)
    assert experts > 8 * 3 * 1024 * 2048 * 1024 / reached
    attention = 4 * 2048 * 2048 * 1024 / reached
    attention += 2 * 4 * 2048 * 512 * 256.5 / (REACHED * 0.63 * 989.5e12)
    assert found.units[MMA] == pytest.approx(16 * (experts + attention))


def test_single_neurons_of_experts_go_row_by_row() -> None:
    """Four of 32 experts a token, eight tokens at a time: all of 768 rows of 1536 numbers each, 64 times."""
    found = prompt("smallthinker-4b-a0.6b:q4_0", "rtx5090", change=by_neuron)
    matrix = 64 * 32 * 768 * 864 / (OF_MEMORY * 1792e9)
    assert matrix > 4 * 768 * 1536 * 1024 / (REACHED * 8 * 64 * 170 * 2.41e9)
    assert found.units[DP4A] == pytest.approx(32 * 2 * matrix)
    routers = 32 * 32 * 1536 * 1024 / (REACHED * 104.8e12)
    assert found.units[FMA] == pytest.approx(32 * matrix + routers)


def test_what_is_sent_is_multiplied_by_the_card_beside_the_bus() -> None:
    whole, sent = prompt("llama-2-7b:q4_0", "rtx4090"), prompt("llama-2-7b:q4_0", "rtx4090", budget="3GiB")
    assert sent.bus > 0
    attention = 32 * 4 * 4096 * 512 * 256.5
    on_host = sent.host * 600e9 / attention  # share of attention whose caches are there
    assert 0 <= on_host <= 1
    missing = on_host * ATTENTION / (REACHED * 82.6e12)
    assert sent.units[MMA] + missing == pytest.approx(whole.units[MMA])
    assert sent.seconds == pytest.approx(max(sum(sent.units.values()), sent.bus) + sent.host)


def test_a_window_hides_what_is_far() -> None:
    assert positions_seen(512, 0) == positions_seen(512, 512) == positions_seen(512, 4096) == 131328
    assert positions_seen(512, 128) == 128 * 129 // 2 + 384 * 128
    assert [positions_seen(n, 2) for n in (1, 2, 3, 4)] == [1, 3, 5, 7]


@pytest.mark.parametrize(
    ("name", "int8", "halves", "floats", "ghz"),
    [(name, 2048, 512, 256, 0.0) for name in ("rtx3060", "rtx3090", "rtx4060ti", "rtx4090", "rtx5090")]
    + [("a100", 4096, 2048, 128, 0.0), ("h100", 8192, 4096, 256, 1.83), ("h200", 8192, 4096, 256, 1.83)],
)
def test_published_rates_are_multiprocessors_times_clock(
    name: str, int8: int, halves: int, floats: int, ghz: float
) -> None:
    """Of operations a clock and multiprocessor. Hopper's tensor cores have a clock of their own."""
    card = CARDS[name]
    of_tensor_cores, of_floats = (1e-3 * card.n_sm * each for each in (ghz or card.ghz, card.ghz))
    assert card.int8 == pytest.approx(int8 * of_tensor_cores, rel=0.01)
    assert card.halves == pytest.approx(halves * of_tensor_cores, rel=0.01)
    assert card.floats == pytest.approx(floats * of_floats, rel=0.01)


def test_the_dump_says_what_takes_how_long() -> None:
    shown = run("offload-dump", "--like", "relullama-7b:q4_0", "--card", "rtx4090", "-q").stdout
    assert "\nOn one GeForce RTX 4090: a model, nothing of it was measured\n" in shown
    assert "a prompt of 512 tokens: 76.4 ms" in " ".join(shown.split())
    assert "44.7 by float32" in " ".join(shown.split())
