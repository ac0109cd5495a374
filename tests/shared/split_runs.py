"""Runs of one model on the CPU alone and divided between a device and the CPU, side by side."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.engine.device.store import DeviceStore, loaded_stores
from hotcold.engine.host.stores import HostStore
from hotcold.engine.model.load import load_model
from hotcold.engine.model.model import Model, Weight
from hotcold.engine.plan import placement
from hotcold.engine.plan.budget import Budget
from hotcold.engine.plan.footprint import dense_part, head_part, kv_positions, layer_kv_bytes, neuron_bytes
from hotcold.engine.plan.plan import Ids, Plan
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.reserve import reserve_for
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile, blocks
from hotcold.gguf_io.firing_counts import Counts
from hotcold.kernels.cuda.device.device import Device

Logits = NDArray[np.float32]
OpenEmulated = Callable[..., Device]

IDS = np.array([1, 31, 400, 7, 55, 91, 269, 14, 284, 269, 66], np.int32)
"""Tokens that every vocabulary here has."""
N_BATCH = 4
MIXED = (N_BATCH, 3, 1, 1, 2)
"""Sizes of runs: a whole batch, a shorter one, two tokens one by one, and another length."""
BUDGETS = ("nothing", "one layer", "half", "dense", "dense + 1%", "dense + 17%", "dense + 50%", "everything")


@dataclass(frozen=True)
class Case:
    """How a model is to run."""

    sparsity: str
    kv_type: str = "f32"
    n_ctx: int = 32
    n_batch: int = N_BATCH
    n_threads: int = 2
    n_slots: int = 1

    @property
    def wanted(self) -> Wanted:
        """Of the planner."""
        return Wanted(self.sparsity, self.n_ctx, self.n_batch, self.kv_type, self.n_slots)


def model_of(file: GGUFFile, n_layer: int | None = None, **changes: Any) -> Model:
    """The file's model, or its first layers, with some hyperparameters changed."""
    model = load_model(file)
    layers = model.layers[:n_layer]
    return replace(model, layers=layers, n_layer=len(layers), **changes)


def cpu_executor(model: Model, file: GGUFFile, case: Case) -> Executor:
    return Executor(
        plan_for_cpu(model, case.wanted),
        file,
        case.n_threads,
    )


def split_plan(
    model: Model,
    case: Case,
    n_bytes: int,
    hot: Sequence[Ids] | None = None,
    frequencies: Counts | None = None,
) -> Plan:
    """The plan for a budget; `hot` names the neurons in place of the ranking."""
    return placement.plan(model, case.wanted, Budget(str(n_bytes), n_bytes, "a test"), frequencies, hot=hot)


def budget_bytes(model: Model, case: Case, name: str) -> int:
    """Bytes of one of BUDGETS: the reserve, and what is placed behind it, in the planner's order."""
    if name == "nothing":
        return 0
    reserve = reserve_for(model, case.sparsity, case.n_ctx, case.n_batch, case.n_slots).n_bytes
    dense = [dense_part(layer, case.sparsity).n_bytes for layer in model.layers]
    if name in ("one layer", "half"):
        return reserve + sum(dense[: 1 if name == "one layer" else -(-model.n_layer // 2)])
    held = kv_positions(model, case.n_ctx, case.n_batch)
    caches = sum(layer_kv_bytes(model, n, case.kv_type, case.n_slots) for n in held)
    neurons = sum(neuron_bytes(layer) * model.n_units for layer in model.layers)
    percent = {"dense": 0, "everything": 100}.get(name)
    if percent is None:
        percent = int(name.removeprefix("dense + ").removesuffix("%"))
    return reserve + sum(dense) + caches + head_part(model).n_bytes + neurons * percent // 100


def plan_named(model: Model, case: Case, name: str) -> Plan:
    return split_plan(model, case, budget_bytes(model, case, name))


def some_neurons(model: Model, n_hot: int, seed: int = 0) -> list[Ids]:
    """As many hot neurons in each layer, drawn anew for each."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(model.n_units)[:n_hot] for _ in range(model.n_layer)]
    return [np.sort(ids).astype(np.int32) for ids in drawn]


def plan_with(model: Model, case: Case, hot: Sequence[Ids]) -> Plan:
    """All dense parts on the device, and these neurons."""
    return split_plan(model, case, budget_bytes(model, case, "everything"), hot)


@contextmanager
def on_device(plan: Plan, file: GGUFFile, device: Device, n_threads: int = 2) -> Iterator[Executor]:
    """An executor that carries out a plan; when it is closed the device must be empty."""
    executor = Executor(plan, file, n_threads, loaded_stores((device,), plan, file))
    with executor:
        yield executor
    assert device.counters.live_bytes == device.counters.pinned_bytes == 0


def mixed_logits(executor: Executor, sizes: Sequence[int] = MIXED) -> Logits:
    """Logits after every token of IDS, in runs of so many tokens, and one by one when no more are given."""
    out, start, rest = np.zeros((len(IDS), executor.model.n_vocab), np.float32), 0, iter(sizes)
    while start < len(IDS):
        end = min(start + next(rest, 1), len(IDS))
        executor.run(IDS[start:end], start, out[start:end])
        start = end
    return out


def cpu_logits(model: Model, file: GGUFFile, case: Case) -> Logits:
    with cpu_executor(model, file, case) as executor:
        return mixed_logits(executor)


def nan_rows(file: GGUFFile, weight: Weight | None, rows: NDArray[np.integer], image: bytearray) -> None:
    """Overwrite whole rows with NaN in a copy of the file; a weight that the model lacks has none."""
    if weight is None:
        return
    info = file.tensors[weight.name]
    nan = np.full((1, weight.ne[0]), np.nan, np.float32)
    if weight.type in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0):
        row = np.full(info.row_bytes, 0xFF, np.uint8)  # every scale becomes a NaN
    else:
        row = np.ascontiguousarray(blocks.quantize(nan, weight.type)).view(np.uint8).reshape(-1)
    for r in rows:
        at = info.offset + int(r) * info.row_bytes
        image[at : at + info.row_bytes] = row.tobytes()


def load_from(patch: pytest.MonkeyPatch, file: GGUFFile) -> None:
    """Let devices be loaded from this file, whatever the executor's is."""
    load = DeviceStore.load

    def load_other(self: DeviceStore, host: HostStore, *rest: Any) -> None:
        load(self, HostStore(file), *rest)

    patch.setattr(DeviceStore, "load", load_other)
