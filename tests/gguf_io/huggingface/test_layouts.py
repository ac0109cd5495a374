"""What is written for each layout, and which models of a known kind are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_models
import hf_shapes
import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.engine.model.load import load_model
from hotcold.errors import HotcoldError
from hotcold.gguf_io import GGUFFile, blocks, open_gguf
from hotcold.gguf_io.convert.conversion import convert

MakeModel = Callable[..., Any]  # the fixture hf_model

KINDS = list(hf_shapes.CONFIGS)
DATA = Path(__file__).parents[2] / "data" / "powerinfer"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "out.gguf"


def numbers(file: GGUFFile, name: str) -> NDArray[np.float32]:
    info = file.tensors[name]
    return blocks.dequantize(file.data(name), info.type).reshape(info.shape)


def refusal(folder: Path, out: Path, predictors: Path | None = None) -> str:
    """The error's text; nothing is left behind."""
    with pytest.raises(HotcoldError) as caught:
        convert(folder, predictors, out, "f16")
    assert list(out.parent.iterdir()) == []
    assert caught.value.exit_code == 3
    return str(caught.value)


def saved_predictors(model: Any, folder: Path) -> Path:
    path = folder / "predictors.safetensors"
    hf_models.save_safetensors(path, hf_models.predictors_of(model))
    return path


@pytest.mark.parametrize("kind", ["llama", "bamboo", "falcon-7b", "falcon-40b", "opt"])
def test_names_are_those_of_powerinfers_files(
    hf_model: MakeModel, tmp_path: Path, out: Path, kind: str
) -> None:
    """A layer's names, dimensions and types; falcon's recording has a layer of both kinds."""
    architecture = kind.split("-")[0]
    changes = {"llama": {"hidden_act": "relu"}, "falcon": {"activation": "relu"}}.get(architecture, {})
    model = hf_model(kind, **changes)
    convert(model.folder, saved_predictors(model, tmp_path), out, "f16")
    layer = "blk.1." if kind == "falcon-40b" else "blk.0."
    with open_gguf(DATA / f"{architecture}-f16.powerinfer.gguf") as recorded, open_gguf(out) as made:
        assert made.metadata["general.architecture"] == architecture
        shapes = [
            {n: (len(t.ne), t.type) for n, t in file.tensors.items() if n.startswith(layer) or "blk" not in n}
            for file in (recorded, made)
        ]
        assert shapes[0] == shapes[1]
        ours = {"vocab_size", "rope.dimension_count", "rope.freq_base", "attention.layer_norm_epsilon"}
        keys = [
            {key.partition(".")[2] for key in file.metadata if key.startswith(f"{architecture}.")}
            for file in (recorded, made)
        ]
        assert keys[0] <= keys[1] <= keys[0] | ours


def test_metadata_of_granite_and_gemma3(hf_model: MakeModel, out: Path) -> None:
    convert(hf_model("granite", "granite").folder, None, out, "f16")
    with open_gguf(out) as file:
        scales = [
            file.metadata[f"granite.{key}"] for key in ("embedding_scale", "residual_scale", "logit_scale")
        ]
        assert scales == [6.0, pytest.approx(0.4), 4.0]
        assert file.metadata["granite.attention.scale"] == pytest.approx(0.12)
    out.unlink()
    convert(hf_model("gemma3", "gemma3").folder, None, out, "f16")
    with open_gguf(out) as file:
        assert file.metadata["gemma3.attention.sliding_window"] == 4
        assert file.metadata["gemma3.attention.key_length"] == 24
        assert not {"gemma3.rope.freq_base_swa", "gemma3.attention.sliding_window_pattern"} & {*file.metadata}


def test_layers_of_gemma3_in_any_order(hf_model: MakeModel, out: Path) -> None:
    kinds = ["full_attention", *["sliding_attention"] * 5, "full_attention"]
    convert(hf_model("gemma3", layer_types=kinds).folder, None, out, "f16")
    with open_gguf(out) as file:
        windows = load_model(file).windows
        assert windows is not None and windows.layers == (False, *[True] * 5, False)


@pytest.mark.parametrize("newer", [False, True])
def test_the_text_model_of_one_that_reads_images(hf_model: MakeModel, tmp_path: Path, newer: bool) -> None:
    """Its own numbers and names; the tower of images is left out, and that is said."""
    text, both = hf_model("gemma3", "same"), hf_model("gemma3", "both/same")
    convert(text.folder, None, tmp_path / "text.gguf", "f16")
    both.rewrite(**{name: None for name in both.config})
    own = {name: value for name, value in both.config.items() if name != "architectures"}
    outer = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": own}
    (both.folder / "config.json").write_text(json.dumps(outer))

    def renamed(name: str) -> str:
        if newer:
            return name.replace("model.", "model.language_model.", 1)
        return f"language_model.{name}"

    tower = ("model." if newer else "") + "vision_tower.vision_model.embeddings.patch_embedding.weight"
    images = {tower: np.ones((3, 5), np.float16)}
    both.save({renamed(name): numbers for name, numbers in both.weights.items()} | images)
    summary = convert(both.folder, None, tmp_path / "both.gguf", "f16")
    assert summary.warnings == ("what reads images is left out: hotcold runs the text model",)
    assert (tmp_path / "both.gguf").read_bytes() == (tmp_path / "text.gguf").read_bytes()


