"""Small models on disk, made from random numbers, and `.pt` files made byte by byte."""

import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sentencepiece import sentencepiece_model_pb2

STORED: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}


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
    names = {"<f4": "F32", "<f2": "F16", "<u2": "BF16"}
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
class Llama:
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


def make_llama(folder: Path, dtype: str = "float16", n_pieces: int = 40, **changes: Any) -> Llama:
    """A llama of two layers: n_embd 64, n_ff 96, 4 heads, 2 key and value heads, vocabulary 40."""
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 40,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
    } | changes
    e, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = e // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, e), "model.norm.weight": (e,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (v, e)
    for i in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": (e,),
            "post_attention_layernorm": (e,),
            "self_attn.q_proj": (e, e),
            "self_attn.k_proj": (kv, e),
            "self_attn.v_proj": (kv, e),
            "self_attn.o_proj": (e, e),
            "mlp.gate_proj": (f, e),
            "mlp.up_proj": (f, e),
            "mlp.down_proj": (e, f),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    random = np.random.default_rng(1)
    weights = {name: rounded(random.standard_normal(shape), dtype) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / "model.safetensors", weights)
    save_tokenizer(folder / "tokenizer.model", n_pieces)
    llama = Llama(folder, config, weights)
    llama.rewrite()
    return llama


@pytest.fixture
def llama(tmp_path: Path) -> Callable[..., Llama]:
    """Makes a model in a folder of its own: `llama(dtype=..., hidden_act=..., ...)`."""

    def make(name: str = "model", **settings: Any) -> Llama:
        return make_llama(tmp_path / name, **settings)

    return make


@pytest.fixture
def save() -> Callable[[Path, Mapping[str, NDArray[Any]]], None]:
    """`save_safetensors`."""
    return save_safetensors


class TorchProgram:
    """The instructions of a pickle as torch.save writes them, one method a kind of value."""

    @staticmethod
    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    @staticmethod
    def integer(value: int) -> bytes:
        if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        content = value.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(content)]) + content

    @staticmethod
    def name(module: str, name: str) -> bytes:
        return f"c{module}\n{name}\n".encode()

    @staticmethod
    def items(*values: bytes) -> bytes:
        return b"(" + b"".join(values) + b"t"

    @classmethod
    def tensor(
        cls,
        key: str,
        kind: str,
        n_elements: int,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> bytes:
        storage = cls.items(
            cls.text("storage"),
            cls.name("torch", kind),
            cls.text(key),
            cls.text("cpu"),
            cls.integer(n_elements),
        )
        arguments = cls.items(
            storage + b"Q",
            cls.integer(offset),
            cls.items(*map(cls.integer, shape)),
            cls.items(*map(cls.integer, strides)),
            b"\x89",
            cls.name("collections", "OrderedDict") + b")R",
        )
        return cls.name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"

    @classmethod
    def dictionary(cls, entries: Mapping[str, bytes]) -> bytes:
        return b"}(" + b"".join(cls.text(name) + value for name, value in entries.items()) + b"u"

    @staticmethod
    def whole(value: bytes) -> bytes:
        return b"\x80\x02" + value + b"."

    @staticmethod
    def archive(path: Path, program: bytes, records: Mapping[str, bytes], compression: int = 0) -> None:
        """The zip file: `program` as data.pkl, `records` as data/KEY."""
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", program)
            archive.writestr("archive/byteorder", b"little")
            for key, content in records.items():
                archive.writestr(f"archive/data/{key}", content)
            archive.writestr("archive/version", b"3\n")

    @classmethod
    def save(cls, path: Path, tensors: Mapping[str, NDArray[Any]] | NDArray[Any]) -> None:
        """What torch.save makes of these tensors, or of one; uint16 arrays are BF16."""
        kinds = {
            "<f4": "Float",
            "<f2": "Half",
            "<u2": "BFloat16",
            "<f8": "Double",
            "<i8": "Long",
            "<i4": "Int",
        }
        named = tensors if isinstance(tensors, Mapping) else {"": tensors}
        programs, records = {}, {}
        for key, (name, array) in enumerate(named.items()):
            strides = tuple(stride // array.itemsize for stride in array.strides)
            kind = f"{kinds[array.dtype.str]}Storage"
            programs[name] = cls.tensor(str(key), kind, array.size, 0, array.shape, strides)
            records[str(key)] = array.tobytes()
        program = cls.dictionary(programs) if isinstance(tensors, Mapping) else programs[""]
        cls.archive(path, cls.whole(program), records)


@pytest.fixture
def torch_program() -> type[TorchProgram]:
    """Builds `.pt` files without torch."""
    return TorchProgram


@dataclass(frozen=True)
class GGUFBytes:
    """A GGUF file made field by field, so that each field can be wrong."""

    pairs: tuple[bytes, ...] = ()
    tensors: tuple[bytes, ...] = ()
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    n_tensors: int | None = None  # None: the true number
    n_pairs: int | None = None

    @staticmethod
    def text(value: bytes, n_bytes: int | None = None) -> bytes:
        return struct.pack("<Q", len(value) if n_bytes is None else n_bytes) + value

    @classmethod
    def pair(cls, key: bytes, kind: int, value: bytes) -> bytes:
        return cls.text(key) + struct.pack("<I", kind) + value

    @classmethod
    def array(cls, key: bytes, kind: int, n: int, values: bytes = b"") -> bytes:
        return cls.pair(key, 9, struct.pack("<IQ", kind, n) + values)

    @classmethod
    def tensor(
        cls, name: bytes, ne: tuple[int, ...], kind: int = 0, offset: int = 0, n_dims: int | None = None
    ) -> bytes:
        n_dims = len(ne) if n_dims is None else n_dims
        return cls.text(name) + struct.pack(f"<I{len(ne)}QIQ", n_dims, *ne, kind, offset)

    def header(self) -> bytes:
        """All up to the end of the tensor table."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_pairs = len(self.pairs) if self.n_pairs is None else self.n_pairs
        start = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_pairs)
        return start + b"".join(self.pairs) + b"".join(self.tensors)

    def whole(self) -> bytes:
        """The file; without data it ends with the table, without padding."""
        header = self.header()
        return header + bytes(-len(header) % self.alignment) + self.data if self.data else header


@pytest.fixture(scope="session")
def gguf_bytes() -> type[GGUFBytes]:
    """Builds GGUF files byte by byte."""
    return GGUFBytes
