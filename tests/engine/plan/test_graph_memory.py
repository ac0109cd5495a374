"""What plans leave to the driver for graphs: no fewer nodes than a run's graphs have, beside the budget."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from split_runs import IDS, Case, OpenEmulated, model_of, on_device, plan_named

from hotcold.engine.dump.inputs import budget_of, facts_for, open_source
from hotcold.engine.plan.budget import GIB, MIB, DeviceFacts, parse_budget, resolve_budget
from hotcold.engine.plan.graph_memory import NODE_BYTES, graph_bytes, graph_nodes
from hotcold.engine.plan.planning import wanted
from hotcold.engine.run import device_plan
from hotcold.engine.run.device_plan import open_wanted
from hotcold.engine.run.request import parse_request
from hotcold.errors import DoesNotFitError
from hotcold.gguf_io import open_gguf
from hotcold.kernels.cuda.device.device import CapturedGraph, Device
from hotcold.kernels.formats import CANDIDATE_WORDS

CARD = DeviceFacts("a card", 24 * GIB, 512 * MIB, graph_bytes=100 * MIB)


@pytest.mark.parametrize(
    "name, budget",
    [
        ("powerinfer/llama-q4_0.powerinfer", "everything"),
        ("powerinfer/llama-f16.powerinfer", "dense + 50%"),
        ("powerinfer/opt-f16.powerinfer", "dense"),
        ("llamacpp/qwen3moe.f16", "dense + 50%"),
        ("llamacpp/gptoss.mxfp4", "everything"),
    ],
)
def test_graphs_have_no_more_nodes(
    name: str, budget: str, data: Path, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a time, of all three kinds of tokens: logits wanted, candidates alone, neither."""
    at_a_time = nodes_at_a_time(monkeypatch)
    case = Case("predictor" if "powerinfer" in name else "off")
    with open_gguf(data / f"{name}.gguf") as file:
        model = model_of(file)
        with on_device(plan_named(model, case, budget), file, open_emulated(build_kind="fast")) as executor:
            logits = np.empty((1, model.n_vocab), np.float32)
            found = np.empty((1, CANDIDATE_WORDS), np.int32) if executor.gives_candidates else None
            for i, wanted in enumerate(((logits, None), (logits, found), (None, None))):
                executor.run(IDS[i : i + 1], i, wanted[0], candidates=wanted[1])
    nodes = max(at_a_time)
    most = graph_nodes(model, case.sparsity, case.kv_type)
    assert 0 < nodes <= most <= 2 * nodes


@pytest.mark.parametrize(
    "name, budget, kv_type",
    [
        ("powerinfer/llama-q4_0.powerinfer", "everything", "f16"),
        ("powerinfer/llama-q4_0.powerinfer", "dense + 50%", "q8_0"),
        ("powerinfer/opt-f16.powerinfer", "dense + 50%", "f16"),
        ("powerinfer/falcon-q4_0.powerinfer", "dense + 50%", "f16"),
        ("llamacpp/qwen3moe.f16", "dense + 50%", "f16"),
        ("llamacpp/gptoss.mxfp4", "everything", "f16"),
    ],
)
def test_nor_have_those_of_several_slots(
    name: str,
    budget: str,
    kv_type: str,
    data: Path,
    open_emulated: OpenEmulated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps of every number of tokens, also again: those that ran last are kept."""
    at_a_time = nodes_at_a_time(monkeypatch)
    case = Case("predictor" if "powerinfer" in name else "off", kv_type, n_batch=8, n_slots=5)
    with open_gguf(data / f"{name}.gguf") as file:
        model, counted, most_nodes = model_of(file), list[int](), list[int]()
        device = open_emulated(build_kind="fast")
        with on_device(plan_named(model, case, budget), file, device) as executor:
            for position, n in enumerate((1, 2, 3, 4, 5, 4, 5, 1, 2)):
                before = device.counters.graph_captures
                logits = np.empty((n, model.n_vocab), np.float32)
                if n == 1:
                    executor.run(IDS[:1], position, logits)
                else:
                    executor.run_apart(IDS[:n], [position] * n, range(n), logits)
                counted.append(device.counters.graph_captures - before)
                most_nodes.append(max(at_a_time))
    assert counted == [counted[0]] + 4 * [counted[1]] + 3 * [0] + [counted[1]] and counted[1] > 0
    for n_slots in (1, 2, 3, 5):
        nodes = most_nodes[-1] if n_slots == 5 else most_nodes[n_slots - 1]
        assert 0 < nodes <= graph_nodes(model, case.sparsity, kv_type, n_slots) <= 2 * nodes, n_slots


def nodes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of all graphs that are held, each time that one is captured."""
    captured, capture, counted = list[weakref.ref[CapturedGraph]](), Device.capture, list[int]()

    def kept(self: Device, *arguments: Any) -> CapturedGraph:
        graph = capture(self, *arguments)
        captured.append(weakref.ref(graph))
        there = [call for held in captured if (each := held()) for call in each.calls]
        counted.append(sum(call.what not in ("record", "wait") for call in there))
        return graph

    monkeypatch.setattr(Device, "capture", kept)
    return counted


def test_they_are_no_part_of_a_budget() -> None:
    assert resolve_budget(parse_budget("auto"), CARD).n_bytes == 24 * GIB - 612 * MIB
    asked = DeviceFacts("a card", 24 * GIB, 64 * MIB, free=10 * GIB, graph_bytes=100 * MIB)
    assert resolve_budget(parse_budget("auto"), asked).n_bytes == 10 * GIB - 100 * MIB
    assert resolve_budget(parse_budget("23GiB"), CARD).n_bytes == 23 * GIB
    with pytest.raises(DoesNotFitError, match=f"{612 * MIB} of them for CUDA and others"):
        resolve_budget(parse_budget(f"{24 * 1024 - 600}MiB"), CARD)


def test_who_wants_no_graphs_leaves_them_nothing(
    data: Path, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data / "powerinfer/llama-f16.powerinfer.gguf"
    monkeypatch.setattr(Device, "is_emulated", False)  # whose graphs take nothing
    monkeypatch.setattr(device_plan, "open_devices", lambda _: (open_emulated(build_kind="fast"),))
    left = []
    for graphs in (True, False):
        (device,) = open_wanted(parse_request("emulated", "1GiB", graphs=graphs))
        source = open_source(path, None, None, None)
        how = wanted(source, "auto", 64, 8, "f16")
        left.append(device_plan.facts_for(device, source, how, parse_budget("1GiB")).graph_bytes)
    assert left[0] > 0 == left[1]


def test_auto_leaves_a_byte_where_graphs_would_take_all() -> None:
    """0 would be the CPU's without a word; the plan says what it needs."""
    full = DeviceFacts("a card", GIB, 64 * MIB, free=MIB, graph_bytes=100 * MIB)
    assert resolve_budget(parse_budget("auto"), full).n_bytes == 1


def test_of_several_cards_each_has_its_own(data: Path) -> None:
    with open_gguf(data / "powerinfer/llama-f16.powerinfer.gguf") as file:
        model = model_of(file)
        n_bytes = graph_bytes(model, "predictor", "f16")
        assert n_bytes == NODE_BYTES * graph_nodes(model, "predictor", "f16")
    card = facts_for("4GiB", "auto,auto")
    assert card is not None
    budget = budget_of("auto,auto", replace(card, graph_bytes=n_bytes))
    assert [each.n_bytes for each in budget.each] == 2 * [4 * GIB - 512 * MIB - n_bytes]
