"""The order of a split layer: what is enqueued before the host waits, and that every wait is needed."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from split_runs import (
    IDS,
    Case,
    OpenEmulated,
    mixed_logits,
    model_of,
    on_device,
    plan_named,
    plan_with,
    some_neurons,
)

from hotcold.engine.device import norm_lowering, qkv_lowering
from hotcold.engine.device.records import DeviceLowering
from hotcold.engine.graph.placed import GPU
from hotcold.engine.plan.plan import Plan
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.device import Device

slow = pytest.mark.slow
SPARSITIES = ("predictor", "exact", "off")
ORDERS: list[dict[str, Any]] = [
    {"policy": "late"},
    {"policy": "late", "order": 1},
    {"policy": "ahead"},
    {"policy": "ahead", "order": 7},
    {"policy": "random", "seed": 1},
    {"policy": "random", "seed": 2, "order": 1234},
    {"policy": "random", "seed": 3},
    {"policy": "eager", "order": 1},
]


@pytest.fixture
def f16(data: Path) -> Iterator[GGUFFile]:
    with open_gguf(data / "powerinfer" / "llama-f16.powerinfer.gguf") as file:
        yield file


def split_in_half(file: GGUFFile, case: Case) -> Plan:
    model = model_of(file)
    return plan_with(model, case, some_neurons(model, model.n_ff // 2))


QUICK = [("f16", "predictor", "half")]


@pytest.mark.parametrize(
    ("kind", "sparsity", "budget"),
    [
        pytest.param(*which, marks=() if which in QUICK else slow)
        for which in product(("f16", "q4_0"), SPARSITIES, ("half", "dense + 50%"))
    ],
)
def test_bits_depend_on_no_order(
    kind: str, sparsity: str, budget: str, data: Path, open_emulated: OpenEmulated
) -> None:
    """Of streams, threads and blocks. `eager` hides every missing wait, `late` finds each."""
    seen = set()
    with open_gguf(data / "powerinfer" / f"llama-{kind}.powerinfer.gguf") as file:
        plan = plan_named(model_of(file), Case(sparsity), budget)
        for options in [{"policy": "eager"}, *ORDERS]:
            with on_device(plan, file, open_emulated(build_kind="fast", **options)) as executor:
                seen.add(mixed_logits(executor).tobytes())
    assert len(seen) == 1


@pytest.mark.sample(3)
@pytest.mark.parametrize("n_threads", [1, 5])
def test_bits_do_not_depend_on_threads(n_threads: int, f16: GGUFFile, open_emulated: OpenEmulated) -> None:
    plan = split_in_half(f16, Case("predictor"))
    logits = []
    for n in (2, n_threads):
        with on_device(plan, f16, open_emulated(build_kind="fast"), n) as executor:
            logits.append(mixed_logits(executor).tobytes())
            logits.append(mixed_logits(executor).tobytes())  # nor on what ran before
    assert len(set(logits)) == 1


def token_log(executor: Executor, device: Device) -> list[str]:
    """What a decoded token asks of the device, in order; what graphs hold stands in their place.

    What it asks of another stream than the kernels' begins with that one's name.
    """
    logits = np.empty((1, executor.model.n_vocab), np.float32)
    executor.run(IDS[:3], 0, None)
    device.log = []
    executor.run(IDS[3:4], 3, logits)
    names = {"compute": "", "crossing": "crossing "}
    entries = [names[entry.stream] + entry.what for entry in device.log if entry.what != "graph"]
    device.log = None
    return entries


LAYER = ["rms_norm", "matvec3_f16", "attention_f32", "matvec_f16"]
PREDICTOR = ["matvec_f16", "matvec_mask_f16"]
HEAD = ["rms_norm", "matvec_f16", "candidates", "d2h", "record", "host waits"]
UP = ["crossing h2d", "crossing record", "wait"]
DOWN = ["record", "crossing wait", "crossing d2h", "crossing record"]
JOIN = ["crossing record", "wait"]


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_both_sides_work_at_the_same_time(sparsity: str, f16: GGUFFile, split_device: Device) -> None:
    """The copy down, its event and the hot rows are enqueued before the host waits, for the event alone.

    The hot rows come after no copy, and the merge waits for none: it reads what the walk has written.
    """
    predictor = PREDICTOR if sparsity == "predictor" else []
    hot = ["sparse_gated_ffn_f16", *JOIN]
    layer = [*LAYER, *predictor, "rms_norm", *DOWN, *hot, "crossing host waits", "sum_groups"]
    with on_device(split_in_half(f16, Case(sparsity)), f16, split_device) as executor:
        assert token_log(executor, split_device) == ["h2d", *UP, *layer, *layer, *HEAD]


def test_what_is_stored_with_the_products_has_the_bits_of_two_launches(
    f16: GGUFFile, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rotated q may not lie where the products' input does, which they still read."""
    plan, logits, stores = split_in_half(f16, Case("predictor")), [], []
    arena = plan.decode.arenas[GPU]
    x, q = arena.slot("attn_norm-0"), arena.slot("Qrope-0")
    assert x.offset + x.n_bytes <= q.offset or q.offset + q.n_bytes <= x.offset
    for together in (True, False):
        if not together:
            monkeypatch.setattr(qkv_lowering, "_stored_with", lambda low, nodes: None)
        device = open_emulated(build_kind="fast", order=7)
        with on_device(plan, f16, device) as executor:
            logits.append(mixed_logits(executor).tobytes())
        stores.append(device.counters.launches["rope_kv_store_f32"])
    assert logits[0] == logits[1] and stores[0] < stores[1]  # batches store by a launch of its own


