"""Hugging Face directories with small random models, one table of shapes a layout."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hf_shapes import CONFIGS, SHAPES, llama_shapes
from numpy.typing import NDArray
from sentencepiece import sentencepiece_model_pb2

STORED: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
RANK = 32


def _numbers(name: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float64]:
    """Numbers of about the sizes that a trained model has."""
    if name.endswith("_blocks"):
        return random.integers(0, 256, shape).astype(np.float64)
    if name.endswith("_scales"):
        return random.integers(122, 125, shape).astype(np.float64)
    numbers = random.standard_normal(shape)
    if len(shape) >= 2 and not name.endswith("_bias"):
        return numbers if "embed" in name else numbers / math.sqrt(shape[-1])
    return 0.1 * numbers if name.endswith("bias") else 1 + 0.1 * numbers


def rounded(numbers: NDArray[Any], dtype: str) -> NDArray[Any]:
    """`numbers` as they are stored: BF16 by cutting a float32."""
    if dtype == "bfloat16":
        return (np.ascontiguousarray(numbers, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(STORED[dtype])


def as_float(stored: NDArray[Any]) -> NDArray[np.float32]:
    """What `rounded` stored."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def save_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Writes `tensors` as safetensors (uint16 arrays are BF16, which the library's NumPy side lacks)."""
    names = {"<f4": "F32", "<f2": "F16", "<u2": "BF16", "|u1": "U8"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": names[array.dtype.str], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in tensors.values()))


def save_tokenizer(path: Path, n_pieces: int) -> None:
    """A SentencePiece BPE model: unknown, two control pieces, then letters."""
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.trainer_spec.model_type = 2
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3)] + [(chr(0x4E00 + i), 1) for i in range(n_pieces - 3)]
    for number, (text, kind) in enumerate(pieces):
        model.pieces.add(piece=text, score=-float(number), type=kind)
    path.write_bytes(model.SerializeToString())


@dataclass(frozen=True)
class HFDirectory:
    """A Hugging Face directory and what is in it."""

    folder: Path
    config: dict[str, Any]
    weights: dict[str, NDArray[Any]]

    def value(self, name: str) -> NDArray[np.float32]:
        return as_float(self.weights[name])

    def rewrite(self, **changes: Any) -> None:
        """Changes config.json; None removes a name."""
        config = {name: value for name, value in (self.config | changes).items() if value is not None}
        (self.folder / "config.json").write_text(json.dumps(config))

    def save(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Replaces the weights on disk."""
        save_safetensors(self.folder / "model.safetensors", weights)

    @property
    def n_ff(self) -> int:
        return int(
            next(
                self.config[n]
                for n in ("intermediate_size", "ffn_hidden_size", "ffn_dim")
                if n in self.config
            )
        )


def make(folder: Path, kind: str, dtype: str = "float16", n_pieces: int = 40, **changes: Any) -> HFDirectory:
    """A model of two layers: n_embd 64, n_ff 96, 4 heads, 2 key and value heads, vocabulary 40.

    Args:
        kind: a name in `CONFIGS`; `changes` go into its config.json.
    """
    config = CONFIGS[kind] | changes
    random = np.random.default_rng(1)
    shapes = SHAPES.get(config["model_type"], llama_shapes)(config)
    weights = {
        name: _numbers(name, shape, random).astype(np.uint8)
        if name.endswith(("_blocks", "_scales"))
        else rounded(_numbers(name, shape, random), dtype)
        for name, shape in shapes
    }
    folder.mkdir(parents=True, exist_ok=True)
    directory = HFDirectory(folder, config, weights)
    directory.save(weights)
    directory.rewrite()
    save_tokenizer(folder / "tokenizer.model", n_pieces)
    return directory


def predictors_of(model: HFDirectory, dtype: str = "float32") -> dict[str, NDArray[Any]]:
    """Random predictors by the names of a safetensors file: fc1 [32, n_embd] and fc2 [n_ff, 32]."""
    random = np.random.default_rng(2)
    e, f = model.config["hidden_size"], model.n_ff
    found = {}
    for i in range(model.config["num_hidden_layers"]):
        found[f"layers.{i}.fc1.weight"] = rounded(random.standard_normal((RANK, e)), dtype)
        found[f"layers.{i}.fc2.weight"] = rounded(random.standard_normal((f, RANK)), dtype)
    return found
