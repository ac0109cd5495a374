"""Predictors that do not belong to the model, or are none."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversion_refusals import MakeLlama, Save, refusal
from numpy.typing import NDArray

from hotcold.errors import SettingError
from hotcold.gguf_io.convert.conversion import convert

RANK = 8


def predictor_arrays(n_layer: int = 2, n_embd: int = 64, n_ff: int = 96) -> dict[str, NDArray[Any]]:
    arrays = {}
    for i in range(n_layer):
        arrays[f"layers.{i}.fc1.weight"] = np.ones((RANK, n_embd), np.float16)
        arrays[f"layers.{i}.fc2.weight"] = np.ones((n_ff, RANK), np.float16)
    return arrays


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        (predictor_arrays(n_layer=1), "no layers.1.fc1.weight, layers.1.fc2.weight (the model has 2 layers)"),
        (predictor_arrays(n_layer=3), "also layers.2.fc1.weight"),
        (predictor_arrays(n_embd=32), "layers.0.fc1.weight has shape [8, 32] (the model needs [rank, 64])"),
        (predictor_arrays(n_ff=128), "layers.0.fc2.weight has shape [128, 8] (the model needs [96, 8])"),
        (predictor_arrays() | {"layers.0.fc1.bias": np.ones(8, np.float16)}, "also layers.0.fc1.bias"),
        (predictor_arrays() | {"layers.1.fc1.weight": np.ones((9, 64), np.float16)}, "needs [96, 9]"),
        (predictor_arrays() | {"layers.1.fc1.weight": np.ones((0, 64), np.float16)}, "needs [rank, 64]"),
        (predictor_arrays() | {"layers.1.fc1.weight": np.ones(64, np.float16)}, "needs [rank, 64]"),
        ({}, "no layers.0.fc1.weight"),
    ],
)
def test_predictors_of_another_model(
    llama: MakeLlama, save: Save, out: Path, tmp_path: Path, arrays: dict[str, NDArray[Any]], text: str
) -> None:
    save(tmp_path / "p.safetensors", arrays)
    error = refusal(llama(hidden_act="relu").folder, out, tmp_path / "p.safetensors")
    assert text in str(error)
    assert str(error).endswith("give the predictors of this model")


def test_predictors_for_silu(llama: MakeLlama, save: Save, out: Path, tmp_path: Path) -> None:
    save(tmp_path / "p.safetensors", predictor_arrays())
    error = refusal(llama().folder, out, tmp_path / "p.safetensors")
    assert "activation: silu (predictors belong to a ReLU model)" in str(error)


@pytest.fixture
def folder(tmp_path: Path, torch_program: Any) -> Path:
    """PowerInfer's layout for two layers."""
    path = tmp_path / "predictors"
    path.mkdir()
    for i in range(2):
        arrays = {f"fc{k}.weight": predictor_arrays()[f"layers.{i}.fc{k}.weight"] for k in (1, 2)}
        torch_program.save(path / f"model_{i}.pt", arrays)
    return path


def test_predictor_files_that_are_missing(llama: MakeLlama, out: Path, folder: Path) -> None:
    model = llama(hidden_act="relu")
    for file in folder.iterdir():
        file.unlink()
    (model.folder / "tokenizer.model").unlink()
    text = str(refusal(model.folder, out, folder))
    assert "3 missing" in text
    for name in ("tokenizer.model", "model_0.pt (a layer's predictor", "model_1.pt (a layer's predictor"):
        assert name in text


def test_one_predictor_file_too_many(llama: MakeLlama, out: Path, folder: Path) -> None:
    (folder / "model_2.pt").write_bytes((folder / "model_1.pt").read_bytes())
    text = str(refusal(llama(hidden_act="relu").folder, out, folder))
    assert "also model_2.pt (the model has 2 layers)" in text


@pytest.mark.parametrize("value", ['"0.5"', "NaN", "1e999", "true", "[0]", "1" + "0" * 400])
def test_thresholds_that_are_no_numbers(llama: MakeLlama, out: Path, folder: Path, value: str) -> None:
    (folder / "config.json").write_text(f'{{"sparse_threshold": {value}}}')
    assert "sparse_threshold" in str(refusal(llama(hidden_act="relu").folder, out, folder))


def test_predictors_of_another_type(llama: MakeLlama, torch_program: Any, out: Path, folder: Path) -> None:
    torch_program.save(folder / "model_0.pt", {"fc1.weight": np.ones((8, 64), np.int64)})
    assert "element type I64 (F32, F16 or BF16)" in str(refusal(llama(hidden_act="relu").folder, out, folder))


def test_a_pickle_that_wants_to_run_code(
    llama: MakeLlama, torch_program: Any, out: Path, folder: Path, tmp_path: Path
) -> None:
    harm = f"import pathlib; pathlib.Path({str(tmp_path / 'harm')!r}).touch()"
    call = torch_program.name("builtins", "exec") + torch_program.items(torch_program.text(harm)) + b"R"
    torch_program.archive(folder / "model_1.pt", torch_program.whole(call), {})
    error = refusal(llama(hidden_act="relu").folder, out, folder)
    assert "model_1.pt: the pickle asks for builtins.exec (nothing but tensors is read)" in str(error)
    assert error.exit_code == 3
    assert not (tmp_path / "harm").exists()


def test_the_output_is_a_predictor(llama: MakeLlama, folder: Path) -> None:
    file = folder / "model_1.pt"
    before = file.read_bytes()
    with pytest.raises(SettingError, match="is the input"):
        convert(llama(hidden_act="relu").folder, folder, file, "f16", force=True)
    assert file.read_bytes() == before


def test_a_huge_index_of_layers_is_refused_fast(llama: MakeLlama, out: Path, folder: Path) -> None:
    model = llama(hidden_act="relu")
    model.rewrite(num_hidden_layers=4096)
    start = time.process_time()
    text = str(refusal(model.folder, out, folder))
    assert "4094 missing" in text
    assert text.endswith("; and 4074 more")
    assert time.process_time() - start < 1
