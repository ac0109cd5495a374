"""Experts divided between a device and the CPU: the CPU's logits at any budget, and rows that neither side reads."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from expert_files import numbers_of, write_mixture
from numpy.typing import NDArray
from split_runs import (
    IDS,
    Case,
    Logits,
    budget_bytes,
    cpu_executor,
    cpu_logits,
    mixed_logits,
    model_of,
    on_device,
    plan_with,
    some_neurons,
    split_plan,
)

from hotcold.engine.device.store import loaded_stores
from hotcold.engine.graph.copies import read_in_place
from hotcold.engine.graph.graph import layer_of
from hotcold.engine.graph.placed import CPU
from hotcold.engine.model.model import Model
from hotcold.engine.plan.footprint import neuron_bytes
from hotcold.engine.plan.plan import Plan
from hotcold.engine.profile.passing import chosen_experts, heard
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.trace import Taken
from hotcold.engine.run.use import DeviceMeter
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.device import Device

Distance = Callable[[Logits, Logits], float]
Open = Callable[[str], tuple[GGUFFile, Model]]
CASE = Case("off")
BUDGETS = ("nothing", "one layer", "dense", "one expert", "a third", "all but one", "everything")
FILES = {
    "mixtral.f16": 1e-5,
    "qwen3moe.f16": 1e-5,
    "olmoe.f16": 1e-5,
    "smallthinker.f16": 1e-5,
    # a number that falls on the other side of a tie is 1/127 off: sums have another order on a device
    "mixtral.q4_0": 5e-3,
    "qwen2moe.q4_0": 5e-3,
    "smallthinker.softmax.q8_0": 5e-3,
    "granitemoe.q8_0": 5e-3,
    "gptoss.mxfp4": 5e-3,
}


@pytest.fixture(scope="module")
def opened(data: Path) -> Iterator[Open]:
    """Files, each opened once."""
    files: list[GGUFFile] = []

    @cache
    def open_named(name: str) -> tuple[GGUFFile, Model]:
        files.append(open_gguf(data / "llamacpp" / f"{name}.gguf"))
        return files[-1], model_of(files[-1])

    yield open_named
    for file in files:
        file.close()


def plan_of(model: Model, budget: str) -> Plan:
    """The plan of a budget that has room for so many experts."""
    n_experts = model.n_layer * model.n_units
    n_placed = {"one expert": 1, "a third": n_experts // 3, "all but one": n_experts - 1}.get(budget)
    if n_placed is None:
        return split_plan(model, CASE, budget_bytes(model, CASE, budget))
    n_bytes = budget_bytes(model, CASE, "dense") + n_placed * neuron_bytes(model.layers[0])
    plan = split_plan(model, CASE, n_bytes)
    assert sum(split.n_hot for split in plan.layers) == n_placed
    return plan


@pytest.mark.sample(4)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    "name", [name if name != "gptoss.mxfp4" else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
)
def test_every_budget_gives_the_cpus_logits(
    name: str, budget: str, opened: Open, split_device: Device, distance: Distance
) -> None:
    file, model = opened(name)
    plan = plan_of(model, budget)
    assert plan.totals.used <= plan.totals.budget
    with on_device(plan, file, split_device) as executor:
        got = mixed_logits(executor)
        live = split_device.counters.live_bytes
    assert live == plan.totals.used
    assert distance(got, cpu_logits(model, file, CASE)) <= FILES[name]


def test_a_batch_of_many_tokens(opened: Open, split_device: Device, distance: Distance) -> None:
    """More than the device takes at once."""
    file, model = opened("mixtral.f16")
    case = Case("off", n_ctx=128, n_batch=100)
    ids = np.random.default_rng(0).integers(3, 500, 100).astype(np.int32)
    plan = plan_with(model, case, some_neurons(model, 2))
    got, wanted = (np.zeros((100, model.n_vocab), np.float32) for _ in range(2))
    with cpu_executor(model, file, case) as executor:
        executor.run(ids, 0, wanted)
    with on_device(plan, file, split_device) as executor:
        executor.run(ids, 0, got)
    assert distance(got, wanted) <= 1e-5


def test_a_split_layer_crosses_the_bus_once_each_way(opened: Open) -> None:
    _, model = opened("mixtral.q4_0")
    plan = plan_with(model, CASE, some_neurons(model, 2))
    copies = [p for p in plan.decode.placed.nodes if p.node.op == "copy" and p.node.layer is not None]
    down = [p for p in copies if p.side == CPU]
    in_place = [tensor.layer for _, tensor in read_in_place(plan.decode.placed)]
    assert in_place == [p.node.layer for p in down] == [*range(model.n_layer)] and down == copies
    for p in down:
        assert sorted(part.dtype for part in p.node.attributes["parts"]) == ["chosen", "q8"]


@pytest.mark.parametrize("n_hot", [0, 1, 4])
def test_the_share_of_chosen_experts_that_the_device_served(
    n_hot: int, opened: Open, split_device: Device
) -> None:
    file, model = opened("mixtral.f16")
    with on_device(plan_with(model, CASE, some_neurons(model, n_hot)), file, split_device) as executor:
        meter = DeviceMeter(executor)
        mixed_logits(executor)
        use = meter.read()
    assert use.listed_device + use.listed_host == len(IDS) * model.n_layer * 2 * 96
    shares = {0: (0.0, 0.0), 4: (1.0, 1.0)}.get(n_hot, (0.05, 0.6))
    assert shares[0] <= use.active_device_share <= shares[1]


def chosen_by(model: Model, file: GGUFFile, ids: NDArray[np.int32]) -> list[NDArray[np.bool_]]:
    """Of each layer, the experts that one of these tokens goes to."""
    assert model.experts is not None
    n_expert, found = model.experts.n_expert, dict[int, NDArray[np.bool_]]()
    with cpu_executor(model, file, CASE) as executor:

        def hear(taken: Taken) -> None:
            if taken.node.op == "top_k":
                found[layer_of(taken.node)] = np.asarray(
                    chosen_experts(executor, taken.node, n_expert).any(0)
                )

        with heard(executor, hear):
            executor.run(ids, 0)
    return [found[i] for i in range(model.n_layer)]


@pytest.mark.sample(3)
@pytest.mark.parametrize("by_neuron", [False, True])
@pytest.mark.parametrize("n_hot", [2, 5])
def test_experts_that_are_not_chosen_are_read_on_neither_side(
    n_hot: int, by_neuron: bool, data: Path, tmp_path: Path, split_device: Device
) -> None:
    """NaN in all their rows, in the map and on the device: nothing changes, in a batch and token by token."""
    given = numbers_of(data / "llamacpp" / "qwen3moe.f16.gguf")
    ids, results = np.array([7, 300, 41, 5], np.int32), []
    good = write_mixture(tmp_path / "good.gguf", *given, by_neuron=by_neuron)
    with open_gguf(good) as file:
        model = model_of(file)
        chosen = chosen_by(model, file, ids)
        for i, some in enumerate(chosen):
            assert 2 <= some.sum() < some.size
            for part in ("gate", "up", "down"):
                given[2][f"blk.{i}.ffn_{part}_exps.weight"][~some] = np.nan
    each = model.n_units // 8
    hot = []
    for rng in map(np.random.default_rng, range(model.n_layer)):
        experts = np.sort(rng.permutation(8)[:n_hot])
        hot.append(np.add.outer(experts * each, np.arange(each)).reshape(-1).astype(np.int32))
    plan = plan_with(model, CASE, hot)
    for path in (good, write_mixture(tmp_path / "nan.gguf", *given, by_neuron=by_neuron)):
        with open_gguf(path) as file, on_device(plan, file, split_device) as executor:
            logits = np.zeros((8, model.n_vocab), np.float32)
            executor.run(ids, 0, logits[:4])
            for i in range(4):
                executor.run(ids[i : i + 1], i, logits[4 + i : 5 + i])
        results.append(logits)
    assert np.isfinite(results[0]).all()
    assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.parametrize("n_hot", [1, 3])
def test_each_side_reads_its_own_experts_alone(
    n_hot: int, opened: Open, split_device: Device, tmp_path: Path, data: Path
) -> None:
    """NaN in the map where the device has the rows, after they were copied there: nothing changes."""
    file, model = opened("qwen3moe.f16")
    plan = plan_with(model, CASE, some_neurons(model, n_hot))
    with on_device(plan, file, split_device) as executor:
        wanted = mixed_logits(executor)
    image = bytearray((data / "llamacpp" / "qwen3moe.f16.gguf").read_bytes())
    for split in plan.layers:
        for part in ("gate", "up", "down"):
            info = file.tensors[f"blk.{split.layer}.ffn_{part}_exps.weight"]
            size = info.n_bytes // info.ne[2]
            for e in split.hot:
                at = info.offset + int(e) * size
                image[at : at + size] = b"\xff" * size
    changed = tmp_path / "nan.gguf"
    changed.write_bytes(image)
    with (
        open_gguf(changed) as poisoned,
        Executor(plan, poisoned, 2, loaded_stores((split_device,), plan, file)) as it,
    ):
        assert np.array_equal(mixed_logits(it), wanted)
