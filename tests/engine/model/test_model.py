"""Models described from good files: hyperparameters, weights by role, warnings."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from hotcold.engine.model.load import load_model
from hotcold.engine.model.model import Model
from hotcold.gguf_io import GGUFFile, TensorInfo, open_gguf

TinyModel = Callable[[str, bool], Path]
T = GGMLQuantizationType


@pytest.fixture
def dense(data: Path) -> Iterator[GGUFFile]:
    """An ordinary model: two layers, n_embd 128, n_ff 352."""
    with open_gguf(data / "llamacpp" / "llama.f32.gguf") as file:
        yield file


@pytest.fixture
def sparse(data: Path) -> Iterator[GGUFFile]:
    """A model with predictors: two layers, n_embd 128, n_ff 1024, rank 32."""
    with open_gguf(data / "powerinfer" / "llama-f16.powerinfer.gguf") as file:
        yield file


def with_metadata(file: GGUFFile, **changes: Any) -> Model:
    """The model after changes of keys `llama.*`, whose dots are written as `__`; None drops a key."""
    metadata = dict(file.metadata)
    for name, value in changes.items():
        key = "llama." + name.replace("__", ".")
        metadata.pop(key, None)
        metadata.update({} if value is None else {key: value})
    file.metadata = metadata
    return load_model(file)


def with_tensors(file: GGUFFile, *infos: TensorInfo) -> Model:
    """The model after entries of the tensor table were exchanged or added."""
    file.tensors = {**file.tensors, **{info.name: info for info in infos}}
    return load_model(file)


def test_hyperparameters_of_an_ordinary_model(dense: GGUFFile) -> None:
    model = load_model(dense)
    hyperparameters = {
        field.name: value
        for field in dataclasses.fields(model)
        if isinstance(value := getattr(model, field.name), int | float | str)
    }
    assert hyperparameters == {
        "architecture": "llama",
        "n_ctx_train": 512,
        "n_embd": 128,
        "n_layer": 2,
        "n_head": 8,
        "n_head_kv": 2,
        "head_dim": 16,
        "n_rot": 16,
        "n_ff": 352,
        "norm_eps": float(np.float32(1e-5)),
        "rope_freq_base": 10000.0,
        "ffn_activation": "silu",
        "sparse_threshold": 0.0,
        "n_vocab": 600,
        "has_predictors": False,
        "sparse_head": True,
    }


def test_weights_of_an_ordinary_model(dense: GGUFFile) -> None:
    model = load_model(dense)
    shapes = {
        field.name: weight.ne
        for field in dataclasses.fields(model.layers[1])
        if (weight := getattr(model.layers[1], field.name)) is not None
    }
    assert shapes == {
        "attn_norm": (128,),
        "attn_q": (128, 128),
        "attn_k": (128, 32),
        "attn_v": (128, 32),
        "attn_output": (128, 128),
        "ffn_norm": (128,),
        "ffn_gate": (128, 352),
        "ffn_up": (128, 352),
        "ffn_down": (352, 128),
    }
    assert model.layers[1].attn_q.name == "blk.1.attn_q.weight"
    assert model.layers[1].down is model.layers[1].ffn_down
    assert (model.token_embd.ne, model.output.ne) == ((128, 600), (128, 600))
    assert model.output.name == "output.weight"
    assert model.output.n_bytes == 4 * 128 * 600
    assert model.rope_freqs is None
    assert model.warnings == ()


def test_a_model_is_frozen(dense: GGUFFile) -> None:
    model = load_model(dense)
    for thing in (model, model.layers[0], model.output):
        with pytest.raises(dataclasses.FrozenInstanceError):
            thing.name = "other"  # type: ignore[misc, union-attr]


def test_powerinfers_magic_means_relu_with_predictors(sparse: GGUFFile) -> None:
    model = load_model(sparse)
    assert (model.ffn_activation, model.has_predictors, model.sparse_threshold) == ("relu", True, 0.5)
    for layer in model.layers:
        assert layer.fc1 is not None and layer.fc2 is not None
        assert (layer.fc1.ne, layer.fc2.ne) == ((128, 32), (32, 1024))
        assert layer.ffn_down is None
        assert layer.down.ne == (128, 1024)
    assert model.warnings == ()


def test_ranks_may_differ_from_layer_to_layer(sparse: GGUFFile) -> None:
    fc1, fc2 = sparse.tensors["blk.1.fc1.weight"], sparse.tensors["blk.1.fc2.weight"]
    model = with_tensors(
        sparse, dataclasses.replace(fc1, ne=(128, 7)), dataclasses.replace(fc2, ne=(7, 1024))
    )
    ranks = [layer.fc1.ne[1] for layer in model.layers if layer.fc1 is not None]
    assert ranks == [32, 7]


def test_a_relu_model_without_predictors(tiny_model: TinyModel) -> None:
    with open_gguf(tiny_model("f32", False)) as file:
        model = load_model(file)
    assert (model.ffn_activation, model.has_predictors) == ("relu", False)
    assert all(layer.fc1 is None and layer.fc2 is None for layer in model.layers)
    assert all(layer.ffn_down is None for layer in model.layers)
    assert model.layers[0].down is model.layers[0].ffn_down_t
    assert model.layers[0].down.ne == model.layers[0].up.ne


def test_a_tied_model_uses_token_embd_twice(data: Path) -> None:
    with open_gguf(data / "llamacpp" / "llama.ropelinear.q8_0.gguf") as file:
        model = load_model(file)
    assert model.output is model.token_embd
    assert model.rope_scaling.freq_scale == 0.25


def test_rope_freqs(recorded: Callable[[str], Path]) -> None:
    with open_gguf(recorded("llamacpp/llama.ropefreqs.f16")) as file:
        model = load_model(file)
    assert model.rope_freqs is not None
    assert model.rope_freqs.ne == (8,)
    assert model.rope_freq_base == 1e6


def test_defaults(dense: GGUFFile) -> None:
    model = with_metadata(dense, rope__freq_base=None, rope__dimension_count=None, attention__key_length=None)
    assert (model.rope_freq_base, model.n_rot, model.head_dim) == (10000.0, 16, 16)


def test_as_many_kv_heads_as_heads_where_none_are_named(data: Path) -> None:
    with open_gguf(data / "powerinfer" / "llama-f16.powerinfer.gguf") as file:
        square = dataclasses.replace(file.tensors["blk.0.attn_q.weight"])
        infos = [
            dataclasses.replace(square, name=f"blk.{i}.{role}.weight")
            for i in (0, 1)
            for role in ("attn_k", "attn_v")
        ]
        with_tensors_of = {info.name: info for info in infos}
        file.tensors = {**file.tensors, **with_tensors_of}
        model = with_metadata(file, attention__head_count_kv=None)
    assert model.n_head_kv == model.n_head == 4


def test_fewer_numbers_are_rotated_than_a_head_has(dense: GGUFFile) -> None:
    assert with_metadata(dense, rope__dimension_count=8).n_rot == 8


def test_heads_wider_than_their_share_of_n_embd(dense: GGUFFile) -> None:
    attention = {
        f"blk.{i}.{role}.weight": ne
        for i in (0, 1)
        for role, ne in {
            "attn_q": (128, 256),
            "attn_k": (128, 64),
            "attn_v": (128, 64),
            "attn_output": (256, 128),
        }.items()
    }
    infos = (dataclasses.replace(dense.tensors[name], ne=ne) for name, ne in attention.items())
    dense.tensors = {**dense.tensors, **{info.name: info for info in infos}}
    model = with_metadata(dense, attention__key_length=32, rope__dimension_count=32)
    assert (model.head_dim, model.n_rot) == (32, 32)


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({}, 1.0),
        ({"rope__scaling__type": "none"}, 1.0),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, 1.0),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 0.0}, 1.0),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 0.0}, 1.0),
        ({"rope__scaling__factor": 0.0}, 1.0),
        ({"rope__scale_linear": 0.0}, 1.0),
        ({"rope__scaling__type": "linear"}, 1.0),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, 0.25),
        ({"rope__scaling__factor": 4.0}, 0.25),
        ({"rope__scale_linear": 2.0}, 0.5),
        ({"rope__scaling__type": "linear", "rope__scale_linear": 2.0}, 0.5),
        ({"rope__scaling__factor": 4.0, "rope__scale_linear": 2.0}, 0.25),
    ],
)
def test_linear_rope_scaling(keys: dict[str, Any], scale: float, dense: GGUFFile) -> None:
    assert with_metadata(dense, **keys).rope_scaling.freq_scale == scale


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_the_recorded_activation(name: str, dense: GGUFFile) -> None:
    dense.metadata = {**dense.metadata, "hotcold.ffn_activation": name}
    assert load_model(dense).ffn_activation == name


def test_numbers_given_once_a_layer(dense: GGUFFile) -> None:
    model = with_metadata(
        dense,
        feed_forward_length=np.array([352, 352], np.int32),
        attention__head_count=np.array([8, 8], np.uint64),
        attention__head_count_kv=np.array([2, 2], np.uint8),
    )
    assert (model.n_ff, model.n_head, model.n_head_kv) == (352, 8, 2)
    assert {type(n) for n in (model.n_ff, model.n_head, model.n_head_kv)} == {int}


def test_types_may_be_mixed(dense: GGUFFile) -> None:
    kinds = {
        "token_embd.weight": T.Q6_K,
        "output.weight": T.Q5_0,
        "blk.0.attn_q.weight": T.Q8_0,
        "blk.0.ffn_up.weight": T.F16,
        "blk.1.ffn_up.weight": T.BF16,
        "blk.1.ffn_down.weight": T.Q4_0,
    }
    model = with_tensors(
        dense, *(dataclasses.replace(dense.tensors[name], type=kind) for name, kind in kinds.items())
    )
    first, second = model.layers
    assert (model.token_embd.type, model.output.type) == (T.Q6_K, T.Q5_0)
    assert (first.attn_q.type, first.up.type) == (T.Q8_0, T.F16)
    assert (second.up.type, second.down.type) == (T.BF16, T.Q4_0)


def test_predictors_may_be_q5_0_and_the_head_q6_k(sparse: GGUFFile) -> None:
    model = with_tensors(
        sparse,
        dataclasses.replace(sparse.tensors["blk.0.fc1.weight"], type=T.Q5_0),
        dataclasses.replace(sparse.tensors["blk.0.fc2.weight"], type=T.Q5_0),
        dataclasses.replace(sparse.tensors["output.weight"], type=T.Q6_K),
    )
    assert model.layers[0].fc2 is not None
    assert (model.layers[0].fc2.type, model.output.type) == (T.Q5_0, T.Q6_K)


def test_unused_tensors_are_named(dense: GGUFFile) -> None:
    extra = dense.tensors["output_norm.weight"]
    model = with_tensors(dense, dataclasses.replace(extra, name="blk.2.attn_norm.weight"))
    assert model.warnings == ("llama.f32.gguf: nothing uses the tensors blk.2.attn_norm.weight",)


def test_many_unused_tensors_are_counted(dense: GGUFFile) -> None:
    extra = dense.tensors["output_norm.weight"]
    model = with_tensors(dense, *(dataclasses.replace(extra, name=f"extra.{i}") for i in range(10)))
    (warning,) = model.warnings
    assert "extra.0, extra.1, extra.2 and 7 more" in warning


def test_the_files_own_warnings_are_kept(dense: GGUFFile) -> None:
    dense.warnings = ("something odd",)
    assert load_model(dense).warnings == ("something odd",)
