"""Counts are a NumPy pass's, to the integer; caches are what a plain simulation says."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import hf_forward
import hf_models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from split_runs import Case, OpenEmulated, budget_bytes

from hotcold import load
from hotcold.engine.generation.generation import Engine
from hotcold.engine.model.load import load_model
from hotcold.engine.plan import placement
from hotcold.engine.plan.budget import Budget, of_cards
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.profile import profile as profiles
from hotcold.engine.profile.counting import Chunk, Counter
from hotcold.engine.profile.profile import FIRINGS, WEIGHT, Profile, measure
from hotcold.engine.profile.recency import SHARES, Recency
from hotcold.errors import SettingError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert

IDS = np.array([1, 30, 4, 7, 39, 30, 2, 11, 0, 25, 3, 3, 17], np.int32)
CHUNKS = [IDS, IDS[::-1].copy(), IDS[3:5].copy()]
RELU: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"hidden_act": "relu"}),
    ("bamboo", {}),
    ("qwen2", {"hidden_act": "relu"}),
    ("falcon-7b", {"activation": "relu"}),
    ("falcon-40b", {"activation": "relu"}),
    ("opt", {}),
]


def hidden_values(
    model: hf_models.HFDirectory, monkeypatch: pytest.MonkeyPatch
) -> list[list[NDArray[np.float64]]]:
    """What each layer multiplies `down` with, of each chunk, by NumPy."""
    seen: list[list[NDArray[np.float64]]] = []

    def masked(self: Any, h: NDArray[np.float64], x: Any, i: int) -> NDArray[np.float64]:
        seen[-1].append(h)
        return h

    monkeypatch.setattr(hf_forward._Model, "masked", masked)
    for chunk in CHUNKS:
        seen.append([])
        hf_forward.forward(model, chunk)
    return seen


@pytest.mark.parametrize(("kind", "changes"), RELU)
@pytest.mark.parametrize("sparsity", ["off", "exact"])
@pytest.mark.parametrize("n_batch", [4, 32])
def test_firings_are_those_of_a_numpy_pass(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    changes: dict[str, Any],
    sparsity: str,
    n_batch: int,
) -> None:
    """Batches of 4 cut 13 ids into 4, 4, 3 and 2: none of one alone."""
    model = hf_models.make(tmp_path / "model", kind, dtype="float32", **changes)
    convert(model.folder, None, tmp_path / "out.gguf", "f32")
    wanted = np.sum([[(h != 0).sum(0) for h in chunk] for chunk in hidden_values(model, monkeypatch)], axis=0)
    with load(tmp_path / "out.gguf", n_ctx=32, n_batch=n_batch, sparsity=sparsity, kv_type="f32") as engine:
        taking = engine.executor.taking
        counted = measure(engine, CHUNKS, profiles.empty(engine, len(CHUNKS)))
        assert engine.executor.taking is taking
    assert counted.of == FIRINGS and counted.n_tokens == 28 and counted.n_chunks == 3
    assert (counted.counts == wanted).all()
    assert counted.firing == pytest.approx(wanted.mean(1) / 28)


def on_both_sides(path: Path, sparsity: str, share: int, n_batch: int = 13) -> Engine:
    """On the emulated device: all dense parts there, and this share of the neurons in percent, or layer 0 alone."""
    case = Case(sparsity, n_batch=n_batch)
    with open_gguf(path) as file:
        n_bytes = budget_bytes(load_model(file), case, f"dense + {share}%" if share else "one layer")
    budget = f"{-(-n_bytes // 1024)}KiB"
    how: dict[str, Any] = {"n_ctx": 32, "n_batch": n_batch, "kv_type": "f32", "sparsity": sparsity}
    return load(path, device="emulated", vram_budget=budget, **how)


@pytest.mark.parametrize(("kind", "changes"), RELU)
@pytest.mark.parametrize("share", [50, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 17, 100))])
@pytest.mark.parametrize("sparsity", ["off", "exact"])
def test_both_sides_of_a_split_count_what_numpy_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_emulated: OpenEmulated,
    kind: str,
    changes: dict[str, Any],
    sparsity: str,
    share: int,
) -> None:
    hidden = hidden_of(tmp_path, monkeypatch, kind, changes)
    with on_both_sides(tmp_path / "out.gguf", sparsity, share) as engine:
        assert sum(split.n_hot for split in engine.executor.plan.layers) > 0 or not share
        check_counts(engine, hidden)


@pytest.mark.sample(7)
@pytest.mark.parametrize(("kind", "changes"), RELU)
@pytest.mark.parametrize("sparsity", ["off", "exact"])
def test_two_cards_count_what_numpy_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_emulated: OpenEmulated,
    kind: str,
    changes: dict[str, Any],
    sparsity: str,
) -> None:
    """Each with half of its layer's neurons."""
    hidden = hidden_of(tmp_path, monkeypatch, kind, changes)
    plenty = of_cards([Budget("1GiB", 1 << 30, "a test")] * 2)
    with open_gguf(tmp_path / "out.gguf") as file:
        whole = placement.plan(load_model(file), Wanted(sparsity, 32, 13, "f32"), plenty)
    sizes = [card.totals.used - card.totals.hot_rows // 2 for card in whole.cards]
    budgets = ",".join(f"{size // 1024}KiB" for size in sizes)
    how: dict[str, Any] = {"n_ctx": 32, "n_batch": 13, "kv_type": "f32", "sparsity": sparsity}
    path, names = tmp_path / "out.gguf", "emulated:0,emulated:1"
    with load(path, device=names, vram_budget=budgets, **how) as engine:
        assert len(engine.executor.devices) == 2
        assert all(0 < split.n_hot < engine.model.n_ff for split in engine.executor.plan.layers)
        check_counts(engine, hidden)


def hidden_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, changes: dict[str, Any]
) -> list[list[NDArray[np.float64]]]:
    """`hidden_values` of a new model, which becomes out.gguf."""
    model = hf_models.make(folder / "model", kind, dtype="float32", **changes)
    convert(model.folder, None, folder / "out.gguf", "f32")
    return hidden_values(model, monkeypatch)


