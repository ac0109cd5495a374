"""The dump at a glance: layers that are alike are told once, and what differs among them is said."""

import dataclasses
import io
from typing import Any

import pytest
from gguf import GGMLQuantizationType as T
from rich.console import Console

from hotcold.engine.dump.alike import Kind, bands, kinds, ranges
from hotcold.engine.dump.glance import show_glance
from hotcold.engine.dump.report import as_json
from hotcold.engine.model.model import Model
from hotcold.engine.model.shape import Shape
from hotcold.engine.model.shapes import build, like
from hotcold.engine.plan import placement
from hotcold.engine.plan.budget import Budget, parse_size
from hotcold.engine.plan.wanted import Wanted

SHAPE = Shape("llama", 6, 256, 512, 4, 2, 100, 64, "relu")
HOW = Wanted("predictor", 256, 8)


def report(model: Model, budget: str, how: Wanted = HOW) -> dict[str, Any]:
    return as_json(placement.plan(model, how, Budget(budget, parse_size(budget), "")), "model")


def small(kind: T = T.Q8_0) -> Model:
    return build("small", SHAPE, kind, 32)


def text(whole: dict[str, Any]) -> str:
    stream = io.StringIO()
    show_glance(whole, Console(file=stream, width=80, color_system=None, highlight=False))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([4], "4"),
        ([4, 5], "4 and 5"),
        ([0, 1, 2], "0 to 2"),
        ([0, 1, 2, 5, 7, 8], "0 to 2, 5, 7 and 8"),
        ([0, 2, 3, 4], "0 and 2 to 4"),
    ],
)
def test_ranges(numbers: list[int], words: str) -> None:
    assert ranges(numbers) == words


def test_layers_are_of_one_kind_where_all_are_on_the_cpu() -> None:
    assert kinds(report(small(), "0")) == [Kind((0, 1, 2, 3, 4, 5), 0, ())]


def test_a_budget_that_ends_between_layers_makes_two_kinds() -> None:
    """The last layer on the device hands its result over: that is said of it."""
    first, second = kinds(report(small(), "1200KiB"))
    n = len(first.layers)
    assert 1 < n < 6 and first.layers + second.layers == (0, 1, 2, 3, 4, 5)
    ((layers, difference),) = first.others
    assert layers == (n - 1,) and "@cpu (copy, cpu)" in difference
    shown = text(report(small(), "1200KiB"))
    assert f"Layer 0: {n} layers are alike, {ranges(first.layers)}\n" in shown
    assert f"layer {n - 1}: also " in shown and f"blk.{n}.attn_q.weight" in shown
    assert "blk.1." not in shown


def test_layers_of_other_types_are_of_another_kind() -> None:
    whole, other = small(), small(T.Q4_0)
    mixed = [other.layers[i] if i in (1, 4) else layer for i, layer in enumerate(whole.layers)]
    got = kinds(report(dataclasses.replace(whole, layers=tuple(mixed)), "0"))
    assert [kind.layers for kind in got] == [(0, 2, 3, 5), (1, 4)]


def test_the_split_has_a_row_for_neighbours_with_as_many_hot_neurons() -> None:
    whole = report(small(), "0")
    for row, n_hot in zip(whole["layers"], (7, 7, 5, 5, 5, 7), strict=True):
        row["gpu_bucket"], row["hot_share"] = [n_hot, 1, 1, 1], n_hot / 512
    assert [(band.layers, band.n_hot) for band in bands(whole)] == [
        ((0, 1), (7, 7)),
        ((2, 3, 4), (5, 5)),
        ((5,), (7, 7)),
    ]
    assert [(band.layers, band.n_hot) for band in bands(whole, 2)] == [
        ((0, 1, 2), (5, 7)),
        ((3, 4, 5), (5, 7)),
    ]
    assert sum(band.n_bytes for band in bands(whole, 2)) == sum(row["bytes"] for row in whole["layers"])


QUICK = {"falcon-40b:q4_0": "8GiB", "opt-6.7b": "0", "llama-2-70b:q6_k": "3GiB", "bamboo-7b": "3GiB"}


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("name", "budget"),
    [
        pytest.param(name, budget, marks=[] if QUICK.get(name) == budget else pytest.mark.slow)
        for name in (*QUICK, "qwen2-72b")
        for budget in ("0", "3GiB", "8GiB")
    ],
)
def test_it_fits_a_screen_and_tells_of_every_layer(name: str, budget: str) -> None:
    model = like(name)
    how = Wanted("predictor" if model.has_predictors else "off", 256, 32)
    whole = report(model, budget, how)
    lines = text(whole).splitlines()
    assert len(lines) < 190 and max(map(len, lines)) <= 80
    told = sorted(layer for kind in kinds(whole) for layer in kind.layers)
    assert told == list(range(model.n_layer))
    assert "Totals" in lines and "FFN split" in lines
