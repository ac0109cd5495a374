"""Shapes of well-known models."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from hotcold.engine.model.known_shapes import SHAPES
from hotcold.engine.model.load import load_model
from hotcold.engine.model.model import Layer, Weight
from hotcold.engine.model.shapes import like
from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.outtypes import OUTTYPES

DATA = Path(__file__).parents[2] / "data" / "llamacpp"


def weights_of(layer: Layer) -> list[Weight]:
    return [weight for field in fields(layer) if (weight := getattr(layer, field.name)) is not None]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-2-7b", 6.74),
        ("llama-2-13b", 13.02),
        ("llama-2-70b", 68.98),
        ("falcon-40b", 41.84),
        ("opt-30b", 29.97),
        ("llama-3-8b", 8.03),
        ("llama-3-70b", 70.55),
        ("mistral-7b", 7.24),
        ("smollm2-135m", 0.1345),
        ("relullama-7b", 6.74),
        ("bamboo-7b", 7.24),
        ("falcon-7b", 7.217),
        ("falcon-180b", 179.5),
        ("opt-125m", 0.12524),
        ("opt-1.3b", 1.316),
        ("opt-2.7b", 2.652),
        ("opt-6.7b", 6.658),
        ("opt-13b", 12.853),
        ("opt-66b", 65.72),
        ("opt-175b", 174.6),
        ("qwen2-0.5b", 0.494),
        ("qwen2-1.5b", 1.544),
        ("qwen2-7b", 7.616),
        ("qwen2-72b", 72.706),
        ("mixtral-8x7b", 46.70),
        ("mixtral-8x22b", 140.62),
        ("qwen3-30b-a3b", 30.53),
        ("qwen3-235b-a22b", 235.09),
        ("gpt-oss-20b", 20.91),
        ("gpt-oss-120b", 116.83),
        ("smallthinker-21b-a3b", 21.51),
        ("olmoe-7b", 6.919),
        ("qwen2-57b-a14b", 57.41),
        ("qwen3-0.6b", 0.596),
        ("qwen3-1.7b", 1.7206),
        ("qwen3-4b", 4.0225),
        ("qwen3-8b", 8.1907),
        ("qwen3-14b", 14.768),
        ("qwen3-32b", 32.762),
        ("phi-3-mini", 3.821),
        ("phi-3-medium", 13.960),
        ("phi-4-mini", 3.836),
        ("granite-3-2b", 2.534),
        ("granite-3-8b", 8.171),
        ("gemma-3-1b", 0.9999),
        ("gemma-3-4b", 3.880),
        ("gemma-3-12b", 11.766),
        ("gemma-3-27b", 27.009),
    ],
)
def test_parameters_are_those_of_the_model(name: str, billions: float) -> None:
    """As published (Falcon's head is apart from its embedding here, as PowerInfer's files have it)."""
    model = like(f"{name}:f16", 0)
    layers = [weights_of(layer) for layer in model.layers]
    once = (model.token_embd, model.output, model.output_norm, model.output_norm_bias, model.position_embd)
    whole = {weight.name: weight for weight in once if weight is not None}
    weights = [*whole.values(), *(w for layer in layers for w in layer)]
    n = sum(w.n_bytes // (4 if w.type == GGMLQuantizationType.F32 else 2) for w in weights)
    assert n / 1e9 == pytest.approx(billions, rel=0.001)


def test_relu_shapes_have_predictors_and_rows_by_neuron() -> None:
    for name, shape in SHAPES.items():
        model = like(name)
        assert model.has_predictors == (shape.ffn_activation == "relu")
        assert all((la.ffn_down_t is None) != model.has_predictors for la in model.layers)
    assert like("bamboo-7b").layers[0].fc1 == like("bamboo-7b:q8_0").layers[0].fc1
    sparse = like("llama-2-7b", 512)
    assert sparse.ffn_activation == "relu" and sparse.layers[0].fc1 and sparse.layers[0].fc1.ne == (4096, 512)
    assert like("falcon-40b", 0).layers[0].fc1 is None


def test_windows_and_heads_of_a_shape() -> None:
    gemma = like("gemma-3-27b")
    assert [gemma.window(i) for i in range(7)] == [1024] * 5 + [0, 1024]
    assert gemma.layers[0].attn_q.ne == (5376, 4096) and gemma.layers[0].post_ffw_norm is not None
    qwen = like("qwen3-0.6b")
    assert qwen.layers[0].attn_q.ne == (1024, 2048) and qwen.window(0) == 0
    phi = like("phi-3-mini").layers[0]
    assert (phi.ffn_gate and phi.ffn_gate.first_row, phi.ffn_up and phi.ffn_up.first_row) == (0, 8192)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("llama-9", "near it: llama-"),
        ("opt-30b:q3", "known: f32"),
        ("", "no known model"),
        ("opt-30b:i8", "known: f32"),
    ],
)
def test_unknown_ones_are_refused(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        like(text)
    with pytest.raises(SettingError, match="multiple of 32"):
        like("opt-30b", 33)


FIELDS = {
    "architecture": "llama",
    "n_layer": 2,
    "n_embd": 256,
    "n_ff": 512,
    "n_head": 4,
    "n_head_kv": 2,
    "n_vocab": 100,
    "n_ctx_train": 64,
}


def test_any_shape_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(FIELDS | {"type": "q8_0", "ffn_activation": "relu"}))
    model = like(f"@{path}", 64)
    assert (model.n_layer, model.layers[0].attn_q.type.name) == (2, "Q8_0")


@pytest.mark.parametrize(
    "change",
    [
        {"n_layer": 0},
        {"n_layer": "2"},
        {"n_layer": True},
        {"colour": 1},
        {"n_head": 3},
        {"n_ff": 1 << 40},
        {"architecture": "mamba"},
        {"architecture": 7},
        {"ffn_activation": "gelu"},
        {"n_positions": -1},
        {"window": 8},
        {"head_dim": 3},
        {"head_dim": 4096},
    ],
)
def test_bad_files_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(FIELDS | change))
    with pytest.raises(FileError, match="bad.json"):
        like(f"@{path}")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100000, '{"n_layer": 1}'])
def test_what_is_no_shape(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(FileError):
        like(f"@{path}")
    with pytest.raises(FileError, match="No such file"):
        like(f"@{tmp_path}/none.json")


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("qwen3-30b-a3b:q4_k_m", 18.551),
        ("gpt-oss-20b:mxfp4", 12.097),
        ("mixtral-8x7b:q4_0", 26.443),
        ("mixtral-8x7b:q4_k_m", 28.448),
    ],
)
def test_bytes_of_mixtures_of_experts(name: str, gigabytes: float) -> None:
    """The published files have 18.557, 12.110 and 26.44 GB, vocabularies included."""
    model = like(name)
    once = {w.name: w for w in (model.token_embd, model.output, model.output_norm)}
    weights = [*once.values(), *(w for layer in model.layers for w in weights_of(layer))]
    assert sum(w.n_bytes for w in weights) / 1e9 == pytest.approx(gigabytes, rel=1e-3)


def test_types_inside_a_mixture_of_experts() -> None:
    layer = like("gpt-oss-20b:mxfp4").layers[0]
    names = ("attn_q", "ffn_gate_exps", "ffn_gate_inp", "ffn_gate_exps_bias", "attn_sinks")
    assert [getattr(layer, name).type.name for name in names] == ["Q8_0", "MXFP4", "F32", "F32", "F32"]
    mixed = like("qwen3-30b-a3b:q4_k_m")
    assert [mixed.layers[i].down.type.name for i in (0, 6, 47)] == ["Q6_K", "Q4_K", "Q6_K"]
    assert mixed.output.type.name == "Q6_K"


@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize("name", ["llama.f32", "falcon.f16", "qwen2.f16"])
def test_types_are_those_that_a_conversion_gives(tmp_path: Path, name: str, outtype: str) -> None:
    path, shape = DATA / f"{name}.gguf", tmp_path / "shape.json"
    with open_gguf(path) as file:
        model = load_model(file)
    sizes = {field: getattr(model, field) for field in FIELDS}
    norms = model.layers[0].attn_norm_2 is not None or model.architecture != "falcon"
    tied = model.output is model.token_embd
    shape.write_text(json.dumps(sizes | {"type": outtype, "tied": tied, "two_norms": norms}))
    planned = like(f"@{shape}", 0)
    once = [planned.token_embd, planned.output_norm, planned.output_norm_bias]
    once += [] if tied else [planned.output]
    found: dict[str, tuple[GGMLQuantizationType, int]] = {}
    for weight in filter(None, [*once, *(w for layer in planned.layers for w in weights_of(layer))]):
        before = found.get(weight.name, (weight.type, 0))[1]  # where several are stacked in one tensor
        found[weight.name] = weight.type, before + weight.n_bytes
    made = convert(path, None, tmp_path / "out.gguf", outtype, dry_run=True)
    assert found == {tensor.name: (tensor.type, tensor.n_bytes) for tensor in made.tensors}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_expert": 8}, "n_expert_used"),
        ({"n_expert": 8, "n_expert_used": 9}, "n_expert_used"),
        ({"n_expert": 8, "n_expert_used": 2}, "n_ff_exp"),
        ({"architecture": "qwen3moe"}, "n_expert"),
        ({"architecture": "qwen2", "n_expert": 8}, "n_expert"),
        ({"n_ff_shexp": 64}, "n_ff_shexp: 64 .0 without n_expert"),
        ({"n_expert_used": None}, "n_expert_used: None .0 without n_expert"),
        ({"n_ff_exp": "64"}, "n_ff_exp: .64. .0 without n_expert"),
    ],
)
def test_bad_experts_are_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(FIELDS | change))
    with pytest.raises(FileError, match=said):
        like(f"@{path}")


def test_a_router_is_the_predictor_of_experts() -> None:
    with pytest.raises(SettingError, match="router"):
        like("smallthinker-4b-a0.6b", 1024)
