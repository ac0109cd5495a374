"""Files of a small llama model, good but for what a test changes, and how they are refused."""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from hotcold.engine.model.load import load_model
from hotcold.engine.model.model import Model
from hotcold.errors import FileError
from hotcold.gguf_io import blocks, open_gguf

T, V = GGMLQuantizationType, GGUFValueType
N_EMBD, N_FF, N_HEAD, N_HEAD_KV, N_VOCAB, RANK = 64, 96, 4, 2, 50, 32
Metadata = dict[str, tuple[Any, ...] | None]  # value, type, type of an array's elements; None: no key
Tensors = dict[str, tuple[tuple[int, ...], GGMLQuantizationType] | NDArray[np.float32] | None]
FileWith = Callable[..., Path]
METADATA: Metadata = {
    "llama.context_length": (128, V.UINT32),
    "llama.embedding_length": (N_EMBD, V.UINT32),
    "llama.block_count": (2, V.UINT32),
    "llama.feed_forward_length": (N_FF, V.UINT32),
    "llama.attention.head_count": (N_HEAD, V.UINT32),
    "llama.attention.head_count_kv": (N_HEAD_KV, V.UINT32),
    "llama.attention.layer_norm_rms_epsilon": (1e-5, V.FLOAT32),
}
LAYER = {
    "attn_norm": (N_EMBD,),
    "attn_q": (N_EMBD, N_EMBD),
    "attn_k": (N_EMBD, N_EMBD // N_HEAD * N_HEAD_KV),
    "attn_v": (N_EMBD, N_EMBD // N_HEAD * N_HEAD_KV),
    "attn_output": (N_EMBD, N_EMBD),
    "ffn_norm": (N_EMBD,),
    "ffn_gate": (N_EMBD, N_FF),
    "ffn_up": (N_EMBD, N_FF),
}
DENSE = LAYER | {"ffn_down": (N_FF, N_EMBD)}
SPARSE = LAYER | {"ffn_down_t": (N_EMBD, N_FF), "fc1": (N_EMBD, RANK), "fc2": (RANK, N_FF)}


def tensors(layer: dict[str, tuple[int, ...]]) -> Tensors:
    """All tensors of a good model, ggml order."""
    table = {"token_embd.weight": (N_EMBD, N_VOCAB), "output_norm.weight": (N_EMBD,)}
    table |= {f"blk.{i}.{role}.weight": ne for i in range(2) for role, ne in layer.items()}
    return {name: (ne, T.F32) for name, ne in table.items()}


def write(
    path: Path, metadata: Metadata, table: Tensors, architecture: Any = "llama", magic: str = "GGUF"
) -> None:
    """A file by the gguf package; `architecture` may be any value, None leaves the key out."""
    writer = GGUFWriter(path, "llama")
    writer.kv_data[0].pop("general.architecture")
    if architecture is not None:
        kind = V.STRING if isinstance(architecture, str) else V.UINT32
        writer.add_key_value("general.architecture", architecture, kind)
    for key, entry in metadata.items():
        if entry is not None:
            writer.add_key_value(key, *entry)
    for name, tensor in table.items():
        if isinstance(tensor, np.ndarray):
            writer.add_tensor(name, tensor)
        elif tensor is not None and tensor[1] == T.F32:
            writer.add_tensor(name, np.ones(tensor[0][::-1], np.float32))
        elif tensor is not None:
            shape = (*tensor[0][:0:-1], blocks.row_bytes(tensor[1], tensor[0][0]))
            writer.add_tensor(name, np.zeros(shape, np.uint8), raw_dtype=tensor[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.write(magic.encode())


def described(path: Path) -> Model:
    with open_gguf(path) as file:
        return load_model(file)


def refused(file_with: FileWith, *parts: str, **arguments: Any) -> None:
    """The file is refused in one line that holds all parts, in 1 s and 100 MB."""
    path = file_with(**arguments)
    tracemalloc.start()
    began = time.perf_counter()
    try:
        with pytest.raises(FileError) as caught:
            described(path)
        assert time.perf_counter() - began < 1
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert "\n" not in text
    for part in ("model.gguf", *parts):
        assert part in text, text