def check_counts(engine: Engine, hidden: list[list[NDArray[np.float64]]]) -> None:
    """What the engine counts is what NumPy counts, also token by token."""
    wanted = np.sum([[(h != 0).sum(0) for h in chunk] for chunk in hidden], axis=0)
    counted = measure(engine, CHUNKS, profiles.empty(engine, len(CHUNKS)))
    alone = Counter(engine).count(Chunk(CHUNKS[0], 13))
    assert (counted.counts == wanted).all() and counted.n_tokens == 28
    for layer, bits in enumerate(alone.fired):  # token by token, of both sides
        assert (np.unpackbits(bits, axis=1, count=wanted.shape[1]) == (hidden[0][layer] != 0)).all()


def test_the_weight_of_neurons_that_are_never_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf_models.make(tmp_path / "model", "llama", dtype="float32")
    convert(model.folder, None, tmp_path / "out.gguf", "f32")
    hidden = hidden_values(model, monkeypatch)
    wanted = [
        np.sum([np.abs(chunk[i]).sum(0) for chunk in hidden], axis=0)
        * np.sqrt((model.value(f"model.layers.{i}.mlp.down_proj.weight").astype("f8") ** 2).sum(0))
        for i in range(2)
    ]
    with load(tmp_path / "out.gguf", n_ctx=32, kv_type="f32") as engine:
        counted = measure(engine, CHUNKS, profiles.empty(engine, len(CHUNKS)))
    assert counted.of == WEIGHT and counted.firing is None and not counted.hit_rates
    assert counted.counts == pytest.approx(np.array(wanted), rel=1e-5)


def test_batches_that_are_too_small_are_refused(tiny: Path) -> None:
    with load(n_ctx=32, n_batch=3) as engine, pytest.raises(SettingError, match="n_batch: 3 .at least 4"):
        measure(engine, CHUNKS, profiles.empty(engine, 3))


def cache_hits(fired: NDArray[np.bool_], size: int) -> int:
    """Of a cache of the last used, neurons of a token in any order: those of one token count as one moment."""
    used: OrderedDict[int, int] = OrderedDict()
    hits = 0
    for moment, row in enumerate(fired):
        now = np.flatnonzero(row).tolist()
        for i in now:
            hits += i in used and sum(last > used[i] for last in used.values()) < size
        for i in now:
            used[i] = moment
    return hits


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_a_cache_hits_what_a_plain_one_hits(seed: int, n_ff: int, n_tokens: int) -> None:
    random = np.random.default_rng(seed)
    fired = random.random((2, n_tokens, n_ff)) < random.random((2, 1, n_ff))
    recency = Recency(2, n_ff)
    for layer in range(2):
        for some in np.array_split(fired[layer], 3):
            recency.add(layer, some)
    counts = fired.sum(1).astype(np.float64)
    held, total = recency.hit_rates(counts), fired.sum()
    assert bool(held) == bool(total)
    for share, each in zip(SHARES, held, strict=False):
        size = max(1, round(share * n_ff))
        assert each.recent == pytest.approx(sum(cache_hits(layer, size) for layer in fired) / total)
        assert each.fixed == pytest.approx(sum(np.sort(row)[::-1][:size].sum() for row in counts) / total)


