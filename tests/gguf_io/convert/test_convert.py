"""What a conversion writes: names, types, layouts, metadata."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.outtypes import OUTTYPES

T = GGMLQuantizationType
MakeLlama = Callable[..., Any]  # the fixture llama
Save = Callable[[Path, dict[str, NDArray[Any]]], None]  # the fixture save

LAYER = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up"]
RANK = 32


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


def read(path: Path) -> tuple[str, dict[str, Any], dict[str, NDArray[np.float32]], dict[str, str]]:
    """Magic, metadata, tensors as float32, their types; by the gguf package, which knows one magic."""
    content = path.read_bytes()
    plain = path.with_suffix(".plain")
    plain.write_bytes(b"GGUF" + content[4:])
    reader = GGUFReader(plain)
    metadata = {
        name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")
    }
    tensors = {t.name: np.array(dequantize(t.data, t.tensor_type), np.float32) for t in reader.tensors}
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    return content[:4].decode(), metadata, tensors, types


def paired(rows: NDArray[np.float32], n_head: int) -> NDArray[np.float32]:
    """Rows of each head from halves to pairs, written out row by row."""
    size = rows.shape[0] // n_head
    result = np.empty_like(rows)
    for head in range(n_head):
        for i in range(size // 2):
            result[head * size + 2 * i] = rows[head * size + i]
            result[head * size + 2 * i + 1] = rows[head * size + size // 2 + i]
    return result


def expected(llama: Any, down: str) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the file, computed from the source."""
    tensors = {
        "token_embd.weight": llama.value("model.embed_tokens.weight"),
        "output_norm.weight": llama.value("model.norm.weight"),
        "output.weight": llama.value("lm_head.weight"),
    }
    for i in range(2):
        source = {name: llama.value(f"model.layers.{i}.{name}.weight") for name in (
            "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        )}  # fmt: skip
        source["self_attn.q_proj"] = paired(source["self_attn.q_proj"], 4)
        source["self_attn.k_proj"] = paired(source["self_attn.k_proj"], 2)
        if down == "ffn_down_t":
            source["mlp.down_proj"] = source["mlp.down_proj"].T
        tensors |= {f"blk.{i}.{n}.weight": t for n, t in zip([*LAYER, down], source.values(), strict=True)}
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_silu_model_is_llama_cpps_file(llama: MakeLlama, out: Path, dtype: str) -> None:
    model = llama(dtype=dtype)
    summary = convert(model.folder, None, out, "f32")
    magic, metadata, tensors, types = read(out)
    assert magic == "GGUF"
    assert set(types.values()) == {"F32"}
    wanted = expected(model, "ffn_down")
    assert list(tensors) == list(wanted)
    for name, numbers in wanted.items():
        assert np.array_equal(tensors[name], numbers), name
    assert {name: value for name, value in metadata.items() if not name.startswith("tokenizer.")} == {
        "general.architecture": "llama",
        "general.name": "model",
        "general.file_type": 0,
        "general.quantization_version": 2,
        "llama.vocab_size": 40,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
    }
    assert (summary.outfile, summary.architecture, summary.n_tensors) == (out, "llama", len(wanted))
    assert (summary.n_bytes, summary.fell_back, summary.warnings) == (out.stat().st_size, {}, ())
    assert not summary.sparse


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4"])
def test_every_type_is_what_the_gguf_package_makes(llama: MakeLlama, out: Path, outtype: str) -> None:
    from gguf.quants import quantize

    model = llama(dtype="bfloat16")
    convert(model.folder, None, out, outtype)
    wanted = OUTTYPES[outtype][0]
    _, metadata, tensors, types = read(out)
    assert metadata["general.file_type"] == OUTTYPES[outtype][1]
    for name, numbers in expected(model, "ffn_down").items():
        kind = GGMLQuantizationType.F32 if numbers.ndim == 1 else wanted
        if name == "output.weight" and outtype not in ("f32", "f16", "bf16", "q8_0"):
            kind = GGMLQuantizationType.Q8_0  # rows of 64 are too short for Q6_K
        assert types[name] == kind.name, name
        exact = dequantize(quantize(np.ascontiguousarray(numbers), kind), kind)
        assert np.array_equal(tensors[name], exact), name


def test_slabs_do_not_show(llama: MakeLlama, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(hidden_act="relu")
    convert(model.folder, None, out, "q4_0")
    whole = out.read_bytes()
    monkeypatch.setattr("hotcold.gguf_io.convert.tensor_plan.SLAB_ELEMENTS", 200)
    convert(model.folder, None, out, "q4_0", force=True)
    assert out.read_bytes() == whole


def test_a_relu_model_without_predictors(llama: MakeLlama, out: Path) -> None:
    model = llama(hidden_act="relu")
    summary = convert(model.folder, None, out, "f16")
    magic, metadata, tensors, _ = read(out)
    assert magic == "GGUF"
    assert metadata["hotcold.ffn_activation"] == "relu"
    wanted = expected(model, "ffn_down_t")
    assert list(tensors) == list(wanted)
    assert np.array_equal(tensors["blk.1.ffn_down_t.weight"], wanted["blk.1.ffn_down_t.weight"])
    assert tensors["blk.1.ffn_down_t.weight"].shape == (96, 64)
    assert summary.sparse


def predictor_arrays(dtype: str = "<f2") -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(2)
    shapes = {f"layers.{i}.fc{k}.weight": ((RANK, 64), (96, RANK))[k - 1] for i in range(2) for k in (1, 2)}
    return {name: random.integers(0, 9, shape).astype(dtype) for name, shape in shapes.items()}


def check_predictors(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    magic, metadata, tensors, _ = read(path)
    assert magic == "PWRI"
    assert "hotcold.ffn_activation" not in metadata
    for i in range(2):
        assert f"blk.{i}.ffn_down.weight" not in tensors
        assert tensors[f"blk.{i}.ffn_down_t.weight"].shape == (96, 64)
        for k in (1, 2):
            wanted = arrays[f"layers.{i}.fc{k}.weight"].astype(np.float32)
            assert np.array_equal(tensors[f"blk.{i}.fc{k}.weight"], wanted)


def test_predictors_in_a_safetensors_file(llama: MakeLlama, save: Save, out: Path, tmp_path: Path) -> None:
    model = llama(hidden_act="relu")
    save(tmp_path / "p.safetensors", predictor_arrays())
    summary = convert(model.folder, tmp_path / "p.safetensors", out, "f16")
    check_predictors(out, predictor_arrays())
    assert "powerinfer.sparse_threshold" not in read(out)[1]
    assert summary.sparse
    assert summary.n_tensors == 3 + 2 * 11


def powerinfer_folder(folder: Path, torch_program: Any, arrays: dict[str, NDArray[Any]]) -> Path:
    folder.mkdir()
    for i in range(len(arrays) // 2):
        state = {f"fc{k}.weight": arrays[f"layers.{i}.fc{k}.weight"] for k in (1, 2)}
        torch_program.save(folder / f"model_{i}.pt", state)
    return folder


@pytest.mark.parametrize("dtype", ["<f2", "<f4"])
def test_predictors_in_powerinfers_folder(
    llama: MakeLlama, torch_program: Any, out: Path, tmp_path: Path, dtype: str
) -> None:
    model = llama(hidden_act="relu")
    folder = powerinfer_folder(tmp_path / "p", torch_program, predictor_arrays(dtype))
    (folder / "config.json").write_text('{"sparse_threshold": -0.25}')
    convert(model.folder, folder, out, "f16")
    check_predictors(out, predictor_arrays(dtype))
    assert read(out)[1]["powerinfer.sparse_threshold"] == -0.25


def test_bf16_predictors(llama: MakeLlama, torch_program: Any, out: Path, tmp_path: Path) -> None:
    model = llama(hidden_act="relu")
    floats = predictor_arrays("<f4")
    bf16 = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in floats.items()}
    convert(model.folder, powerinfer_folder(tmp_path / "p", torch_program, bf16), out, "f16")
    check_predictors(out, floats)


def test_ranks_may_differ_between_layers(llama: MakeLlama, save: Save, out: Path, tmp_path: Path) -> None:
    arrays = predictor_arrays()
    arrays["layers.1.fc1.weight"] = np.ones((64, 64), np.float16)
    arrays["layers.1.fc2.weight"] = np.ones((96, 64), np.float16)
    save(tmp_path / "p.safetensors", arrays)
    convert(llama(hidden_act="relu").folder, tmp_path / "p.safetensors", out, "f16")
    check_predictors(out, arrays)


@pytest.mark.parametrize(
    ("outtype", "warned"), [("f16", 0), ("q4_0", 0), ("f32", 1), ("bf16", 1), ("q8_0", 1)]
)
def test_warns_where_powerinfer_would_not_run_it(
    llama: MakeLlama, save: Save, out: Path, tmp_path: Path, outtype: str, warned: int
) -> None:
    model = llama(hidden_act="relu", intermediate_size=1024)
    arrays = {
        name: np.zeros((RANK, 64) if "fc1" in name else (1024, RANK), np.float16)
        for name in predictor_arrays()
    }
    save(tmp_path / "p.safetensors", arrays)
    summary = convert(model.folder, tmp_path / "p.safetensors", out, outtype)
    assert len(summary.warnings) == warned
    assert all(
        f"PowerInfer itself computes NaN from {outtype.upper()} files" in text for text in summary.warnings
    )
    assert convert(model.folder, None, out, outtype, force=True).warnings == ()


def test_warns_of_the_small_layers_that_powerinfer_masks_wrongly(
    llama: MakeLlama, save: Save, out: Path, tmp_path: Path
) -> None:
    save(tmp_path / "p.safetensors", predictor_arrays())
    summary = convert(llama(hidden_act="relu").folder, tmp_path / "p.safetensors", out, "f16")
    assert summary.warnings == (
        "PowerInfer itself ignores the mask of layers with 96 neurons, hotcold does not",
    )


def test_rows_that_the_type_does_not_divide_stay_f16(llama: MakeLlama, out: Path) -> None:
    model = llama(intermediate_size=72)
    summary = convert(model.folder, None, out, "q8_0")
    _, _, tensors, types = read(out)
    assert summary.fell_back == {(T.Q8_0, T.F16): ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"
    assert np.array_equal(
        tensors["blk.0.ffn_down.weight"], model.value("model.layers.0.mlp.down_proj.weight")
    )
    assert convert(model.folder, None, out, "f16", force=True).fell_back == {}


def test_a_tied_head(llama: MakeLlama, save: Save, out: Path) -> None:
    model = llama(tie_word_embeddings=True)
    convert(model.folder, None, out, "f16")
    without = out.read_bytes()
    assert "output.weight" not in read(out)[2]
    save(
        model.folder / "model.safetensors",
        model.weights | {"lm_head.weight": model.weights["model.embed_tokens.weight"]},
    )
    convert(model.folder, None, out, "f16", force=True)
    assert out.read_bytes() == without
    convert(model.folder, None, out, "q4_0", force=True)
    types = read(out)[3]
    assert (types["token_embd.weight"], types["blk.0.attn_q.weight"]) == ("Q8_0", "Q4_0")


def test_several_files_with_their_index(llama: MakeLlama, save: Save, out: Path) -> None:
    model = llama()
    convert(model.folder, None, out, "f16")
    single = out.read_bytes()
    split_in_two(model, save)
    convert(model.folder, None, out, "f16", force=True)
    assert out.read_bytes() == single


def test_weights_of_torch(llama: MakeLlama, torch_program: Any, out: Path) -> None:
    """One pytorch_model.bin; two with their index; none of them where there are safetensors."""
    model = llama(dtype="bfloat16")
    convert(model.folder, None, out, "f16")
    single, names = out.read_bytes(), list(model.weights)
    torch_program.save(model.folder / "pytorch_model.bin", {"lm_head.weight": np.zeros(3, np.float32)})
    convert(model.folder, None, out, "f16", force=True)
    assert out.read_bytes() == single
    (model.folder / "model.safetensors").unlink()
    torch_program.save(model.folder / "pytorch_model.bin", model.weights)
    convert(model.folder, None, out, "f16", force=True)
    assert out.read_bytes() == single
    homes = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(homes.values()):
        torch_program.save(model.folder / file, {n: model.weights[n] for n in names if homes[n] == file})
    (model.folder / "pytorch_model.bin").unlink()
    (model.folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": homes}))
    convert(model.folder, None, out, "f16", force=True)
    assert out.read_bytes() == single


def split_in_two(model: Any, save: Save) -> None:
    (model.folder / "model.safetensors").unlink()
    names = list(model.weights)
    homes = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(homes.values()):
        save(model.folder / file, {name: model.weights[name] for name in names if homes[name] == file})
    (model.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 5e5},
        {"rope_scaling": {"rope_type": "linear", "factor": 4}, "rope_theta": 500000},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
    ],
)
def test_rope_settings(llama: MakeLlama, out: Path, changes: dict[str, Any]) -> None:
    convert(llama(**changes).folder, None, out, "f16")
    metadata = read(out)[1]
    assert metadata["llama.rope.freq_base"] == 5e5
    assert metadata["llama.rope.scaling.type"] == "linear"
    assert metadata["llama.rope.scaling.factor"] == 4.0


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4}, "max_position_embeddings": 64},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 1e4}},
    ],
)
def test_scaling_that_gguf_cannot_say_is_left_out_with_a_warning(
    llama: MakeLlama, tmp_path: Path, out: Path, changes: dict[str, Any]
) -> None:
    """Up to the context of training, dynamic scaling is none."""
    model = llama(**changes)
    n_ctx = model.config["max_position_embeddings"]
    (warning,) = convert(model.folder, None, out, "f16").warnings
    assert f"rope scaling dynamic is not kept: beyond {n_ctx} positions" in warning
    plain = llama(max_position_embeddings=n_ctx)
    convert(plain.folder, None, tmp_path / "plain.gguf", "f16")
    assert out.read_bytes() == (tmp_path / "plain.gguf").read_bytes()


