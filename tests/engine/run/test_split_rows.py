"""Each side reads its own rows: the other side's may be NaN in what it has of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from split_runs import (
    Case,
    Logits,
    OpenEmulated,
    load_from,
    mixed_logits,
    model_of,
    nan_rows,
    on_device,
    plan_with,
    some_neurons,
)

from hotcold.engine.model.model import Model
from hotcold.engine.plan.plan import Ids
from hotcold.gguf_io import GGUFFile, open_gguf

N_HOT = 300


QUICK = [("llama-q4_0", "predictor"), ("llama-f16", "exact"), ("opt-q4_0", "predictor")]
NAMES = (
    "tiny-f32",
    "tiny-bf16",
    "tiny-q8_0",
    "llama-f16",
    "llama-q4_0",
    "falcon-f16",
    "bamboo-f16",
    "opt-q4_0",
)
CASES = [
    pytest.param(*which, marks=() if which in QUICK else pytest.mark.slow)
    for which in product(NAMES, ("predictor", "exact", "off"))
]


@pytest.fixture
def path(name: str, tiny_model: Callable[[str, bool], Path], data: Path) -> Path:
    if name.startswith("tiny-"):
        return tiny_model(name.removeprefix("tiny-"), True)
    return data / "powerinfer" / f"{name}.powerinfer.gguf"


@pytest.fixture
def case(sparsity: str) -> Case:
    return Case(sparsity)


@contextmanager
def with_nan(file: GGUFFile, model: Model, rows: list[Ids], first: int, path: Path) -> Iterator[GGUFFile]:
    """The file, written beside, with these neurons of each layer NaN in all matrices from this one on.

    The first decides which neurons fire; a neuron whose decision is NaN may pass for one that does not.
    """
    image = bytearray(file.path.read_bytes())
    for layer, some in zip(model.layers, rows, strict=True):
        for weight in layer.ffn_matrices[first:]:
            nan_rows(file, weight, some, image)
    path.write_bytes(image)
    with open_gguf(path) as changed:
        yield changed


def split_logits(
    file: GGUFFile, model: Model, case: Case, hot: list[Ids], open_emulated: OpenEmulated
) -> Logits:
    with on_device(plan_with(model, case, hot), file, open_emulated(build_kind="fast")) as executor:
        return mixed_logits(executor)


@pytest.mark.sample(5)
@pytest.mark.parametrize(("name", "sparsity"), CASES)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("theirs", ["device", "host"])
def test_neither_side_reads_a_row_of_the_other(
    path: Path,
    case: Case,
    first: int,
    theirs: str,
    tmp_path: Path,
    open_emulated: OpenEmulated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does the host where all of a layer's neurons are hot: layer 1, where the device's are spoiled."""
    with open_gguf(path) as file:
        model = model_of(file, 2)
        neurons = np.arange(model.n_ff, dtype=np.int32)
        hot = some_neurons(model, N_HOT)
        if theirs == "device":
            hot[1:] = [neurons] * (model.n_layer - 1)
        rows = hot if theirs == "device" else [np.setdiff1d(neurons, ids).astype(np.int32) for ids in hot]
        wanted = split_logits(file, model, case, hot, open_emulated)
        with with_nan(file, model, rows, first, tmp_path / "nan.gguf") as spoiled:
            both = split_logits(spoiled, model, case, hot, open_emulated)
            # a ReLU of NaN is 0 on the CPU: what it has of spoiled rows may be missing
            assert both.tobytes() != wanted.tobytes() and (theirs == "host" or np.isnan(both).any())
            on_host, on_card = (spoiled, file) if theirs == "device" else (file, spoiled)
            load_from(monkeypatch, on_card)
            logits = split_logits(on_host, model, case, hot, open_emulated)
    assert logits.tobytes() == wanted.tobytes()
