"""Experts of which single neurons are on a device: the CPU's logits at any budget, and rows that neither side reads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from expert_files import numbers_of, write_mixture
from gguf import GGMLQuantizationType
from split_runs import (
    IDS,
    N_BATCH,
    Case,
    Logits,
    OpenEmulated,
    budget_bytes,
    cpu_logits,
    load_from,
    mixed_logits,
    model_of,
    nan_rows,
    on_device,
    plan_with,
    some_neurons,
    split_plan,
)

from hotcold.engine.model.model import Model
from hotcold.engine.plan.footprint import neuron_bytes
from hotcold.engine.plan.plan import Plan
from hotcold.engine.run.use import DeviceMeter
from hotcold.gguf_io import open_gguf
from hotcold.kernels.cuda.device.device import Device

T = GGMLQuantizationType
Distance = Callable[[Logits, Logits], float]
BUDGETS = ("nothing", "dense", "one expert", "a third", "all but one neuron", "everything")
KINDS = {
    "relu f32": ("smallthinker.window5.q4_0", T.F32, "exact", 1e-5),
    "relu q8_0": ("smallthinker.window5.q4_0", T.Q8_0, "exact", 5e-3),
    "relu q4_0, all rows": ("smallthinker.window5.q4_0", T.Q4_0, "off", 5e-3),
    "silu f16": ("granitemoe.q8_0.96", T.F16, "off", 1e-5),
}


@pytest.fixture(scope="module")
def written(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Files with a row a neuron of the down projections."""

    def write(kind: str) -> Path:
        name, of_experts, *_ = KINDS[kind]
        architecture, metadata, tensors = numbers_of(data / "llamacpp" / f"{name.removesuffix('.96')}.gguf")
        if name.endswith(".96"):  # experts that are no squares: of their 64 neurons half
            for key in tensors:
                if "_exps" in key:
                    tensors[key] = tensors[key][:, :, :32] if "down" in key else tensors[key][:, :32]
            metadata[f"{architecture}.feed_forward_length"] = 32
        metadata.pop(f"{architecture}.attention.sliding_window", None)
        path = tmp_path_factory.mktemp("neurons") / "a.gguf"
        return write_mixture(path, architecture, metadata, tensors, by_neuron=True, of_experts=of_experts)

    return write


