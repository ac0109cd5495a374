"""Inputs that cannot be converted: one message that names thing, value, bound and next step."""

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.errors import DoesNotFitError, FileError, HotcoldError, SettingError
from hotcold.gguf_io.convert.conversion import convert

MakeLlama = Callable[..., Any]  # the fixture llama
Save = Callable[[Path, dict[str, NDArray[Any]]], None]  # the fixture save


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "out.gguf"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(folder: Path, out: Path, predictors: Path | None = None, **settings: Any) -> HotcoldError:
    """The error of a conversion, which has left nothing behind."""
    out.parent.mkdir(exist_ok=True)
    before = contents(out.parent)
    with pytest.raises(HotcoldError) as caught:
        convert(folder, predictors, out, settings.pop("outtype", "f16"), **settings)
    assert contents(out.parent) == before
    assert "\n" not in str(caught.value)
    return caught.value


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


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"model_type": "gpt2"},
            "model_type: 'gpt2' (supported: llama, mistral, bamboo, falcon, RefinedWeb, RefinedWebModel, opt, qwen2)",
        ),
        ({"model_type": ["llama"]}, "model_type: ['llama']"),
        ({"model_type": None}, "model_type: missing"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' (supported: silu, swish, relu)"),
        ({"hidden_size": None}, "hidden_size: missing (a whole number from 1"),
        ({"hidden_size": 64.0}, "hidden_size: 64.0"),
        ({"hidden_size": "64"}, "hidden_size: '64'"),
        ({"hidden_size": True}, "hidden_size: True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 (a whole number from 1 to 4096)"),
        ({"vocab_size": -1}, "vocab_size: -1"),
        ({"num_attention_heads": 3}, "num_attention_heads: 3 (must divide hidden_size 64)"),
        ({"num_attention_heads": 64}, "a head of 1 elements cannot rotate"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 (must divide num_attention_heads 4)"),
        ({"head_dim": 32}, "self_attn.q_proj.weight: shape [64, 64] (config.json says [128, 64])"),
        ({"head_dim": 15}, "a head of 15 elements cannot rotate"),
        ({"head_dim": 2048}, "head_dim: 2048 (a whole number from 1 to 1024)"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: nan"),
        ({"rms_norm_eps": False}, "rms_norm_eps: False"),
        ({"rope_theta": float("inf")}, "rope_theta: inf"),
        ({"rope_theta": 10**400}, "rope_theta: 1000"),
        (
            {"rope_scaling": {"rope_type": "mrope", "factor": 2}},
            "rope_type: 'mrope' (rope scaling: supported are linear, llama3, yarn, longrope, dynamic)",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 0}}, "factor: 0"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1] * 8}}, "long_factor: missing"),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1] * 7, "long_factor": [1] * 8}},
            "short_factor: [1, 1, 1, 1, 1, 1, 1] (a list of 8 numbers)",
        ),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1] * 8, "long_factor": [1] * 7 + [-1]}},
            "long_factor[7]: -1",
        ),
        ({"rope_scaling": {"type": "linear"}}, "factor: missing"),
        ({"rope_scaling": "linear"}, "rope_scaling: 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
        ({"attention_bias": True}, "no model.layers.0.self_attn.q_proj.bias"),
        ({"mlp_bias": True}, "mlp_bias: True (an FFN with biases is not supported)"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: 'no'"),
        ({"hidden_size": 128}, "shape [40, 64] (config.json says [40, 128])"),
        ({"intermediate_size": 64}, "mlp.gate_proj.weight: shape [96, 64] (config.json says [64, 64])"),
        ({"vocab_size": 2**31 - 1}, "shape [40, 64] (config.json says [2147483647, 64])"),
        ({"num_key_value_heads": 4}, "self_attn.k_proj.weight: shape [32, 64]"),
        ({"num_hidden_layers": 3}, "no model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "also model.layers.1."),
    ],
)
def test_configs_that_are_refused(llama: MakeLlama, out: Path, changes: dict[str, Any], text: str) -> None:
    model = llama()
    model.rewrite(**changes)
    assert text in str(refusal(model.folder, out))


def test_biases_are_not_dropped(llama: MakeLlama, save: Save, out: Path) -> None:
    model = llama()
    name = "model.layers.0.self_attn.q_proj.bias"
    save(model.folder / "model.safetensors", model.weights | {name: np.zeros(64, np.float16)})
    assert f"also {name}" in str(refusal(model.folder, out))


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}, "element type I32 (F32, F16 or BF16)"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "4 bytes (shape [2] of F32 takes 8)"),
        ({"dtype": "F32", "shape": [2**62, 4, 4], "data_offsets": [0, 8]}, "takes 295147905179352825856"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "none of them negative"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "-8 bytes"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, "starts at byte 4"),
        ({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}, "needs a shape"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0]}, "needs a shape"),
        ({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}, "element type"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "its header describes"),
        ("F32", "needs a shape"),
    ],
)
def test_damaged_safetensors(llama: MakeLlama, out: Path, entry: Any, text: str) -> None:
    model = llama()
    header = json.dumps({"a": entry}).encode()
    (model.folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert text in str(refusal(model.folder, out))


def test_every_short_safetensors_file(llama: MakeLlama, out: Path) -> None:
    model = llama()
    file = model.folder / "model.safetensors"
    content = file.read_bytes()
    for length in [*range(200), len(content) // 2, len(content) - 1]:
        file.write_bytes(content[:length])
        assert "model.safetensors" in str(refusal(model.folder, out))
    file.write_bytes(struct.pack("<Q", 2**63) + content[8:])
    assert "header of 9223372036854775808 bytes" in str(refusal(model.folder, out))


def test_a_file_cut_while_it_is_converted(llama: MakeLlama, out: Path) -> None:
    model = llama()
    file = model.folder / "model.safetensors"

    def cut(*_: object) -> None:
        os.truncate(file, file.stat().st_size - 100)

    assert "were there when it was opened" in str(refusal(model.folder, out, progress=cut))


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


@pytest.mark.parametrize("outtype", ["q9_0", "F16", ""])
def test_unknown_types(llama: MakeLlama, out: Path, outtype: str) -> None:
    error = refusal(llama().folder, out, outtype=outtype)
    assert isinstance(error, SettingError)
    assert "one of f32, f16, bf16, q8_0, q6_k, " in str(error)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.model", "activation/activation_1.npy"]
)
def test_the_output_is_an_input(llama: MakeLlama, name: str) -> None:
    model = llama()
    (model.folder / "activation").mkdir()
    for i in range(2):
        np.save(model.folder / "activation" / f"activation_{i}.npy", np.zeros(96))
    error = refusal(model.folder, model.folder / name, force=True)
    assert "is the input" in str(error)
    assert error.exit_code == 2


def test_the_output_is_a_predictor(llama: MakeLlama, folder: Path) -> None:
    file = folder / "model_1.pt"
    before = file.read_bytes()
    with pytest.raises(SettingError, match="is the input"):
        convert(llama(hidden_act="relu").folder, folder, file, "f16", force=True)
    assert file.read_bytes() == before


def test_an_existing_output(llama: MakeLlama, out: Path) -> None:
    model = llama()
    out.parent.mkdir()
    out.write_bytes(b"old")
    assert "use --force to overwrite it" in str(refusal(model.folder, out))
    convert(model.folder, None, out, "f16", force=True)
    assert out.read_bytes()[:4] == b"GGUF"


def test_a_disk_that_fills_up(llama: MakeLlama, out: Path) -> None:
    out.parent.mkdir()
    out.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    error = refusal(llama().folder, out, progress=full, force=True)
    assert isinstance(error, DoesNotFitError)
    assert "No space left on device (nothing was kept); free some disk" in str(error)


INTERRUPTED = """
import sys, time
from pathlib import Path
from hotcold.gguf_io.convert.conversion import convert

def wait(*_):
    print("half-way", flush=True)
    time.sleep(60)

convert(Path(sys.argv[1]), None, Path(sys.argv[2]), "f16", force=True, progress=wait)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_half_way(llama: MakeLlama, out: Path) -> None:
    out.parent.mkdir()
    out.write_bytes(b"old")
    command = [sys.executable, "-c", INTERRUPTED, str(llama().folder), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"half-way\n"
    assert len(list(out.parent.iterdir())) == 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    assert [(path.name, path.read_bytes()) for path in out.parent.iterdir()] == [("out.gguf", b"old")]


def test_a_huge_index_of_layers_is_refused_fast(llama: MakeLlama, out: Path, folder: Path) -> None:
    model = llama(hidden_act="relu")
    model.rewrite(num_hidden_layers=4096)
    start = time.monotonic()
    text = str(refusal(model.folder, out, folder))
    assert "4094 missing" in text
    assert text.endswith("; and 4074 more")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.model", "model.safetensors", "tokenizer_config.json"]
)
def test_random_damage_gives_one_of_our_errors(llama: MakeLlama, out: Path, name: str) -> None:
    """A seeded mutator: flipped, cut, inserted and overwritten bytes; a conversion or a HotcoldError."""
    model = llama()
    file = model.folder / name
    (model.folder / "tokenizer_config.json").write_text(
        '{"bos_token": {"content": "<s>"}, "add_bos_token": true}'
    )
    content = file.read_bytes()
    head = min(len(content), 2000)
    random = np.random.default_rng(3)
    out.parent.mkdir()
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        at = int(random.integers(head))
        change = int(random.integers(4))
        if change == 0:
            damaged[at] ^= 1 << int(random.integers(8))
        elif change == 1:
            del damaged[at : at + int(random.integers(1, 9))]
        elif change == 2:
            damaged[at:at] = random.bytes(3)
        else:
            damaged[at : at + 8] = struct.pack("<Q", (0, 2**31, 2**63, 2**64 - 1)[int(random.integers(4))])
        file.write_bytes(damaged)
        try:
            convert(model.folder, None, out, "q4_0", force=True)
        except HotcoldError:
            refused += 1
    assert refused > 50
