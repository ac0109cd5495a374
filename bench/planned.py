"""Plans of random ReLU models for the benches of the device: shapes, budgets, executors."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from random_model import LlamaShape, write_sparse

from hotcold.engine.model.load import load_model
from hotcold.engine.model.model import Model
from hotcold.engine.plan.budget import Budget, parse_size
from hotcold.engine.plan.placement import UNIFORM
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.planning import Source, make_plan
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.device_plan import facts_of
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.device import Device

SHAPES = {
    "tiny": LlamaShape(n_embd=256, n_ff=704, n_layer=2, n_head=4, n_head_kv=4, n_vocab=512, n_ctx=64),
    "1b": LlamaShape(),
    "7b": LlamaShape(n_embd=4096, n_ff=11008, n_layer=32, n_head=32, n_head_kv=32, n_ctx=4096),
    "13b": LlamaShape(n_embd=5120, n_ff=13824, n_layer=40, n_head=40, n_head_kv=40, n_ctx=4096),
}
"""What --shape names; or numbers, as in "4096,11008,32,32,8": n_embd, n_ff, n_layer, n_head, n_head_kv."""
EVERYTHING = 1 << 50


class LoadRate:
    """Hears of the progress of loading.

    Attributes:
        gb_a_second: so far.
    """

    gb_a_second = 0.0

    def __call__(self, done: int, total: int, seconds: float) -> None:
        """See `LoadProgress`."""
        self.gb_a_second = done / max(seconds, 1e-9) / 1e9


def shape_of(text: str) -> LlamaShape:
    """A shape by its name or its numbers."""
    if text in SHAPES:
        return SHAPES[text]
    n_embd, n_ff, n_layer, n_head, n_head_kv = map(int, text.split(","))
    return LlamaShape(n_embd, n_ff, n_layer, n_head, n_head_kv, n_ctx=4096)


@contextmanager
def random_relu_model(
    folder: Path, shape: LlamaShape, kind: GGMLQuantizationType, rank: int
) -> Iterator[tuple[GGUFFile, Model]]:
    """A random model with predictors, in a file that is deleted at the end."""
    path = folder / "random.gguf"
    try:
        write_sparse(path, shape, kind, rank)
        with open_gguf(path) as file:
            yield file, load_model(file)
    finally:
        path.unlink(missing_ok=True)


def plan_for(model: Model, device: Device, how: Wanted, n_bytes: int) -> Plan:
    """The plan for a budget of so many bytes; without counts, so all neurons are alike."""
    source = Source(model, "random", None, "", 0, None, UNIFORM)
    return make_plan(source, how, Budget(f"{n_bytes}", n_bytes, "of the bench", facts_of(device)))


def whole_plan(model: Model, device: Device, how: Wanted) -> Plan:
    """The plan that puts everything on a device, whatever it holds."""
    return plan_for(model, device, how, EVERYTHING)


def bytes_of_budget(text: str, whole: Plan) -> int:
    """A budget: a size as --vram-budget takes it, a share of what everything takes, as "50%", or "all"."""
    if text == "all":
        return EVERYTHING
    if text.endswith("%"):
        return int(whole.totals.used * float(text[:-1]) / 100)
    return parse_size(text)


def half_the_neurons(whole: Plan) -> int:
    """The budget that everything fits but half of the neurons' rows."""
    return whole.totals.used - whole.totals.hot_rows // 2


def everyone_listed(model: Model) -> Model:
    """The model with a threshold that lists every neuron."""
    return dataclasses.replace(model, sparse_threshold=-np.inf)
