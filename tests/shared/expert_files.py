"""Mixtures of experts as files with the down projections either way round."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from hotcold.gguf_io import GGUFFile, blocks, open_gguf

F32 = NDArray[np.float32]
Tensors = dict[str, F32]
Metadata = dict[str, Any]


def numbers_of(path: Path) -> tuple[str, Metadata, Tensors]:
    """A file's architecture, its keys of numbers, and the numbers of its tensors."""
    with open_gguf(path) as file:
        architecture = str(file.metadata["general.architecture"])
        kept = {k: v for k, v in file.metadata.items() if k.startswith(f"{architecture}.")}
        return architecture, kept, {name: _numbers(file, name) for name in file.tensors}


def _numbers(file: GGUFFile, name: str) -> F32:
    info = file.tensors[name]
    return np.array(blocks.dequantize(file.data(name), info.type), np.float32).reshape(info.shape)


def write_mixture(
    path: Path,
    architecture: str,
    metadata: Metadata,
    tensors: Tensors,
    by_neuron: bool,
    of_experts: GGMLQuantizationType = GGMLQuantizationType.F32,
) -> Path:
    """The file in F32 but for the experts' matrices, with a row a neuron of the down projections or a row an output."""
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add: Any = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        if isinstance(value, int | float):
            add(key, value)
    for name, numbers in tensors.items():
        turned = by_neuron and "ffn_down_exps" in name
        array = np.ascontiguousarray(numbers.swapaxes(1, 2)) if turned else numbers
        if "_exps.weight" in name and of_experts != GGMLQuantizationType.F32:
            rows = np.asarray(blocks.quantize(array.reshape(-1, array.shape[-1]), of_experts))
            packed = rows.view(np.uint8).reshape(*array.shape[:-1], -1)
            writer.add_tensor(name, packed, raw_dtype=of_experts)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_old(path: Path, file: GGUFFile) -> None:
    """A Mixtral's file with one tensor an expert, as they once were."""
    writer = GGUFWriter(path, "llama")
    for key, value in file.metadata.items():
        if key.startswith("llama.") and isinstance(value, int | float):
            add: Any = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(key, value)
    for name, info in file.tensors.items():
        rows = file.data(name)
        if "_exps" not in name:
            writer.add_tensor(name, rows.reshape(*info.shape[:-1], -1), raw_dtype=info.type)
            continue
        for e, some in enumerate(np.split(rows, info.ne[2])):
            writer.add_tensor(name.replace("_exps", f".{e}"), some.copy(), raw_dtype=info.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