def test_metadata_of_falcon_and_opt(hf_model: MakeModel, out: Path) -> None:
    convert(hf_model("falcon-40b", "falcon").folder, None, out, "f16")
    with open_gguf(out) as file:
        own = {key: value for key, value in file.metadata.items() if key.startswith("falcon.")}
        assert own == {
            "falcon.vocab_size": 40,
            "falcon.context_length": 2048,
            "falcon.embedding_length": 64,
            "falcon.block_count": 2,
            "falcon.feed_forward_length": 96,
            "falcon.attention.head_count": 4,
            "falcon.attention.head_count_kv": 2,
            "falcon.attention.layer_norm_epsilon": pytest.approx(1e-5),
            "falcon.tensor_data_layout": "jploski",
            "falcon.rope.dimension_count": 16,
            "falcon.rope.freq_base": 10000.0,
        }
        assert "hotcold.ffn_activation" not in file.metadata
        assert "blk.0.ffn_down.weight" in file.tensors
    convert(hf_model("opt", "opt").folder, None, out, "f16", force=True)
    with open_gguf(out) as file:
        own = {key: value for key, value in file.metadata.items() if key.startswith("opt.")}
        assert own == {
            "opt.vocab_size": 40,
            "opt.context_length": 128,
            "opt.embedding_length": 64,
            "opt.block_count": 2,
            "opt.feed_forward_length": 96,
            "opt.attention.head_count": 4,
            "opt.attention.head_count_kv": 4,
            "opt.attention.layer_norm_epsilon": pytest.approx(1e-5),
        }
        assert file.metadata["hotcold.ffn_activation"] == "relu"
        assert {"blk.1.ffn_down_t.weight", "blk.1.ffn_down_t.bias"} <= set(file.tensors)


def test_stacked_rows(hf_model: MakeModel, out: Path) -> None:
    """Two groups of two queries, a key and a value, 16 rows each, written out one by one."""
    model = hf_model("falcon-40b", dtype="float32")
    convert(model.folder, None, out, "f32")
    fused = model.value("transformer.h.1.self_attention.query_key_value.weight")
    heads = [fused[16 * i : 16 * i + 16] for i in range(8)]
    wanted = np.concatenate([heads[i] for i in (0, 1, 4, 5, 2, 6, 3, 7)])
    with open_gguf(out) as file:
        assert np.array_equal(numbers(file, "blk.1.attn_qkv.weight"), wanted)