def test_what_is_covered_and_how_stable_it_is() -> None:
    first = np.array([[4.0, 0, 0, 0, 0], [0, 0, 0, 0, 4]])
    second = np.array([[1.0, 3, 0, 0, 0], [0, 0, 0, 0, 2]])
    profile = Profile(FIRINGS, 10, 4, 4, first + second, first)
    assert profile.covered()[2] == pytest.approx((0.2, 11 / 14))
    assert profile.stability() == pytest.approx((3 / 6, 5 / 6))


def on_some_sides(path: Path, share: int | None, request: pytest.FixtureRequest) -> Engine:
    if share is None:
        return load(path, n_ctx=32, n_batch=4, kv_type="f32")
    request.getfixturevalue("open_emulated")
    with load(path, n_ctx=32) as engine:
        sparsity = engine.sparsity
    return on_both_sides(path, sparsity, share)


SIDES = [None, 30, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 100))]
"""The CPU alone, one layer's dense part on a device, and shares of the experts' rows in percent."""


@pytest.mark.parametrize("kind", ["mixtral", "smallthinker"])
@pytest.mark.parametrize("share", SIDES)
def test_experts_are_counted_by_their_tokens(
    kind: str,
    share: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    model = hf_models.make(tmp_path / "model", kind, dtype="float32")
    convert(model.folder, None, tmp_path / "out.gguf", "f32")
    wanted = np.zeros((2, 4))
    gated = hf_forward._Experts.gated

    def counting(self: Any, n: Any, where: str, names: Any) -> Any:
        parts = where.split(".")
        wanted[int(parts[2]), int(parts[-2])] += 1
        return gated(self, n, where, names)

    monkeypatch.setattr(hf_forward._Experts, "gated", counting)
    for chunk in CHUNKS:
        hf_forward.forward(model, chunk)
    with on_some_sides(tmp_path / "out.gguf", share, request) as engine:
        counted = measure(engine, CHUNKS, profiles.empty(engine, len(CHUNKS)))
    assert counted.of == FIRINGS
    assert counted.counts.sum(1).tolist() == [2 * 28, 2 * 28]
    assert (counted.counts == wanted).all()


@pytest.mark.parametrize("kind", ["mixtral", "smallthinker"])
@pytest.mark.parametrize("share", SIDES)
def test_neurons_of_experts_are_counted_where_each_has_a_row(
    kind: str,
    share: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Those of a ReLU by the tokens on which they fire, of a SiLU by their weight."""
    model = hf_models.make(tmp_path / "model", kind, dtype="float32")
    convert(model.folder, None, tmp_path / "out.gguf", "f32", sparse_layout=True)
    of_layers: list[dict[int, Any]] = [{}, {}]

    def counting(self: Any, n: Any, where: str, names: Any) -> Any:
        gate, up = (self.linear(n, where + name) for name in names[:2])
        h, down = (
            self.activation(gate, self.c.get("hidden_act", "relu")) * up,
            model.value(f"{where}{names[2]}.weight"),
        )
        counted = h[0] != 0 if kind == "smallthinker" else np.abs(h[0]) * np.sqrt((down**2).sum(0))
        own, e = of_layers[int(where.split(".")[2])], int(where.split(".")[-2])
        own[e] = own.get(e, 0) + counted.astype(np.float64)
        return self.linear(h, where + names[2])

    monkeypatch.setattr(hf_forward._Experts, "gated", counting)
    for chunk in CHUNKS:
        hf_forward.forward(model, chunk)
    with on_some_sides(tmp_path / "out.gguf", share, request) as engine:
        counted = measure(engine, CHUNKS, profiles.empty(engine, len(CHUNKS)))
        assert engine.model.experts is not None
        n_expert, n_ff = engine.model.experts.n_expert, engine.model.experts.n_ff
    none = np.zeros(n_ff)
    wanted = np.array([np.concatenate([own.get(e, none) for e in range(n_expert)]) for own in of_layers])
    assert counted.of == (FIRINGS if kind == "smallthinker" else WEIGHT)
    if kind == "smallthinker":
        assert (counted.counts == wanted).all() and 0 < wanted.sum()
    else:
        assert counted.counts == pytest.approx(wanted, rel=1e-4, abs=1e-6)