def plan_of(model: Model, case: Case, budget: str) -> Plan:
    """The plan of a budget that has room for so many neurons."""
    if budget in ("nothing", "dense", "everything"):
        return split_plan(model, case, budget_bytes(model, case, budget))
    assert model.experts is not None
    n_all = model.n_layer * model.n_units
    n_placed = {"one expert": model.experts.n_ff, "a third": n_all // 3}.get(budget, n_all - 1)
    n_bytes = budget_bytes(model, case, "dense") + n_placed * neuron_bytes(model.layers[0])
    plan = split_plan(model, case, n_bytes)
    assert sum(split.n_hot for split in plan.layers) == n_placed
    return plan


@pytest.mark.sample(5)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_budget_gives_the_cpus_logits(
    kind: str, budget: str, written: Callable[[str], Path], split_device: Device, distance: Distance
) -> None:
    _, _, sparsity, bound = KINDS[kind]
    case = Case(sparsity)
    with open_gguf(written(kind)) as file:
        model = model_of(file)
        assert model.unit == "neuron"
        plan = plan_of(model, case, budget)
        assert plan.totals.used <= plan.totals.budget
        with on_device(plan, file, split_device) as executor:
            got, live = mixed_logits(executor), split_device.counters.live_bytes
        assert live == plan.totals.used
        assert distance(got, cpu_logits(model, file, case)) <= bound


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_more_tokens_than_go_at_once(
    kind: str, written: Callable[[str], Path], split_device: Device
) -> None:
    """The bits of its tokens one by one, with neurons of every expert on both sides."""
    with open_gguf(written(kind)) as file:
        model, case = model_of(file), Case(KINDS[kind][2], n_batch=len(IDS))
        plan = plan_with(model, case, some_neurons(model, model.n_units // 2))
        batch = np.zeros((len(IDS), model.n_vocab), np.float32)
        alone = np.zeros_like(batch)
        with on_device(plan, file, split_device) as executor:
            executor.run(IDS, 0, batch)
        with on_device(plan, file, split_device) as executor:
            for i in range(len(IDS)):
                executor.run(IDS[i : i + 1], i, alone[i : i + 1])
    assert batch.tobytes() == alone.tobytes()


@pytest.mark.sample(3)
@pytest.mark.parametrize("sparsity", ["exact", "off"])
@pytest.mark.parametrize("theirs", ["device", "host"])
def test_neither_side_reads_a_row_of_the_other(
    theirs: str,
    sparsity: str,
    written: Callable[[str], Path],
    tmp_path: Path,
    open_emulated: OpenEmulated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NaN in all three matrices of the neurons that the other side has, in every layer: no bit changes."""
    case = Case(sparsity)
    with open_gguf(written("relu f32")) as file:
        model = model_of(file)
        hot = some_neurons(model, model.n_units // 3)
        neurons = np.arange(model.n_units)
        rows = hot if theirs == "device" else [np.setdiff1d(neurons, ids) for ids in hot]
        image = bytearray(file.path.read_bytes())
        for layer, some in zip(model.layers, rows, strict=True):
            for weight in layer.ffn_matrices:
                nan_rows(file, weight, some, image)
        (tmp_path / "nan.gguf").write_bytes(image)
        plan = plan_with(model, case, hot)
        with on_device(plan, file, open_emulated(build_kind="fast")) as executor:
            wanted = mixed_logits(executor)
        with open_gguf(tmp_path / "nan.gguf") as spoiled:
            on_host, on_card = (spoiled, file) if theirs == "device" else (file, spoiled)
            if theirs == "host":  # the device's rows are good, the map's of the device's neurons too
                on_host, on_card = file, spoiled
            load_from(monkeypatch, on_card)
            with on_device(plan, on_host, open_emulated(build_kind="fast")) as executor:
                got = mixed_logits(executor)
    assert np.isfinite(wanted).all()
    assert got.tobytes() == wanted.tobytes()


@pytest.mark.sample(5)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_neurons_that_the_device_served(
    share: float, written: Callable[[str], Path], split_device: Device
) -> None:
    with open_gguf(written("relu f32")) as file:
        model = model_of(file)
        plan = plan_with(model, Case("exact"), some_neurons(model, int(share * model.n_units)))
        with on_device(plan, file, split_device) as executor:
            meter = DeviceMeter(executor)
            mixed_logits(executor)
            use = meter.read()
    assert use.listed_device + use.listed_host == len(IDS) * model.n_layer * 2 * 32
    assert abs(use.active_device_share - share) < (0.1 if 0 < share < 1 else 1e-9)


def test_counts_of_neurons_and_of_experts_decide(written: Callable[[str], Path]) -> None:
    """An expert's counts are those of all its neurons; without counts all are alike."""
    with open_gguf(written("relu f32")) as file:
        model = model_of(file)
    case, rng = Case("exact"), np.random.default_rng(3)
    n_bytes = budget_bytes(model, case, "dense") + 3 * 32 * neuron_bytes(model.layers[0])
    by_expert = rng.permutation(model.n_layer * 4).reshape(model.n_layer, 4) * 10
    plan = split_plan(model, case, n_bytes, frequencies=list(by_expert))
    hottest = {divmod(int(i), 4) for i in np.argsort(-by_expert.reshape(-1))[:3]}
    found = {(split.layer, e) for split in plan.layers for e in np.unique(split.hot // 32).tolist()}
    assert found == hottest and all(split.n_hot in (0, 32, 64, 96) for split in plan.layers)
    by_neuron = rng.permutation(model.n_layer * 128).reshape(model.n_layer, 128)
    plan = split_plan(model, case, n_bytes, frequencies=list(by_neuron))
    hottest = {divmod(int(i), 128) for i in np.argsort(-by_neuron.reshape(-1))[:96]}
    assert {(split.layer, i) for split in plan.layers for i in split.hot.tolist()} == hottest


def test_a_layer_on_one_side_costs_the_other_nothing(written: Callable[[str], Path]) -> None:
    """A layer all of whose neurons are hot has no node on the CPU; one with none has none on the device."""
    with open_gguf(written("relu f32")) as file:
        model = model_of(file)
    hot = some_neurons(model, 64)
    hot[1] = np.arange(model.n_units, dtype=np.int32)
    hot[2] = hot[2][:0]
    plan = plan_with(model, Case("exact", n_batch=N_BATCH), hot)
    nodes = [(p.node.layer, p.side) for p in plan.decode.placed.nodes if p.node.op == "expert_ffn"]
    assert sorted(nodes) == [
        (0, "cpu"),
        (0, "gpu"),
        (1, "gpu"),
        (2, "cpu"),
        (3, "cpu"),
        (3, "gpu"),
        (4, "cpu"),
        (4, "gpu"),
    ]
