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


@pytest.mark.parametrize(("name", "sparsity"), CASES)
@pytest.mark.parametrize("first", [0, 1])
def test_the_host_reads_no_hot_row(
    path: Path,
    case: Case,
    first: int,
    tmp_path: Path,
    open_emulated: OpenEmulated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not where all of a layer's neurons are hot either: layer 1 here."""
    with open_gguf(path) as file:
        model = model_of(file, 2)
        hot = some_neurons(model, N_HOT)
        hot[1:] = [np.arange(model.n_ff, dtype=np.int32)] * (model.n_layer - 1)
        wanted = split_logits(file, model, case, hot, open_emulated)
        with with_nan(file, model, hot, first, tmp_path / "nan.gguf") as changed:
            assert np.isnan(split_logits(changed, model, case, hot, open_emulated)).any()
            load_from(monkeypatch, file)
            logits = split_logits(changed, model, case, hot, open_emulated)
    assert logits.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(("name", "sparsity"), CASES)
@pytest.mark.parametrize("first", [0, 1])
def test_the_device_has_no_cold_row(
    path: Path,
    case: Case,
    first: int,
    tmp_path: Path,
    open_emulated: OpenEmulated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_gguf(path) as file:
        model = model_of(file, 2)
        hot = some_neurons(model, N_HOT)
        cold = [np.setdiff1d(np.arange(model.n_ff), ids).astype(np.int32) for ids in hot]
        wanted = split_logits(file, model, case, hot, open_emulated)
        with with_nan(file, model, cold, first, tmp_path / "nan.gguf") as changed:
            read = split_logits(changed, model, case, hot, open_emulated)
            assert read.tobytes() != wanted.tobytes()  # NaN, or missing: a ReLU of NaN is 0 on the CPU
            load_from(monkeypatch, changed)
            logits = split_logits(file, model, case, hot, open_emulated)
    assert logits.tobytes() == wanted.tobytes()
