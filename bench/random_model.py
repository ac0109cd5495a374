"""Random models of any shape: block bytes written straight into a file, never quantised floats.

Scales and minima are set to small halves, so that inputs neither vanish nor overflow; every other
byte is random.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, TokenType
from numpy.typing import NDArray

from hotcold.gguf_io import blocks
from hotcold.gguf_io.outtypes import output_type, recipe_of
from hotcold.gguf_io.writer import (
    Contents,
    MetadataValue,
    OutputTensor,
    array,
    float32,
    string,
    uint32,
    write_gguf,
)

CHUNK = 16 << 20
# The halfs of a block, {offset: about how large}. Scales and minima are such that the numbers are about 0.02
# in size and stand for as much above as below zero, or every product would share a sign.
HALFS = {
    GGMLQuantizationType.Q4_0: {0: 0.004},
    GGMLQuantizationType.Q8_0: {0: 0.0003},
    GGMLQuantizationType.Q4_1: {0: 0.004, 2: -0.03},
    GGMLQuantizationType.Q5_0: {0: 0.002},
    GGMLQuantizationType.Q5_1: {0: 0.002, 2: -0.031},
    GGMLQuantizationType.Q4_K: {0: 0.00015, 2: 0.001125},
    GGMLQuantizationType.Q5_K: {0: 0.000075, 2: 0.0011625},
    GGMLQuantizationType.Q6_K: {208: 0.00002},
    GGMLQuantizationType.IQ4_NL: {0: 0.0003},
    GGMLQuantizationType.IQ4_XS: {0: 0.00002},
    GGMLQuantizationType.MXFP4: {},
    GGMLQuantizationType.Q2_K: {80: 0.001, 82: 0.0015},
    GGMLQuantizationType.Q3_K: {108: 0.0003},
    GGMLQuantizationType.IQ3_S: {0: 0.00015},
    GGMLQuantizationType.IQ3_XXS: {0: 0.00015},
    GGMLQuantizationType.IQ2_S: {0: 0.0005},
    GGMLQuantizationType.IQ2_XS: {0: 0.0005},
    GGMLQuantizationType.IQ2_XXS: {0: 0.0005},
    GGMLQuantizationType.IQ1_S: {0: 0.0025},
    GGMLQuantizationType.IQ1_M: {},
    GGMLQuantizationType.TQ1_0: {52: 0.02},
    GGMLQuantizationType.TQ2_0: {64: 0.02},
}


@dataclass(frozen=True)
class LlamaShape:
    """Hyperparameters of a llama-like model; the default has 1.1 billion weights."""

    n_embd: int = 2048
    n_ff: int = 5632
    n_layer: int = 22
    n_head: int = 32
    n_head_kv: int = 4
    n_vocab: int = 32000
    n_ctx: int = 2048

    @property
    def n_kv(self) -> int:
        """Numbers of one token's keys in one layer."""
        return self.n_embd // self.n_head * self.n_head_kv