def test_groups_that_the_merge_adds_up_have_the_bits_of_two_launches(
    f16: GGUFFile, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, logits, merged = split_in_half(f16, Case("predictor")), [], []
    for merges in (True, False):
        if not merges:
            monkeypatch.setattr(DeviceLowering, "is_merged_next", lambda low, made: False)
        device = open_emulated(build_kind="fast")
        with on_device(plan, f16, device) as executor:
            logits.append(mixed_logits(executor).tobytes())
        merged.append(device.counters.launches["merge"])
    assert logits[0] == logits[1] and merged[0] < merged[1]  # batches merge by a launch of its own


@pytest.mark.sample(3)
@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_a_predictors_input_that_its_norm_rounds_has_the_bits_of_two_launches(
    architecture: str, data: Path, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Divided and whole, where the norm's output waits in the area that fc1's result is rounded to otherwise."""
    with open_gguf(data / "powerinfer" / f"{architecture}-q4_0.powerinfer.gguf") as file:
        plans = (
            split_in_half(file, Case("predictor")),
            plan_named(model_of(file), Case("predictor"), "everything"),
        )
        logits, rounded = [], []
        for together in (True, False):
            if not together:
                monkeypatch.setattr(
                    norm_lowering, "_is_for_a_predictor_and_its_norm", lambda low, nodes: False
                )
            for plan in plans:
                device = open_emulated(build_kind="fast", order=7)
                with on_device(plan, file, device) as executor:
                    logits.append(mixed_logits(executor).tobytes())
                rounded.append(device.counters.launches["quantise"])
    assert logits[:2] == logits[2:]
    assert rounded[0] < rounded[2] and rounded[1] < rounded[3]


def test_a_layer_on_the_device_waits_for_nothing(f16: GGUFFile, split_device: Device) -> None:
    layer = [*LAYER, *PREDICTOR, "rms_norm", "sparse_gated_ffn_f16", "sum_groups"]
    plan = plan_named(model_of(f16), Case("predictor"), "everything")
    with on_device(plan, f16, split_device) as executor:
        assert token_log(executor, split_device) == ["h2d", *UP, *layer, *layer, *HEAD]