def test_llama_3s_frequencies(hf_model: MakeModel, out: Path) -> None:
    """Llama 3.1's numbers; the factors of its middle waves lie between 1 and 8."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = hf_model(
        "llama", num_attention_heads=1, num_key_value_heads=1, rope_theta=500000.0, rope_scaling=scaling
    )
    convert(model.folder, None, out, "f16")
    with open_gguf(out) as file:
        factors = numbers(file, "rope_freqs.weight").reshape(-1)
        assert "llama.rope.scaling.type" not in file.metadata
    assert factors.shape == (32,)
    waves = 2 * np.pi * 500000.0 ** (np.arange(32) / 32)
    assert (factors[waves < 2048] == 1).all()
    assert (factors[waves > 8192] == 8).all()
    assert ((factors > 1) & (factors < 8)).sum() == ((waves > 2048) & (waves < 8192)).sum() > 0


@pytest.mark.parametrize("model_type", ["RefinedWeb", "RefinedWebModel"])
def test_falcon_by_its_first_name(hf_model: MakeModel, tmp_path: Path, out: Path, model_type: str) -> None:
    new = model_type == "RefinedWeb"
    model = hf_model("falcon-40b" if new else "falcon-7b")
    convert(model.folder, None, tmp_path / "today.gguf", "f16")
    old = {
        "model_type": model_type,
        "architectures": ["RWForCausalLM"],
        "n_layer": 2,
        "n_head": 4,
        "n_head_kv": 2 if new else None,
    }
    gone = ("num_hidden_layers", "num_attention_heads", "num_kv_heads", "new_decoder_architecture")
    model.rewrite(**old, **dict.fromkeys(gone))
    convert(model.folder, None, out, "f16")
    assert out.read_bytes() == (tmp_path / "today.gguf").read_bytes()


@pytest.mark.parametrize(
    ("kind", "prefix"), [("opt", "model."), ("llama", "model."), ("falcon-7b", "transformer.")]
)
def test_checkpoints_of_the_bare_model(
    hf_model: MakeModel, tmp_path: Path, out: Path, kind: str, prefix: str
) -> None:
    model = hf_model(kind)
    convert(model.folder, None, tmp_path / "whole.gguf", "f16")
    model.save({name.removeprefix(prefix): stored for name, stored in model.weights.items()})
    convert(model.folder, None, out, "f16")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_falcons_head_is_its_own_where_it_has_one(hf_model: MakeModel, out: Path) -> None:
    model = hf_model("falcon-7b")
    convert(model.folder, None, out, "f16")
    with open_gguf(out) as file:
        assert np.array_equal(numbers(file, "output.weight"), model.value("lm_head.weight"))
    model.save({name: stored for name, stored in model.weights.items() if name != "lm_head.weight"})
    convert(model.folder, None, out, "f16", force=True)
    with open_gguf(out) as file:
        assert "output.weight" not in file.tensors


def test_a_bamboo_that_calls_itself_mistral(hf_model: MakeModel, tmp_path: Path, out: Path) -> None:
    model = hf_model("bamboo")
    convert(model.folder, None, tmp_path / "bamboo.gguf", "f16")
    model.rewrite(model_type="mistral")
    convert(model.folder, None, out, "f16")
    assert out.read_bytes() == (tmp_path / "bamboo.gguf").read_bytes()


def test_a_sliding_window_is_reported(hf_model: MakeModel, out: Path) -> None:
    model = hf_model("mistral", sliding_window=64)
    (warning,) = convert(model.folder, None, out, "f16").warnings
    assert warning.startswith("sliding_window 64 is not kept")
    for window in (128, None):
        model.rewrite(sliding_window=window)
        assert convert(model.folder, None, out, "f16", force=True).warnings == ()


def test_what_powerinfer_lacks_is_reported(hf_model: MakeModel, tmp_path: Path, out: Path) -> None:
    found = {}
    for kind, changes in (
        ("opt", {}),
        ("qwen2", {"hidden_act": "relu"}),
        ("llama", {"hidden_act": "relu", "tie_word_embeddings": True}),
        ("falcon-7b", {}),
    ):
        model = hf_model(kind, kind, **changes)
        predictors = saved_predictors(model, tmp_path)
        found[kind] = convert(model.folder, predictors, out, "f16", force=True).warnings
        with open_gguf(out) as file:
            assert file.is_powerinfer
    assert "PowerInfer itself needs 2048 positions, not 128; hotcold does not" in found["opt"]
    assert "PowerInfer itself does not know qwen2, hotcold does" in found["qwen2"]
    assert any("looks for output.weight" in text for text in found["llama"])
    assert "config.json names no activation: ReLU is taken, since there are predictors" in found["falcon-7b"]


@pytest.mark.sample(4)
@pytest.mark.parametrize("kind", KINDS)
def test_each_tensor_is_needed_in_its_shape_and_type(hf_model: MakeModel, out: Path, kind: str) -> None:
    """For every tensor of a layer and every one outside: missing, of another shape, of another type."""
    model = hf_model(kind)
    tied_by_weights = {"lm_head.weight"} if "tie_word_embeddings" not in model.config else set()
    for name, stored in model.weights.items():
        if ".1." in name:
            continue
        others = {n: w for n, w in model.weights.items() if n != name}
        if name not in tied_by_weights:
            model.save(others)
            assert f"no {name}" in refusal(model.folder, out)
        model.save(others | {name: np.zeros((*stored.shape[:-1], stored.shape[-1] + 1), np.float16)})
        assert f"{name}: shape" in refusal(model.folder, out)
    model.save(model.weights | {"more.weight": np.zeros(3, np.float16)})
    assert "also more.weight" in refusal(model.folder, out)
    model.save(model.weights)
    path = model.folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F16"', b'"I16"', 1))
    assert "element type I16 (F32, F16 or BF16)" in refusal(model.folder, out)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "falcon-7b"])
def test_a_head_that_is_missing_is_the_embedding_unless_config_says_otherwise(
    hf_model: MakeModel, out: Path, kind: str
) -> None:
    model = hf_model(kind)
    model.save({name: stored for name, stored in model.weights.items() if name != "lm_head.weight"})
    convert(model.folder, None, out, "f16")
    with open_gguf(out) as file:
        assert load_model(file).output.name == "token_embd.weight"
    out.unlink()
    model.rewrite(tie_word_embeddings=False)
    assert "no lm_head.weight" in refusal(model.folder, out)


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        ("falcon-7b", {"alibi": True}, "alibi: True (positions by ALiBi are not supported)"),
        ("falcon-7b", {"model_type": "RefinedWebModel", "architectures": ["RWForCausalLM"], "alibi": True}, "ALiBi"),
        ("falcon-7b", {"bias": True}, "bias: True"),
        ("falcon-7b", {"parallel_attn": False}, "parallel_attn: False"),
        ("falcon-7b", {"activation": "silu"}, "activation: 'silu' (supported: gelu"),
        ("falcon-7b", {"num_attention_heads": 7}, "num_attention_heads: 7 (must divide hidden_size 64)"),
        ("falcon-7b", {"hidden_size": 128}, "(config.json says [40, 128])"),
        ("falcon-7b", {"multi_query": False, "num_kv_heads": 2}, "query_key_value.weight: shape [96, 64]"),
        ("falcon-7b", {"new_decoder_architecture": True}, "no transformer.h.0.ln_mlp.weight"),
        ("falcon-7b", {"layer_norm_epsilon": -1}, "layer_norm_epsilon: -1"),
        ("falcon-40b", {"num_kv_heads": 3}, "num_kv_heads: 3 (must divide num_attention_heads 4)"),
        ("falcon-40b", {"new_decoder_architecture": None}, "no transformer.h.0.input_layernorm.weight"),
        ("falcon-40b", {"num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn: 3"),
        ("falcon-40b", {"ffn_hidden_size": None}, "shape [96, 64] (config.json says [256, 64])"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before: False (norms behind"),
        ("opt", {"word_embed_proj_dim": 32}, "word_embed_proj_dim: 32 (an embedding of another size"),
        ("opt", {"activation_function": "gelu"}, "activation_function: 'gelu' (supported: relu)"),
        ("opt", {"enable_bias": False}, "enable_bias: False"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine: False"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm: True"),
        ("opt", {"max_position_embeddings": 64}, "shape [130, 64] (config.json says [66, 64])"),
        ("opt", {"ffn_dim": None}, "ffn_dim: missing"),
        ("opt", {"tie_word_embeddings": False}, "no lm_head.weight"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window: True"),
        ("qwen2", {"num_key_value_heads": 4}, "self_attn.k_proj.weight: shape [32, 64]"),
        ("mistral", {"attention_bias": True}, "attention_bias: True"),
        ("mistral", {"sliding_window": "yes"}, "sliding_window: 'yes'"),
        ("bamboo", {"hidden_act": "silu"}, "hidden_act: 'silu' (supported: relu)"),
        ("llama", {"architectures": ["FalconForCausalLM"]}, "model_type says LlamaForCausalLM"),
        ("opt", {"architectures": ["Qwen2ForCausalLM"]}, "model_type says OPTForCausalLM"),
        ("bamboo", {"architectures": ["MistralForCausalLM"]}, "model_type says BambooForCausalLM"),
        ("llama", {"architectures": "LlamaForCausalLM"}, "architectures: 'LlamaForCausalLM' (a list)"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor: missing"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(
    hf_model: MakeModel, out: Path, kind: str, changes: dict[str, Any], text: str
) -> None:
    model = hf_model(kind)
    model.rewrite(**changes)
    assert text in refusal(model.folder, out)


def test_predictors_for_gelu(hf_model: MakeModel, tmp_path: Path, out: Path) -> None:
    model = hf_model("falcon-7b", activation="gelu")
    text = refusal(model.folder, out, saved_predictors(model, tmp_path))
    assert "activation: gelu (predictors belong to a ReLU model)" in text


@pytest.mark.sample(4)
@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_of_a_config_gives_one_of_our_errors(hf_model: MakeModel, out: Path, kind: str) -> None:
    """One or two values of config.json become something else, or go."""
    model = hf_model(kind)
    random = np.random.default_rng(11)
    others: list[Any] = [None, -1, 0, 1, 3, 64, 2**70, 0.5, "x", True, False, [], {}, ["x"], {"factor": 2}]
    more = [
        "rope_scaling",
        "rope_parameters",
        "rope_theta",
        "head_dim",
        "tie_word_embeddings",
        "sliding_window",
    ]
    names = [*model.config, *more]
    refused = 0
    for _ in range(120):
        changes = {
            names[int(random.integers(len(names)))]: others[int(random.integers(len(others)))]
            for _ in range(int(random.integers(1, 3)))
        }
        model.rewrite(**changes)
        try:
            convert(model.folder, None, out, "f16", force=True)
        except HotcoldError:
            refused += 1
        assert [path.name for path in out.parent.iterdir()] in ([], [out.name])
    assert refused > 30
