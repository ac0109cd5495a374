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