def random_rows(kind: GGMLQuantizationType, n_bytes: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Random bytes of whole blocks whose values are about 0.02 in size.

    The same few blocks come again and again, each time from another one on: drawing them anew would take
    longer than writing them.
    """
    pool, size, generator = _pool(kind), blocks.type_size(kind), np.random.default_rng(seed)
    while n_bytes:
        start = int(generator.integers(pool.size // size // 2)) * size
        piece = pool[start : start + n_bytes]
        yield piece
        n_bytes -= piece.size


@cache
def _pool(kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    size = blocks.type_size(kind)
    return _random_blocks(kind, CHUNK // size, size, np.random.default_rng(0))


def _random_blocks(
    kind: GGMLQuantizationType, n: int, size: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16):
        values = generator.standard_normal(n, np.float32) * np.float32(0.02)
        return blocks.quantize(values[None], kind).reshape(-1)
    out: NDArray[np.uint8]
    # numbers that stand for as much above as below zero, or every product would share a sign
    if kind == GGMLQuantizationType.Q4_0:
        out = (
            generator.integers(1, 16, (n, size), np.uint8)
            | generator.integers(1, 16, (n, size), np.uint8) << 4
        )
    else:
        out = generator.integers(-127, 128, (n, size), np.int8).view(np.uint8)
    factors = generator.uniform(0.7, 1.3, (n, 1))
    if kind == GGMLQuantizationType.MXFP4:
        out[:, 0] = 119  # a scale of 2^-9
    if kind == GGMLQuantizationType.IQ1_M:  # a half's nibbles, the upper ones of four words: 2^-9
        out[:, 49:56:2] = out[:, 49:56:2] & 15 | np.array([0, 0, 8, 1], np.uint8) << 4
    for at, half in HALFS[kind].items():
        out[:, at : at + 2] = (half * factors).astype(np.float16).view(np.uint8)
    return out.reshape(-1)


def tensor(name: str, kind: GGMLQuantizationType, *ne: int) -> OutputTensor:
    """A tensor of random numbers, in ggml's order of sizes."""
    n_bytes = blocks.row_bytes(kind, ne[0]) * int(np.prod(ne[1:], dtype=np.int64))
    seed = int.from_bytes(name.encode()[-8:], "little")
    return OutputTensor(name, kind, ne, n_bytes, lambda: random_rows(kind, n_bytes, seed))


def norm(name: str, n: int) -> OutputTensor:
    """The weight of a norm, all 1."""
    ones = np.ones(n, np.float32).view(np.uint8)
    return OutputTensor(name, GGMLQuantizationType.F32, (n,), ones.size, lambda: iter([ones]))


def tensors(shape: LlamaShape, kind: GGMLQuantizationType) -> list[OutputTensor]:
    """Every tensor of a dense llama."""
    e, f, kv = shape.n_embd, shape.n_ff, shape.n_kv
    out = [tensor("token_embd.weight", kind, e, shape.n_vocab), norm("output_norm.weight", e)]
    out.append(tensor("output.weight", kind, e, shape.n_vocab))
    for i in range(shape.n_layer):
        out += [norm(f"blk.{i}.attn_norm.weight", e), norm(f"blk.{i}.ffn_norm.weight", e)]
        sizes = {"attn_q": (e, e), "attn_k": (e, kv), "attn_v": (e, kv), "attn_output": (e, e)}
        sizes |= {"ffn_gate": (e, f), "ffn_up": (e, f), "ffn_down": (f, e)}
        out += [tensor(f"blk.{i}.{name}.weight", kind, *ne) for name, ne in sizes.items()]
    return out


def sparse_tensors(shape: LlamaShape, kind: GGMLQuantizationType, rank: int) -> list[OutputTensor]:
    """The dense model's tensors with a row a neuron in the down projection, and predictors."""
    out = [each for each in tensors(shape, kind) if ".ffn_down." not in each.name]
    for i in range(shape.n_layer):
        sizes = {
            "ffn_down_t": (shape.n_embd, shape.n_ff),
            "fc1": (shape.n_embd, rank),
            "fc2": (rank, shape.n_ff),
        }
        out += [tensor(f"blk.{i}.{name}.weight", kind, *ne) for name, ne in sizes.items()]
    return out


def metadata(shape: LlamaShape) -> dict[str, MetadataValue]:
    """Hyperparameters and a vocabulary of bytes and made-up words."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    words += [f"w{i}" for i in range(shape.n_vocab - len(words))]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    kinds += [TokenType.NORMAL] * (shape.n_vocab - len(kinds))
    return {
        "general.name": string("random"),
        "llama.context_length": uint32(shape.n_ctx),
        "llama.embedding_length": uint32(shape.n_embd),
        "llama.block_count": uint32(shape.n_layer),
        "llama.feed_forward_length": uint32(shape.n_ff),
        "llama.attention.head_count": uint32(shape.n_head),
        "llama.attention.head_count_kv": uint32(shape.n_head_kv),
        "llama.rope.dimension_count": uint32(shape.n_embd // shape.n_head),
        "llama.attention.layer_norm_rms_epsilon": float32(1e-5),
        "llama.vocab_size": uint32(shape.n_vocab),
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array(words, GGUFValueType.STRING),
        "tokenizer.ggml.scores": array([-float(i) for i in range(shape.n_vocab)], GGUFValueType.FLOAT32),
        "tokenizer.ggml.token_type": array([int(k) for k in kinds], GGUFValueType.INT32),
        "tokenizer.ggml.bos_token_id": uint32(1),
        "tokenizer.ggml.eos_token_id": uint32(2),
        "tokenizer.ggml.unknown_token_id": uint32(0),
    }


def write(path: Path, shape: LlamaShape, kind: GGMLQuantizationType) -> int:
    """Write a dense random llama; its size in bytes."""
    return write_gguf(path, Contents("llama", metadata(shape), tensors(shape, kind)), force=True)


def write_mix(path: Path, shape: LlamaShape, outtype: str) -> int:
    """The same with the types that a conversion to this outtype gives its matrices; its size in bytes."""
    plain = tensors(shape, GGMLQuantizationType.F16)
    shapes = {each.name: each.ne[::-1] for each in plain}
    recipe = recipe_of(outtype, "llama", shapes, tied=False, requantised=True)
    mixed = [
        tensor(each.name, output_type(each.name, each.ne[::-1], recipe), *each.ne)
        if len(each.ne) > 1
        else each
        for each in plain
    ]
    return write_gguf(path, Contents("llama", metadata(shape), mixed), force=True)


def write_sparse(
    path: Path, shape: LlamaShape, kind: GGMLQuantizationType, rank: int, threshold: float = 0.0
) -> int:
    """Write a random ReLU llama with predictors, in PowerInfer's format; its size in bytes."""
    wanted = sparse_tensors(shape, kind, rank)
    values = metadata(shape) | {"powerinfer.sparse_threshold": float32(threshold)}
    return write_gguf(path, Contents("llama", values, wanted, "PWRI"), force=True)