def test_activation_counts_go_into_the_file(llama: MakeLlama, torch_program: Any, out: Path) -> None:
    model = llama(hidden_act="relu")
    (model.folder / "activation").mkdir()
    np.save(model.folder / "activation" / "activation_0.npy", np.arange(96))
    torch_program.save(model.folder / "activation" / "activation_1.pt", np.arange(96)[::-1].copy())
    convert(model.folder, None, out, "f16")
    reader = GGUFReader(out)
    for i, counts in enumerate((np.arange(96), np.arange(96)[::-1])):
        field = reader.fields[f"hotcold.activation.{i}"]
        assert [kind.name for kind in field.types] == ["ARRAY", "UINT64"]
        assert field.contents() == counts.tolist()


def test_old_rotary_tables_are_left_out(llama: MakeLlama, save: Save, out: Path) -> None:
    model = llama()
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    save(model.folder / "model.safetensors", model.weights | extra)
    assert convert(model.folder, None, out, "f16").n_tensors == 3 + 2 * 9


def test_numbers_that_would_become_infinite(llama: MakeLlama, save: Save, out: Path) -> None:
    """Refused by the tensor's name, with the types that hold them; NaN in the source is another's fault."""
    model = llama(dtype="float32")
    model.weights["model.layers.0.mlp.up_proj.weight"][3, 3] = -1e6
    model.weights["lm_head.weight"][0, 0] = np.nan
    save(model.folder / "model.safetensors", model.weights)
    nan = "output.weight holds NaN or infinity in the source"
    with pytest.raises(FileError) as caught:
        convert(model.folder, None, out, "f16")
    large = "tensor blk.0.ffn_up.weight: number: -1000000.0 (too large for F16); use --outtype f32 or bf16"
    assert str(caught.value).startswith(large)
    assert not out.exists()
    assert convert(model.folder, None, out, "f32", force=True).warnings == (nan,)
    assert convert(model.folder, None, out, "bf16", force=True).warnings == (nan,)
    assert convert(model.folder, None, out, "q8_0", force=True).warnings == (nan,)
    model.weights["model.layers.0.mlp.up_proj.weight"][3, 3] = 1e9
    save(model.folder / "model.safetensors", model.weights)
    with pytest.raises(FileError, match=r"ffn_up.weight: number: 1000000000.0 .too large for Q8_0"):
        convert(model.folder, None, out, "q8_0", force=True)


def test_progress_reaches_the_end(llama: MakeLlama, out: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    convert(llama().folder, None, out, "f16", progress=lambda *step: heard.append(step))
    done = [step[1] for step in heard]
    assert done == sorted(done)
    assert heard[-1][1] == heard[-1][2] == sum(t.n_bytes for t in GGUFReader(out).tensors)
    assert heard[0][0] == "token_embd.weight"
