"""Recorded models that differ from another one in so little that they are made of it and not kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

Tensors = dict[str, tuple[Any, GGMLQuantizationType]]
Edit = Callable[[dict[str, Any], Tensors], None]


def _bf16(_: dict[str, Any], tensors: Tensors) -> None:
    """Matrices of F32 to the nearest BF16, ties to even."""
    for name, (values, _type) in tensors.items():
        if values.ndim > 1:
            bits = values.view(np.uint32)
            halves = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
            tensors[name] = halves.astype(np.uint16).view(np.uint8), GGMLQuantizationType.BF16


def _rope_freqs(metadata: dict[str, Any], tensors: Tensors) -> None:
    """Another base, and a factor for each frequency."""
    metadata["llama.rope.freq_base"] = 1e6
    factors = np.array([1, 1, 1.5, 2.25, 3, 4, 6, 8], np.float32)
    tensors["rope_freqs.weight"] = factors, GGMLQuantizationType.F32


MADE: dict[str, tuple[str, Edit]] = {
    "llama.bf16": ("llama.f32", _bf16),
    "llama.ropefreqs.f16": ("llama.f16", _rope_freqs),
}
"""By name: what it is made of, and how."""


def find(path: Path, folder: Path) -> Path:
    """A recorded model: where it is kept, or made in a folder."""
    made = folder / path.name
    return made if made.is_file() else _make(path, made) if path.stem in MADE else path


def _make(wanted: Path, path: Path) -> Path:
    source, edit = MADE[wanted.stem]
    reader = GGUFReader(wanted.with_name(f"{source}.gguf"))
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    metadata = {key: field.contents() for key, field in fields.items()}
    tensors: Tensors = {tensor.name: (tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    edit(metadata, tensors)
    writer = GGUFWriter(path, metadata.pop("general.architecture"))
    for key, value in metadata.items():
        types = fields[key].types
        writer.add_key_value(key, value, types[0], types[-1] if len(types) > 1 else None)
    for key, (values, kind) in tensors.items():
        writer.add_tensor(key, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
