"""Matrices of several types in one layer, on both sides at once: beside the CPU alone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from split_runs import Case, Logits, cpu_logits, mixed_logits, model_of, on_device, plan_with, some_neurons

from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.gguf_io.writer import Contents, MetadataValue, OutputTensor, write_gguf
from hotcold.kernels.cuda.device.device import Device

T = GGMLQuantizationType
MIXES = {
    "rounded": {"attn_q": "q4_0", "attn_k": "q8_0", "attn_v": "f16", "ffn_gate": "q8_0", "ffn_up": "q4_0"},
    "rounded and not": {
        "attn_q": "f16",
        "attn_k": "f32",
        "ffn_gate": "f16",
        "ffn_up": "q8_0",
        "ffn_down_t": "q4_0",
    },
}
"""The types of a layer's matrices; the others are Q8_0."""


@pytest.fixture
def mixed_model(tiny_model: Callable[[str, bool], Path], tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """mixed_model(types): the bundled model with predictors, each matrix from its file of that type."""

    def make(types: dict[str, str]) -> Path:
        with open_gguf(tiny_model("q8_0", True)) as file:
            names = list(file.tensors)
            metadata = {key: _value(file, key) for key in file.metadata if key != "general.architecture"}
        tensors = [_tensor(tiny_model(types.get(name.split(".")[-2], "q8_0"), True), name) for name in names]
        write_gguf(tmp_path / "mixed.gguf", Contents("llama", metadata, tensors, "PWRI"))
        return tmp_path / "mixed.gguf"

    return make


def _value(file: GGUFFile, key: str) -> MetadataValue:
    (kind, element), value = file.value_types[key], file.metadata[key]
    return MetadataValue(kind, value if element is None else list(value), element)


def _tensor(path: Path, name: str) -> OutputTensor:
    with open_gguf(path) as file:
        info, data = file.tensors[name], file.data(name).copy()

    def chunks() -> Iterator[NDArray[np.uint8]]:
        yield data

    return OutputTensor(name, info.type, info.ne, info.n_bytes, chunks)


@pytest.mark.sample(3)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("sparsity", ["predictor", "off"])
def test_any_mix_gives_the_cpus_logits(
    mix: str,
    sparsity: str,
    mixed_model: Callable[[dict[str, str]], Path],
    split_device: Device,
    distance: Callable[[Logits, Logits], float],
) -> None:
    with open_gguf(mixed_model(MIXES[mix])) as file:
        model, case = model_of(file, 2, sparse_threshold=-100.0), Case(sparsity)
        gate, up = model.layers[0].ffn_gate, model.layers[0].ffn_up
        assert gate is not None and up is not None and gate.type != up.type
        hot = some_neurons(model, 300 if sparsity == "predictor" else model.n_units)
        with on_device(plan_with(model, case, hot), file, split_device) as executor:
            assert distance(mixed_logits(executor), cpu_logits(model, file, case)) <= 1.5e-2
