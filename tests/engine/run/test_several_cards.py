"""Runs over several devices: the bits of one device with the same rows, each with its own budget, nothing left."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plan_checks import check_sums
from split_runs import IDS, Logits, OpenEmulated, mixed_logits, model_of

from hotcold.engine.device.cards import Cards
from hotcold.engine.device.choice import DeviceChoice
from hotcold.engine.device.store import loaded_stores
from hotcold.engine.generation.loading import load
from hotcold.engine.model.model import Model
from hotcold.engine.model.model_path import model_path
from hotcold.engine.plan import placement
from hotcold.engine.plan.budget import Budget, of_cards
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.streaming import streaming_of
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.errors import DeviceError, DoesNotFitError, SettingError
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

N_CTX, N_BATCH, LEAST = 64, 8, 3
FILES = {
    "powerinfer/llama-f16.powerinfer": "predictor",
    "powerinfer/llama-q4_0.powerinfer": "predictor",
    "powerinfer/falcon-q4_0.powerinfer": "predictor",
    "llamacpp/qwen3moe.f16": "off",
}
PLENTY = 1 << 30


def placed(model: Model, sparsity: str, sizes: list[int], hot: object = None) -> Plan:
    how = Wanted(sparsity, N_CTX, N_BATCH, "f32")
    budget = of_cards([Budget(str(n), n, "a test") for n in sizes])
    return placement.plan(model, how, budget, hot=hot)  # type: ignore[arg-type]


def tight(model: Model, sparsity: str, n_cards: int, share: float) -> Plan:
    """A plan whose cards hold all dense parts, and a share of their neurons."""
    whole = placed(model, sparsity, [PLENTY] * n_cards)
    if share == 1:
        return whole
    sizes = [card.totals.used - int((1 - share) * card.totals.hot_rows) for card in whole.cards]
    return placed(model, sparsity, sizes)


def with_streaming(plan: Plan, layers: range | None = None) -> Plan:
    """The plan with staging buffers beside what each card takes: a model of two layers is too small to choose them.

    Args:
        layers: what is sent is of these; None: of all.
    """
    streaming = streaming_of(plan, plan.batch.graph, LEAST, layers)
    assert streaming is not None
    cards = []
    for card in plan.cards:
        staging = 2 * streaming.buffer_bytes(card.layers)
        arena = max(card.totals.arena, streaming.graph.arenas[card.side].n_bytes)
        totals = replace(card.totals, arena=arena, staging=staging).padded()
        budget = replace(card.budget, n_bytes=totals.used)
        cards.append(replace(card, budget=budget, totals=replace(totals, budget=totals.used)))
    return replace(plan, streaming=streaming, cards=tuple(cards))


def run_on(
    plan: Plan, file: GGUFFile, devices: list[Device], sizes: tuple[int, ...] = (4, 3, 1, 1)
) -> Logits:
    with Executor(plan, file, 2, loaded_stores(devices, plan, file)) as executor:
        for device, card in zip(devices, plan.cards, strict=True):
            assert device.counters.live_bytes == card.totals.used <= card.budget.n_bytes
        found = mixed_logits(executor, sizes)
    for device in devices:
        assert device.counters.live_bytes == device.counters.pinned_bytes == 0
    return found


@pytest.fixture
def file(data: Path) -> Iterator[GGUFFile]:
    with open_gguf(data / "powerinfer" / "llama-q4_0.powerinfer.gguf") as opened:
        yield opened


@pytest.mark.sample(4)
@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("name", FILES)
def test_the_bits_of_one_device_with_the_same_rows(
    name: str, share: float, graphs: bool, data: Path, open_emulated: OpenEmulated
) -> None:
    with open_gguf(data / f"{name}.gguf") as file:
        model, sparsity = model_of(file), FILES[name]
        two = tight(model, sparsity, 2, share)
        one = placed(model, sparsity, [PLENTY], [layer.hot for layer in two.layers])
        check_sums(two)
        assert (two.hot_share < 1) == (share < 1) and two.hot_share == one.hot_share
        alone = run_on(one, file, [open_emulated(build_kind="fast")])
        devices = [open_emulated(build_kind="fast", index=i) for i in range(2)]
        for device in devices:
            device.has_graphs = graphs
        assert run_on(two, file, devices).tobytes() == alone.tobytes()
        assert all(bool(device.counters.graph_launches) == graphs for device in devices)
        assert [device.name for device in devices] == ["emulated:0", "emulated:1"]


ORDERS: list[dict[str, Any]] = [
    {"policy": "eager"},
    {"policy": "late", "order": 7},
    {"policy": "ahead"},
    {"policy": "random", "seed": 1},
    {"policy": "random", "seed": 2, "order": 1},
    {"policy": "random", "seed": 3},
]


@pytest.mark.slow
def test_bits_depend_on_no_order_and_the_crossing_is_waited_for(
    file: GGUFFile, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of either device's streams. A card that does not wait for the one before it is seen."""
    plan = tight(model_of(file), "predictor", 2, 0.5)

    def bits(**options: Any) -> bytes:
        return run_on(
            plan, file, [open_emulated(build_kind="fast", index=i, **options) for i in range(2)]
        ).tobytes()

    wanted = bits(policy="late")
    assert {bits(**options) for options in ORDERS} == {wanted}
    waits = Cards._waits
    monkeypatch.setattr(
        Cards, "_waits", lambda self, before, but=None: iter(()) if but else waits(self, before, but)
    )
    assert bits(policy="late") != wanted


