"""What a token costs on the bus and in launches, and what the device's memory holds."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from split_runs import (
    BUDGETS,
    IDS,
    Case,
    model_of,
    on_device,
    plan_named,
    plan_with,
    some_neurons,
)

from hotcold.engine.device.steps import Launches
from hotcold.engine.model.model import Model
from hotcold.engine.plan.plan import Plan
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.device import Device

pytestmark = pytest.mark.pairwise
TinyModel = Callable[[str, bool], Path]
ARCHITECTURES = ("llama", "bamboo", "falcon", "opt")
POSITION = 4  # bytes of a token's position
slow = pytest.mark.slow


@dataclass(frozen=True)
class Cost:
    """Of one decoded token: calls and bytes of copies, waits of the host, launches."""

    up: int
    up_bytes: int
    down: int
    down_bytes: int
    waits: int
    launches: int


def token_cost(plan: Plan, file: GGUFFile, device: Device) -> Cost:
    """The cost of a token behind others, the second of its kind."""
    with on_device(plan, file, device) as executor:
        logits = np.empty((1, executor.model.n_vocab), np.float32)
        for i in range(2):
            before = _counted(device)
            executor.run(IDS[i : i + 1], i, logits)
    return Cost(*(now - then for now, then in zip(_counted(device), before, strict=True)))


def _counted(device: Device) -> list[int]:
    c = device.counters
    return [c.h2d_calls, c.h2d_bytes, c.d2h_calls, c.d2h_bytes, c.host_waits, sum(c.launches.values())]


def layer_cost(model: Model, file: GGUFFile, device: Device, case: Case, n_hot: int) -> Cost:
    """What one layer more costs, if so many of its neurons are hot."""
    costs = []
    for n_layer in (1, 2):
        some = model_of(file, n_layer)
        costs.append(token_cost(plan_with(some, case, some_neurons(some, n_hot)), file, device))
    return Cost(*(b - a for a, b in zip(*(vars(cost).values() for cost in costs), strict=True)))


@pytest.mark.parametrize("kv_type", ["f16", "f32"])
@pytest.mark.parametrize("sparsity", ["predictor", "exact", "off"])
@pytest.mark.parametrize("name", ["llama-f16", "llama-q4_0", "falcon-f16", "falcon-q4_0"])
def test_a_split_layer_copies_once_down_reads_once_up_and_waits_once(
    name: str, sparsity: str, kv_type: str, data: Path, split_device: Device
) -> None:
    with open_gguf(data / "powerinfer" / f"{name}.powerinfer.gguf") as file:
        model = model_of(file)
        cost = layer_cost(model, file, split_device, Case(sparsity, kv_type), model.n_ff // 3)
    n_embd, mask = model.n_embd, model.n_ff // 8 if sparsity == "predictor" else 0
    assert (cost.up, cost.up_bytes, cost.down, cost.waits) == (0, 4 * n_embd, 1, 1)
    rounded = n_embd + 8 * n_embd // 32  # a number, and for a block a scale and a sum
    assert cost.down_bytes == mask + (rounded if "q4_0" in name else 4 * n_embd)


@pytest.mark.parametrize(
    "outtype", ["f16", "q8_0", pytest.param("f32", marks=slow), pytest.param("q4_0", marks=slow)]
)
def test_everything_on_the_device(outtype: str, tiny_model: TinyModel, split_device: Device) -> None:
    """Then only the embedding's row, with its position, and the logits cross."""
    with open_gguf(tiny_model(outtype, True)) as file:
        model, case = model_of(file, 2), Case("predictor")
        plan = plan_named(model, case, "everything")
        cost = token_cost(plan, file, split_device)
        cost_of_layer = layer_cost(model, file, split_device, case, model.n_ff)
    assert (cost.up, cost.up_bytes) == (2, POSITION + 4 * model.n_embd)
    assert (cost.down, cost.down_bytes) == (1, 4 * model.n_vocab)
    copies = cost_of_layer.up, cost_of_layer.down, cost_of_layer.waits
    assert copies == (0, 0, 0)


