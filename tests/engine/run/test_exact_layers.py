"""A file whose predictors leave layers out: those run as exact, on either side, and it says which they are."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hf_models
import numpy as np
import pytest
from commands import run
from hf_forward import forward
from safetensors.numpy import save_file
from split_runs import IDS, Case, Logits, cpu_logits, mixed_logits, model_of, on_device, plan_named

import hotcold
from hotcold.engine.dump.report import as_json
from hotcold.engine.model.model import Model
from hotcold.engine.run.use import DeviceMeter
from hotcold.errors import FileError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.convert.copied import with_more
from hotcold.gguf_io.convert.model_metadata import exact_layers_metadata
from hotcold.gguf_io.names import EXACT_LAYERS
from hotcold.kernels.cuda.device.device import Device

Distance = Callable[[Logits, Logits], float]
slow = pytest.mark.slow


def without(model: Model, *layers: int) -> Model:
    """The model without these layers' predictors."""
    changed = [
        replace(layer, fc1=None, fc2=None) if i in layers else layer for i, layer in enumerate(model.layers)
    ]
    return replace(model, layers=tuple(changed))


@pytest.fixture(scope="module")
def some(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model without the predictors of layers 0 and 3."""
    out = tmp_path_factory.mktemp("some") / "some.gguf"
    gone = [f"blk.{i}.fc{k}.weight" for i in (0, 3) for k in (1, 2)]
    keys = {EXACT_LAYERS: exact_layers_metadata((0, 3))}
    with_more(tiny / "tiny-relu-llama.q8_0.gguf", out, keys, (), without=gone)
    return out


@pytest.mark.parametrize(
    "kind", ["llama", pytest.param("opt", marks=slow), pytest.param("falcon-7b", marks=slow)]
)
def test_a_numpy_pass_finds_the_same(tmp_path: Path, kind: str) -> None:
    """From safetensors over `convert`, once more through it, token by token and as a batch."""
    changes: dict[str, Any] = (
        {"hidden_act": "relu"} if kind == "llama" else {"activation": "relu"} if kind == "falcon-7b" else {}
    )
    model = hf_models.make(tmp_path / "model", kind, dtype="float32", **changes)
    ids = np.array([3, 17, 8, 30, 5, 21, 9, 12], np.int32)
    predictors = {k: v for k, v in hf_models.predictors_of(model).items() if not k.startswith("layers.0.")}
    save_file(predictors, tmp_path / "p.safetensors", {EXACT_LAYERS: "0"})
    (tmp_path / "config.json").write_text('{"sparse_threshold": 0.5}')
    convert(model.folder, tmp_path / "p.safetensors", tmp_path / "m.gguf", "f32")
    convert(tmp_path / "m.gguf", None, tmp_path / "again.gguf", "f32")
    wanted, all_exact = forward(model, ids, predictors, 0.5), forward(model, ids)
    assert np.abs(wanted - all_exact).max() > 0.01
    for name in ("m.gguf", "again.gguf"):
        with hotcold.load(tmp_path / name, n_ctx=32, kv_type="f32") as engine:
            assert engine.sparsity == "predictor" and engine.model.exact_layers == (0,)
            for step in (1, ids.size):
                logits = np.zeros_like(wanted, np.float32)
                for i in range(0, ids.size, step):
                    engine.executor.run(ids[i : i + step], i, logits[i : i + step])
                assert np.sqrt(((logits - wanted) ** 2).sum() / (wanted**2).sum()) < 1e-5


@pytest.mark.parametrize(
    "budget",
    [
        "half",
        "dense + 17%",
        "everything",
        *(pytest.param(b, marks=slow) for b in ("one layer", "dense + 50%")),
    ],
)
@pytest.mark.parametrize(
    "name",
    ["llama-f16", *(pytest.param(f"{a}-q4_0", marks=slow) for a in ("llama", "bamboo", "falcon", "opt"))],
)
def test_split_runs(name: str, budget: str, data: Path, split_device: Device, distance: Distance) -> None:
    with open_gguf(data / "powerinfer" / f"{name}.powerinfer.gguf") as file:
        whole, case = model_of(file), Case("predictor")
        last = whole.n_layer - 1  # which is the only one of some
        model = without(whole, last)
        on_cpu, plan = cpu_logits(model, file, case), plan_named(model, case, budget)
        with on_device(plan, file, split_device) as executor:
            meter = DeviceMeter(executor)
            assert split_device.counters.live_bytes == plan.totals.used
            assert distance(mixed_logits(executor), on_cpu) <= (1.5e-2 if "q4_0" in name else 1e-3)
            use, listed = meter.read(), int(executor.counts[last, :, 0].sum())
        assert distance(cpu_logits(whole, file, case), on_cpu) > 1e-3
    of_last = len(IDS) * plan.layers[last].n_hot
    assert use.listed_device >= of_last and listed + of_last == len(IDS) * model.n_ff
    report = as_json(plan)
    modes = ["exact" if i == last else "predictor" for i in range(model.n_layer)]
    assert [layer["sparsity"] for layer in report["layers"]] == modes
    assert f"layers without a predictor, which run as exact: {last}" in report["notes"]
    assert not any("exact" in note for note in plan.notes)  # those are warnings of a load


def test_it_says_which_they_are(some: Path, tmp_path: Path) -> None:
    """With -v; and of what its predictors find on the first prompt."""
    options = ("-m", str(some), "-p", "It was a truth " * 20, "-n", "3", "--seed", "1")
    shown = run("generate", *options, "-v")
    assert shown.returncode == 0
    said = " ".join(shown.stderr.split())  # in lines of the terminal's width
    assert "without a predictor, so exact: layers 0, 3" in said and "first prompt, in layer 4" in said
    quiet = run("generate", *options)
    assert quiet.stdout == shown.stdout and "exact" not in quiet.stderr


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        (None, "no layers.1.fc1.weight"),
        ("0", "no layers.1.fc1.weight"),
        ("1,0", "ascending"),
        ("one", "each below 2"),
        ("2", "each below 2"),
        ("", "each below 2"),
        ("0,1", "in no layer"),
    ],
)
def test_predictors_that_do_not_say_what_they_lack(tmp_path: Path, told: str | None, problem: str) -> None:
    model = hf_models.make(tmp_path / "model", "llama", hidden_act="relu")
    some = {k: v for k, v in hf_models.predictors_of(model).items() if k.startswith("layers.0.")}
    save_file(some, tmp_path / "p.safetensors", None if told is None else {EXACT_LAYERS: told})
    with pytest.raises(FileError, match=problem):
        convert(model.folder, tmp_path / "p.safetensors", tmp_path / "out.gguf", "f16")
    assert not (tmp_path / "out.gguf").exists()