@pytest.mark.parametrize("layers", [None, pytest.param(range(1), marks=pytest.mark.slow)])
def test_rows_that_are_sent_to_each_card(
    layers: range | None, file: GGUFFile, open_emulated: OpenEmulated
) -> None:
    """A prompt's bits are those of one device that is sent the same rows, or of all layers but those of one card."""
    model = model_of(file)
    two = tight(model, "predictor", 2, 0.5)
    one = with_streaming(placed(model, "predictor", [PLENTY], [layer.hot for layer in two.layers]), layers)
    two = with_streaming(two, layers)
    assert two.hot_share < 1 and two.streaming is not None
    assert [bool(two.streaming.pieces_of(card.layers)) for card in two.cards] == [True, layers is None]
    alone = run_on(one, file, [open_emulated(build_kind="fast")], (8, 3)).tobytes()
    for policy in ("late", "ahead", "random", "eager"):
        devices = [open_emulated(build_kind="fast", index=i, policy=policy) for i in range(2)]
        assert run_on(two, file, devices, (8, 3)).tobytes() == alone


@pytest.mark.sample(3)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("kind", ["alloc", "launch", "h2d", "d2h"])
def test_a_call_fails_on_one_of_them(
    kind: str, which: int, every: bool, file: GGUFFile, open_emulated: OpenEmulated
) -> None:
    plan = tight(model_of(file), "predictor", 2, 0.5)
    devices = [open_emulated(build_kind="fast", index=i) for i in range(2)]
    right, failed = run_on(plan, file, devices).tobytes(), 0
    for n in count(1) if every else (1, 2, 5):
        devices[which].fail_at(kind, n)
        try:
            assert run_on(plan, file, devices).tobytes() == right
            break
        except (DoesNotFitError, DeviceError) as error:
            assert "as fail_at asked" in str(error)
            failed = n
        for device in devices:
            assert device.counters.live_bytes == device.counters.pinned_bytes == 0, (kind, n)
    devices[which].fail_at(kind, 1 << 30)
    assert failed >= 5
    assert run_on(plan, file, devices).tobytes() == right


