"""Directories of mixtures of experts: what is stacked, what stays F32, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_models
import numpy as np
import pytest

from hotcold.errors import FileError
from hotcold.gguf_io import blocks, open_gguf
from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.firing_counts import counts_in_metadata
from hotcold.gguf_io.huggingface.stacked import GPT_OSS, GRANITE, taken_apart, widened
from hotcold.gguf_io.huggingface.weights import open_weights
from hotcold.gguf_io.source_tensor import SourceTensor

MakeModel = Callable[..., Any]


def test_experts_are_stacked_in_their_order(hf_model: MakeModel, tmp_path: Path) -> None:
    model = hf_model("qwen3_moe")
    convert(model.folder, None, tmp_path / "out.gguf", "q8_0")
    with open_gguf(tmp_path / "out.gguf") as file:
        info = file.tensors["blk.1.ffn_down_exps.weight"]
        assert info.ne == (32, 64, 5)
        held = blocks.dequantize(file.data(info.name), info.type).reshape(info.shape)
        assert file.tensors["blk.0.ffn_gate_inp.weight"].type.name == "F32"
        assert info.type.name == "Q8_0"
        keys = {k: v for k, v in file.metadata.items() if k.startswith("qwen3moe.expert_")}
    assert keys == {
        "qwen3moe.expert_count": 5,
        "qwen3moe.expert_used_count": 3,
        "qwen3moe.expert_feed_forward_length": 32,
    }
    for e in range(5):
        source = model.value(f"model.layers.1.mlp.experts.{e}.down_proj.weight")
        assert np.abs(held[e] - source).max() < 0.01 * np.abs(source).max()


def test_counts_of_experts_go_into_the_file(hf_model: MakeModel, tmp_path: Path) -> None:
    model, counts = hf_model("qwen3_moe"), np.arange(10, dtype=np.uint64).reshape(2, 5)
    (model.folder / "activation").mkdir()
    for i, layer in enumerate(counts):
        np.save(model.folder / "activation" / f"activation_{i}.npy", layer)
    convert(model.folder, None, tmp_path / "out.gguf", "f16")
    with open_gguf(tmp_path / "out.gguf") as file:
        held = counts_in_metadata(file.metadata, 2, 5)
    assert held is not None and np.array_equal(held, counts)


def test_predictors_of_a_mixture_are_refused(hf_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"its router is the predictor\); convert it without predictors$"):
        convert(hf_model("mixtral").folder, tmp_path / "p.safetensors", tmp_path / "out.gguf", "f16")


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok: 5"),
        ("mixtral", {"num_local_experts": 3}, "also model.layers.0.block_sparse_moe.experts.3"),
        ("mixtral", {"num_local_experts": 5}, "no model.layers.0.block_sparse_moe.experts.4"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
        ("qwen2_moe", {"shared_expert_intermediate_size": None}, "shared_expert_intermediate_size"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv"),
        (
            "smallthinker",
            {"sliding_window_layout": [1, 1], "sliding_window_size": 8},
            "sliding_window_layout",
        ),
        ("smallthinker", {"rope_layout": [0, 1]}, "rope_layout"),
    ],
)
def test_refused(kind: str, changes: dict[str, Any], said: str, hf_model: MakeModel, tmp_path: Path) -> None:
    model = hf_model(kind)
    model.rewrite(**changes)
    with pytest.raises(FileError, match=said):
        convert(model.folder, None, tmp_path / "out.gguf", "f16")
    assert not (tmp_path / "out.gguf").exists()


def test_predictors_beside_experts(hf_model: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "predictors.safetensors"
    hf_models.save_safetensors(path, hf_models.predictors_of(hf_model("llama")))
    with pytest.raises(FileError, match="router is the predictor"):
        convert(hf_model("mixtral", "mixtral").folder, path, tmp_path / "out.gguf", "f16")


def test_experts_that_are_stacked_keep_their_numbers(hf_model: MakeModel, tmp_path: Path) -> None:
    """MXFP4 to MXFP4 changes none: gate and up in turns, pairs of neighbours, scales beside them."""
    model = hf_model("gpt_oss", dtype="float32")
    convert(model.folder, None, tmp_path / "out.gguf", "mxfp4")
    blocks_, scales = (
        model.weights[f"model.layers.1.mlp.experts.gate_up_proj_{n}"] for n in ("blocks", "scales")
    )
    with open_gguf(tmp_path / "out.gguf") as file:
        for part, first in (("gate", 0), ("up", 1)):
            info = file.tensors[f"blk.1.ffn_{part}_exps.weight"]
            assert info.type.name == "MXFP4" and info.ne == (64, 96, 5)
            held = blocks.dequantize(file.data(info.name), info.type).reshape(info.shape)
            for e in range(5):
                assert np.array_equal(held[e], widened(blocks_[e, first::2], scales[e, first::2]))
            biases = file.data(f"blk.1.ffn_{part}_exps.bias").view(np.float32)
            assert np.array_equal(
                biases, model.value("model.layers.1.mlp.experts.gate_up_proj_bias")[:, first::2]
            )
        assert file.metadata["gpt-oss.attention.sliding_window"] == 4
        assert file.metadata["gpt-oss.rope.scaling.type"] == "yarn"
        assert file.tensors["blk.0.attn_q.weight"].type.name == "Q8_0"


def test_gpt_oss_with_plain_numbers_is_the_same(hf_model: MakeModel, tmp_path: Path) -> None:
    """Columns for rows, as transformers keeps them when they are widened."""
    model = hf_model("gpt_oss", dtype="float32")
    convert(model.folder, None, tmp_path / "a.gguf", "f32")
    plain = {}
    for name, stored in model.weights.items():
        if name.endswith("_blocks"):
            scales = model.weights[name.replace("_blocks", "_scales")]
            each = [widened(b, s).T for b, s in zip(stored, scales, strict=True)]
            plain[name.removesuffix("_blocks")] = np.stack(each)
        elif not name.endswith("_scales"):
            plain[name] = stored
    model.save(plain)
    convert(model.folder, None, tmp_path / "b.gguf", "f32")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit: 5.0"),
        ("gpt_oss", {"attention_bias": False}, "attention_bias: False"),
        ("gpt_oss", {"layer_types": ["full_attention"] * 4}, "layer_types"),
        ("gpt_oss", {"num_local_experts": 4}, "experts.gate_up_proj_blocks: shape [5, 192, 2, 16]"),
        ("granite_moe", {"num_local_experts": 5}, "block_sparse_moe.input_linear.weight: shape [4, 64, 64]"),
        ("granite_moe", {"shared_intermediate_size": 32}, "config.json says"),
        ("granite_moe", {"attention_bias": True}, "attention_bias"),
    ],
)
def test_stacked_experts_that_contradict_their_config_are_refused(
    hf_model: MakeModel, tmp_path: Path, kind: str, changes: dict[str, Any], said: str
) -> None:
    model = hf_model(kind)
    model.rewrite(**changes)
    with pytest.raises(FileError) as refused:
        convert(model.folder, None, tmp_path / "out.gguf", "f16")
    assert said in str(refused.value)


def test_blocks_of_mxfp4_in_another_model_are_refused(hf_model: MakeModel, tmp_path: Path) -> None:
    model = hf_model("llama")
    model.save({**model.weights, "model.layers.0.mlp.up_proj_blocks": np.zeros((4, 16), np.uint8)})
    with pytest.raises(FileError, match="quantised by MXFP4"):
        convert(model.folder, None, tmp_path / "out.gguf", "f16")


def test_an_expert_is_read_by_itself(hf_model: MakeModel) -> None:
    """No more than an expert's part of a stacked tensor is in memory."""
    for kind in ("granite_moe", "gpt_oss"):
        model = hf_model(kind)
        files = open_weights(model.folder, "model.", mxfp4=True)
        read: list[int] = []

        def watched(tensor: SourceTensor, read: list[int] = read) -> SourceTensor:
            def entries(first: int, last: int) -> Any:
                read.append(last - first)
                assert tensor.read_entries is not None
                return tensor.read_entries(first, last)

            def whole() -> Any:
                read.append(tensor.shape[0])
                return tensor.read()

            return SourceTensor(tensor.name, tensor.shape, tensor.dtype, whole, entries)

        layout = GPT_OSS if kind == "gpt_oss" else GRANITE
        n_expert = model.config["num_local_experts"]
        parts = taken_apart({name: watched(tensor) for name, tensor in files.items()}, layout, n_expert)
        for name, part in parts.items():
            if ".experts." in name and name.endswith("weight"):
                assert part.read().shape == part.shape
        assert set(read) == {1}
