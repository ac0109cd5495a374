"""Converted models of every layout: the engine's logits against a NumPy forward of the original."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_models
import hf_shapes
import numpy as np
import pytest
from hf_forward import forward
from numpy.typing import NDArray

from hotcold import load
from hotcold.engine.model.load import load_model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.errors import FileError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert

MakeModel = Callable[..., Any]  # the fixture hf_model

IDS = np.array([1, 30, 4, 7, 39, 30, 2, 11, 0, 25], np.int32)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [1.0, 1.1, 1.5, 2.0, 3.0, 5.0, 8.0, 9.0],
    "original_max_position_embeddings": 16,
}
DENSE: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True}),
    ("llama", {"tie_word_embeddings": True, "rope_theta": 5e5}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    ("llama", {"rope_scaling": LLAMA3}),
    ("llama", {"head_dim": 24}),
    ("mistral", {"head_dim": 8, "num_attention_heads": 6, "num_key_value_heads": 3}),
    ("qwen2", {"head_dim": 40}),
    ("llama", {"rope_scaling": YARN}),
    ("qwen2", {"rope_scaling": YARN | {"beta_fast": 4, "beta_slow": 2, "attention_factor": 0.9}}),
    ("llama", {"rope_scaling": YARN | {"truncate": False}, "rope_theta": 500.0}),
    ("llama", {"rope_scaling": LONGROPE, "max_position_embeddings": 128}),
    ("mistral", {"rope_scaling": LONGROPE | {"attention_factor": 1.25}, "head_dim": 16}),
    ("mistral", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {}),
    ("qwen3", {"tie_word_embeddings": True, "head_dim": 16}),
    ("phi3", {}),
    ("phi3", {"partial_rotary_factor": 0.75}),
    ("phi3", {"rope_scaling": LONGROPE | {"type": "su"}, "max_position_embeddings": 128}),
    ("granite", {}),
    ("granite", {"tie_word_embeddings": True, "attention_bias": True}),
    ("gemma3", {}),
    ("gemma3", {"tie_word_embeddings": True, "sliding_window_pattern": 2, "rope_local_base_freq": 500.0}),
    ("mixtral", {}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"tie_word_embeddings": True}),
    ("qwen2_moe", {}),
    ("olmoe", {}),
    ("granite_moe", {}),
    ("granite_moe", {"shared_intermediate_size": 0, "model_type": "granitemoe", "architectures": None}),
    ("gpt_oss", {}),
    ("falcon-7b", {}),
    ("falcon-7b", {"multi_query": False}),
    ("falcon-40b", {}),
    ("falcon-40b", {"num_ln_in_parallel_attn": 1, "rope_theta": 500042.0}),
    ("falcon-40b", {"tie_word_embeddings": True}),
]
RELU_EXPERTS: list[tuple[str, dict[str, Any]]] = [
    ("smallthinker", {}),
    ("smallthinker", {"moe_primary_router_apply_softmax": True}),
]
RELU: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"hidden_act": "relu"}),
    ("mistral", {"hidden_act": "relu"}),
    ("bamboo", {}),
    ("qwen2", {"hidden_act": "relu"}),
    ("falcon-7b", {"activation": "relu"}),
    ("falcon-40b", {"activation": "relu"}),
    ("opt", {}),
]


def check(path: Path, sparsity: str, wanted: NDArray[np.float64]) -> None:
    """float32 against float64: 1e-5 of the logits' size, token by token and all at once."""
    with (
        open_gguf(path) as file,
        Executor(plan_for_cpu(load_model(file), Wanted(sparsity, 32, len(IDS), "f32")), file, 2) as executor,
    ):
        assert not executor.model.warnings
        for step in (1, len(IDS)):
            logits = np.zeros(wanted.shape, np.float32)
            for i in range(0, len(IDS), step):
                executor.run(IDS[i : i + step], i, logits[i : i + step])
            error = np.sqrt(((logits - wanted) ** 2).sum() / (wanted**2).sum())
            assert error < 1e-5


@pytest.mark.parametrize(("kind", "changes"), [*DENSE, *RELU, *RELU_EXPERTS])
def test_without_predictors(hf_model: MakeModel, tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    model = hf_model(kind, dtype="float32", **changes)
    summary = convert(model.folder, None, tmp_path / "out.gguf", "f32")
    wanted = forward(model, IDS)
    assert summary.sparse == ((kind, changes) in [*RELU, *RELU_EXPERTS])
    for sparsity in ("off", "exact") if summary.sparse else ("off",):
        check(tmp_path / "out.gguf", sparsity, wanted)


@pytest.mark.parametrize(("kind", "changes"), RELU)
def test_with_predictors(hf_model: MakeModel, tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    model = hf_model(kind, dtype="float32", **changes)
    predictors = hf_models.predictors_of(model)
    folder = tmp_path / "predictors"
    folder.mkdir()
    hf_models.save_safetensors(folder / "predictors.safetensors", predictors)
    (folder / "config.json").write_text('{"sparse_threshold": 0.5}')
    convert(model.folder, folder / "predictors.safetensors", tmp_path / "out.gguf", "f32")
    masked = forward(model, IDS, predictors, 0.5)
    whole = forward(model, IDS)
    assert np.sqrt(((masked - whole) ** 2).sum() / (whole**2).sum()) > 0.05
    check(tmp_path / "out.gguf", "predictor", masked)
    check(tmp_path / "out.gguf", "exact", whole)


@pytest.mark.parametrize("kind", list(hf_shapes.CONFIGS))
@pytest.mark.parametrize("outtype", ["f16", "q4_0"])
def test_converted_models_write_text(hf_model: MakeModel, tmp_path: Path, kind: str, outtype: str) -> None:
    """With rows of 256 for the head's Q6_K."""
    sizes = {"hidden_size": 256, "word_embed_proj_dim": 256} if kind == "opt" else {"hidden_size": 256}
    convert(hf_model(kind, **sizes).folder, None, tmp_path / "out.gguf", outtype)
    head = {"f16": "F16", "q4_0": "Q8_0" if kind.startswith("falcon") else "Q6_K"}[outtype]
    with open_gguf(tmp_path / "out.gguf") as file:
        assert kind == "opt" or file.tensors["output.weight"].type.name == head
    with load(tmp_path / "out.gguf", n_ctx=32) as engine:
        texts = ["".join(engine.generate("一丁丂", 8, temp=0.0, ignore_eos=True)) for _ in range(2)]
    assert texts[0] == texts[1]


def test_a_qwen2_file_without_a_bias_is_refused(hf_model: MakeModel, tmp_path: Path) -> None:
    convert(hf_model("qwen2").folder, None, tmp_path / "out.gguf", "f16")
    content = (tmp_path / "out.gguf").read_bytes()
    (tmp_path / "out.gguf").write_bytes(content.replace(b"blk.1.attn_k.bias", b"blk.1.attn_k.none"))
    with (
        open_gguf(tmp_path / "out.gguf") as file,
        pytest.raises(FileError, match="blk.1.attn_k.bias .*missing"),
    ):
        load_model(file)
