"""Folders that cannot be converted: one message that names thing, value, bound and next step."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversion_refusals import MakeLlama, Save, refusal

from hotcold.errors import FileError


def test_everything_missing_is_listed_at_once(tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = refusal(tmp_path / "empty", out, tmp_path / "predictors.safetensors")
    assert isinstance(error, FileError)
    assert error.exit_code == 3
    text = str(error)
    assert "4 missing" in text
    for name in (
        "config.json (",
        "model.safetensors (fetch",
        "tokenizer.model or tokenizer.json (fetch",
        "predictors.safetensors (",
    ):
        assert name in text


def test_a_folder_without_config(llama: MakeLlama, out: Path) -> None:
    model = llama()
    (model.folder / "config.json").unlink()
    text = str(refusal(model.folder, out))
    assert "1 missing; config.json (give the folder of a Hugging Face model" in text


def test_no_such_folder(tmp_path: Path, out: Path) -> None:
    text = str(refusal(tmp_path / "nowhere", out))
    assert "nowhere (is not there); give a Hugging Face folder or a GGUF file" in text


def test_weights_of_torch_that_are_none(llama: MakeLlama, out: Path) -> None:
    model = llama()
    (model.folder / "model.safetensors").rename(model.folder / "pytorch_model.bin")
    assert "pytorch_model.bin: no zip archive" in str(refusal(model.folder, out))


def test_weights_of_torch_that_want_to_run_code(
    llama: MakeLlama, torch_program: Any, out: Path, tmp_path: Path
) -> None:
    model = llama()
    (model.folder / "model.safetensors").unlink()
    harm = f"import pathlib; pathlib.Path({str(tmp_path / 'harm')!r}).touch()"
    call = torch_program.name("builtins", "exec") + torch_program.items(torch_program.text(harm)) + b"R"
    torch_program.archive(model.folder / "pytorch_model.bin", torch_program.whole(call), {})
    assert "the pickle asks for builtins.exec" in str(refusal(model.folder, out))
    assert not (tmp_path / "harm").exists()


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_an_index_that_names_absent_shards(llama: MakeLlama, out: Path) -> None:
    model = llama()
    homes = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(model.weights)}
    write_index(model.folder, homes)
    (model.folder / "model.safetensors").rename(model.folder / "model-1.safetensors")
    text = str(refusal(model.folder, out))
    assert "2 missing" in text
    assert "model-0.safetensors (fetch" in text
    assert "model-2.safetensors (fetch" in text


def test_an_index_and_its_files_must_agree(llama: MakeLlama, save: Save, out: Path) -> None:
    model = llama()
    write_index(
        model.folder, dict.fromkeys(model.weights, "model.safetensors") | {"more": "model.safetensors"}
    )
    assert "more: not in model.safetensors" in str(refusal(model.folder, out))
    save(model.folder / "two.safetensors", {"model.norm.weight": model.weights["model.norm.weight"]})
    write_index(model.folder, dict.fromkeys(model.weights, "model.safetensors") | {"more": "two.safetensors"})
    assert "tensor model.norm.weight: in " in str(refusal(model.folder, out))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a\\b", "", "..", "a\0b", 7, None])
def test_an_index_cannot_leave_the_folder(llama: MakeLlama, out: Path, name: Any) -> None:
    model = llama()
    write_index(model.folder, {"model.norm.weight": name})
    assert "a file within the folder" in str(refusal(model.folder, out))


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 100_000, "\udcff", '{"weight_map": {}}']
)
def test_damaged_json(llama: MakeLlama, out: Path, content: str) -> None:
    model = llama()
    (model.folder / "model.safetensors.index.json").write_bytes(content.encode(errors="surrogateescape"))
    assert "model.safetensors.index.json" in str(refusal(model.folder, out))


def test_biases_are_not_dropped(llama: MakeLlama, save: Save, out: Path) -> None:
    model = llama()
    name = "model.layers.0.self_attn.q_proj.bias"
    save(model.folder / "model.safetensors", model.weights | {name: np.zeros(64, np.float16)})
    assert f"also {name}" in str(refusal(model.folder, out))
