"""Files of mixtures of experts that are refused: each named, with its value and the bound."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hotcold.engine.model.load import load_model
from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile, open_gguf


def refused(path: Path, change: Callable[[GGUFFile], None], *parts: str) -> None:
    with open_gguf(path) as file:
        change(file)
        with pytest.raises(FileError) as caught:
            load_model(file)
    for part in (path.name, *parts):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key", "value", "bound"),
    [
        ("mixtral.f16", "expert_used_count", 5, "1 to expert_count = 4"),
        ("mixtral.f16", "expert_used_count", 0, "1 to expert_count = 4"),
        ("mixtral.f16", "expert_used_count", None, "missing"),
        ("mixtral.f16", "expert_count", 2**63, "1 to 16384"),
        ("mixtral.f16", "expert_count", -1, "1 to 16384"),
        ("qwen3moe.f16", "expert_count", 0, "1 to 16384"),
        ("qwen3moe.f16", "expert_feed_forward_length", 0, "1 to 1048576"),
        ("qwen3moe.f16", "expert_feed_forward_length", None, "missing"),
        ("qwen2moe.q4_0", "expert_shared_feed_forward_length", None, "missing"),
        ("smallthinker.f16", "expert_gating_func", None, "missing"),
        ("gptoss.mxfp4", "attention.sliding_window", 0, "1 to"),
        ("gptoss.mxfp4", "attention.sliding_window", None, "missing"),
        ("gptoss.mxfp4", "expert_feed_forward_length", None, "missing"),
        ("granitemoe.q8_0", "logit_scale", None, "missing"),
        ("smallthinker.f16", "expert_gating_func", 3, "known: 1 softmax, 2 sigmoid"),
    ],
)
def test_numbers(name: str, key: str, value: int | None, bound: str, data: Path) -> None:
    def change(file: GGUFFile) -> None:
        prefix = file.metadata["general.architecture"]
        metadata = {**file.metadata, f"{prefix}.{key}": value}
        file.metadata = {k: v for k, v in metadata.items() if v is not None}

    refused(data / "llamacpp" / f"{name}.gguf", change, key, bound, "" if value is None else str(value))


@pytest.mark.parametrize(
    ("tensor", "ne"),
    [
        ("blk.1.ffn_gate_inp.weight", (64, 5)),
        ("blk.0.ffn_gate_exps.weight", (64, 95, 4)),
        ("blk.0.ffn_up_exps.weight", (64, 96, 3)),
        ("blk.1.ffn_down_exps.weight", (96, 63, 4)),
        ("blk.1.ffn_down_exps.weight", (96, 64)),
    ],
)
def test_shapes_that_disagree(tensor: str, ne: tuple[int, ...], data: Path) -> None:
    def change(file: GGUFFile) -> None:
        file.tensors[tensor] = replace(file.tensors[tensor], ne=ne)

    wanted = str(list(ne))
    refused(data / "llamacpp" / "mixtral.f16.gguf", change, f"shape of {tensor}", wanted, "hyperparameters")


def test_an_architecture_without_experts(data: Path) -> None:
    def change(file: GGUFFile) -> None:
        file.metadata = {**file.metadata, "qwen2.expert_count": 8}

    refused(data / "llamacpp" / "qwen2.f16.gguf", change, "qwen2.expert_count", "8", "qwen2 without experts")


def test_predictors_beside_experts(data: Path) -> None:
    def change(file: GGUFFile) -> None:
        file.magic = "PWRI"

    refused(data / "llamacpp" / "mixtral.f16.gguf", change, "llama.expert_count", "PWRI")