@pytest.mark.sample(3)
@pytest.mark.parametrize(("n_ctx", "of_floats"), [(32, 9), (1024, 9), (1025, 9), (2048, 9)])
@pytest.mark.parametrize(
    "outtype", ["f16", "q8_0", pytest.param("f32", marks=slow), pytest.param("q4_0", marks=slow)]
)
def test_launches_of_a_layer(
    outtype: str, n_ctx: int, of_floats: int, tiny_model: TinyModel, split_device: Device
) -> None:
    """With a predictor, which takes the most; divided and whole."""
    with open_gguf(tiny_model(outtype, True)) as file:
        model, case = model_of(file, 2), Case("predictor", "f16", n_ctx)
        for n_hot in (model.n_ff // 2, model.n_ff):
            cost = layer_cost(model, file, split_device, case, n_hot)
            of_type = 0 if outtype in ("f16", "f32") else 1  # fc1's result is rounded by a launch of its own
            assert cost.launches == of_floats + of_type


def launches_of_first_layer(executor: Executor) -> int:
    """Of a token; the embedding and the head, which are in no layer, left out."""
    steps = [step for step in executor.run_steps.kept[1] if isinstance(step, Launches)]
    return sum(len(step.launches) for step in steps if step.nodes[0].name.endswith("-0"))


@pytest.mark.sample(3)
@pytest.mark.parametrize(("n_ctx", "of_floats"), [(64, 9), (1100, 9)])
@pytest.mark.parametrize("kind", ["f16", "q4_0"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_launches_of_other_architectures(
    architecture: str, kind: str, n_ctx: int, of_floats: int, data: Path, split_device: Device
) -> None:
    with open_gguf(data / "powerinfer" / f"{architecture}-{kind}.powerinfer.gguf") as file:
        model, case = model_of(file, 1), Case("predictor", "f16", n_ctx)
        for n_hot in (500, model.n_ff):
            with on_device(
                plan_with(model, case, some_neurons(model, n_hot)), file, split_device
            ) as executor:
                of_kind = 0 if kind == "f16" else 1 + (architecture == "falcon")  # whose norm is far away
                assert launches_of_first_layer(executor) <= of_floats + of_kind, n_hot


@pytest.mark.sample(3)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", ["llama-f16", "opt-q4_0"])
def test_allocated_bytes_are_the_planned_ones(
    name: str, budget: str, data: Path, split_device: Device
) -> None:
    """From loading on: runs allocate nothing."""
    with open_gguf(data / "powerinfer" / f"{name}.powerinfer.gguf") as file:
        plan = plan_named(model_of(file), Case("predictor"), budget)
        with on_device(plan, file, split_device) as executor:
            assert split_device.counters.live_bytes == plan.totals.used <= plan.budget.n_bytes
            executor.run(IDS[:3], 0, np.empty((3, executor.model.n_vocab), np.float32))
            executor.run(IDS[:1], 3, None)
            assert split_device.counters.peak_bytes == split_device.counters.live_bytes == plan.totals.used
    assert split_device.counters.live_bytes == split_device.counters.pinned_bytes == 0


def test_every_run_of_a_kind_costs_the_same(data: Path, split_device: Device) -> None:
    """Nothing is worked out, launched or copied more often as a text grows."""
    with open_gguf(data / "powerinfer" / "llama-f16.powerinfer.gguf") as file:
        model, seen = model_of(file), Counter[tuple[int, ...]]()
        plan = plan_with(model, Case("predictor"), some_neurons(model, 400))
        with on_device(plan, file, split_device) as executor:
            logits = np.empty((1, model.n_vocab), np.float32)
            for i in range(8):
                before = _counted(split_device)
                executor.run(IDS[i : i + 1], i, logits)
                seen[tuple(b - a for a, b in zip(before, _counted(split_device), strict=True))] += 1
    assert list(seen.values()) == [8]