def test_all_are_waited_for_though_one_is_lost(
    file: GGUFFile, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is under way on the others still reads and writes the host's memory."""

    def lost(stream: object) -> None:
        raise DeviceError("emulated:0", "lost", "as this test asks", "open it again")

    plan = tight(model_of(file), "predictor", 2, 0.5)
    devices = [open_emulated(build_kind="fast", policy="late", index=i) for i in range(2)]
    with Executor(plan, file, 2, loaded_stores(devices, plan, file)) as executor:
        cards, second = executor._cards, devices[1]
        assert cards is not None
        host, found, buffer = second.pinned(4, "f4"), second.pinned(4, "f4"), second.empty(4, "f4")
        host.array[:] = 5
        second.upload(buffer, host, second.crossing)
        second.download(found, buffer, second.crossing)
        assert np.isnan(found.array).all()  # it is late
        with monkeypatch.context() as patch, pytest.raises(DeviceError, match="as this test asks"):
            patch.setattr(devices[0].driver, "wait_stream", lost)
            cards.settle()
        assert (found.array == 5).all()
        for each in (host, found, buffer):
            each.free()


def test_a_model_is_loaded_on_two(data: Path, compiler: str) -> None:
    path = data / "powerinfer" / "llama-q4_0.powerinfer.gguf"
    options = {"n_ctx": 64, "n_batch": 8, "threads": 2}
    with load(path, device="emulated:0,emulated:1", vram_budget="2MiB,1MiB", **options) as engine:  # type: ignore[arg-type]
        devices, plan = engine.executor.devices, engine.executor.plan
        assert [device.name for device in devices] == ["emulated:0", "emulated:1"]
        assert [card.budget.n_bytes for card in plan.cards] == [2 << 20, 1 << 20]
        logits = np.empty((1, engine.model.n_vocab), np.float32)
        engine.executor.run(IDS[:1], 0, logits)
        use = engine.device_meter.read()
        assert use.line().startswith("emulated:0: VRAM ") and ", emulated:1: VRAM " in use.line()
        assert [card["device"] for card in use.numbers()["cards"]] == ["emulated:0", "emulated:1"]
    with load(path, device="emulated", vram_budget="3MiB", **options) as engine:  # type: ignore[arg-type]
        alone = np.empty((1, engine.model.n_vocab), np.float32)
        engine.executor.run(IDS[:1], 0, alone)
        assert np.abs(alone - logits).max() < 1e-3


@pytest.mark.slow
def test_three_cards_from_end_to_end(open_emulated: OpenEmulated, compiler: str) -> None:
    """The bundled model: the bits of one device with the same rows."""
    names = ["emulated:0", "emulated:1", "emulated:2"]
    with load(
        device=",".join(names),
        vram_budget="2MiB,1800KiB,2MiB",
        n_ctx=N_CTX,
        n_batch=N_BATCH,
        kv_type="f32",
        sparsity="predictor",
    ) as engine:
        plan, devices = engine.executor.plan, engine.executor.devices
        assert [device.name for device in devices] == names
        assert 0 < plan.hot_share < 1 and sum(len(card.layers) for card in plan.cards) == plan.model.n_layer
        found = mixed_logits(engine.executor, (4, 3, 1, 1))
        assert all(device.counters.graph_launches for device in devices)
        with open_gguf(model_path(None)) as file:
            one = placed(plan.model, "predictor", [PLENTY], [layer.hot for layer in plan.layers])
            alone = run_on(one, file, [open_emulated(build_kind="fast")])
        text = "".join(engine.generate("Mr. Darcy looked", 8, temp=0.0))
        assert len(text) > 8
    assert found.tobytes() == alone.tobytes()


def test_cards_that_differ_are_used_and_a_line_says_so(
    file: GGUFFile, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(choice: DeviceChoice) -> Device:
        is_second = choice.index == 1
        driver = EmulatedDriver(build_kind="fast", index=int(is_second), memory=(4 - 2 * is_second) << 20)
        driver.facts = replace(driver.facts, description="small card" if is_second else "large card")
        return Device(driver)

    said = "emulated:0 is a large card, emulated:1 is a small card: a token takes as long as its layers take on each"
    budgets = {}
    for are_unlike in (False, True):
        if are_unlike:
            monkeypatch.setattr("hotcold.engine.device.devices.open_device", opened)
        with load(
            file.path, device="emulated:0,emulated:1", vram_budget="40%", n_ctx=64, n_batch=8, threads=2
        ) as engine:
            assert engine.warnings.count(said) == are_unlike
            assert all(card.totals.used for card in engine.executor.plan.cards)
            budgets[are_unlike] = [card.budget.n_bytes for card in engine.executor.plan.cards]
            engine.executor.run(IDS[:1], 0, np.empty((1, engine.model.n_vocab), np.float32))
            assert all(device.counters.launches for device in engine.executor.devices)
    assert budgets[False][0] == budgets[False][1] and budgets[True][0] // budgets[True][1] == 2


def test_what_cannot_be(data: Path, compiler: str) -> None:
    path = data / "powerinfer" / "llama-q4_0.powerinfer.gguf"
    with pytest.raises(DeviceError, match="emulated:9") as missing:
        load(path, device="emulated:0,emulated:9", vram_budget="1MiB")
    assert missing.value.exit_code == 5
    with pytest.raises(SettingError, match="3 cards") as many:
        load(path, device="emulated:0,emulated:1,emulated:2", vram_budget="1MiB")
    assert many.value.exit_code == 2
