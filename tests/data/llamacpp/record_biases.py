"""Writes qwen2.f16.gguf and llama.biases.f16.gguf, and records llama.cpp's logits and exact ones.

pip install llama-cpp-python
python tests/data/llamacpp/record_biases.py
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
HERE = Path(__file__).parent
N_LAYER, N_EMBD, N_FF, N_HEAD, N_HEAD_KV, HEAD_DIM, N_VOCAB = 2, 64, 160, 4, 2, 16, 600
EPS, THETA = {"qwen2": 1e-6, "llama": 1e-5}, {"qwen2": 1e6, "llama": 1e4}
FILES = {"qwen2.f16": "qwen2", "llama.biases.f16": "llama"}
BIASED = {"qwen2": ("attn_q", "attn_k", "attn_v"), "llama": ("attn_q", "attn_k", "attn_v", "attn_output")}


def weights(architecture: str) -> dict[str, NDArray[Any]]:
    """Random numbers: matrices F16, norms and biases F32; Qwen2's head is its embedding."""
    random = np.random.default_rng(sum(architecture.encode()))
    q, kv = N_HEAD * HEAD_DIM, N_HEAD_KV * HEAD_DIM
    rows = {"attn_q": (q, N_EMBD), "attn_k": (kv, N_EMBD), "attn_v": (kv, N_EMBD), "attn_output": (N_EMBD, q)}
    rows |= {"ffn_gate": (N_FF, N_EMBD), "ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF)}
    tensors: dict[str, NDArray[Any]] = {}

    def matrix(name: str, n: int, n_in: int) -> None:
        tensors[f"{name}.weight"] = random.normal(0, n_in**-0.5, (n, n_in)).astype(np.float16)

    def vector(name: str, mean: float, n: int) -> None:
        tensors[name] = random.normal(mean, 0.3, n).astype(np.float32)

    matrix("token_embd", N_VOCAB, N_EMBD)
    tensors["token_embd.weight"] *= np.float16(8)
    vector("output_norm.weight", 1, N_EMBD)
    if architecture == "llama":
        matrix("output", N_VOCAB, N_EMBD)
    for i in range(N_LAYER):
        vector(f"blk.{i}.attn_norm.weight", 1, N_EMBD)
        vector(f"blk.{i}.ffn_norm.weight", 1, N_EMBD)
        for role, shape in rows.items():
            matrix(f"blk.{i}.{role}", *shape)
        for role in BIASED[architecture]:
            vector(f"blk.{i}.{role}.bias", 0, rows[role][0])
    return tensors


def write(path: Path, architecture: str, tensors: dict[str, NDArray[Any]]) -> None:
    """The file, with the vocabulary of its neighbour llama.f16.gguf."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"hotcold golden random {architecture} with biases F16")
    writer.add_license("CC0-1.0")
    writer.add_context_length(512)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_rope_freq_base(THETA[architecture])
    writer.add_layer_norm_rms_eps(EPS[architecture])
    writer.add_file_type(1)
    for field in gguf.GGUFReader(HERE / "llama.f16.gguf").fields.values():
        if field.name.startswith("tokenizer."):
            sub_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rms_norm(x: F64, weight: F64, eps: float) -> F64:
    """x / sqrt(mean(x^2) + eps) * weight."""
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight)


def rope(x: F64, theta: float, interleaved: bool) -> F64:
    """Rotate pairs of each head [n_tokens, n_head, head_dim] by position * theta^(-2i / head_dim)."""
    angles = np.arange(len(x))[:, None] * theta ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    turn = np.exp(1j * angles)[:, None, :]
    if interleaved:
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)
    half = HEAD_DIM // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], -1)


def forward(architecture: str, tensors: dict[str, NDArray[Any]], ids: NDArray[np.int32]) -> F64:
    """Logits after every token, all in float64."""
    w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    eps, theta, n = EPS[architecture], THETA[architecture], len(ids)

    def linear(name: str, x: F64) -> F64:
        return np.asarray(x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", np.float64(0)))

    x = w["token_embd.weight"][ids]
    for i in range(N_LAYER):
        normed = rms_norm(x, w[f"blk.{i}.attn_norm.weight"], eps)
        q, k, v = (
            linear(f"blk.{i}.attn_{role}", normed).reshape(n, -1, HEAD_DIM) for role in ("q", "k", "v")
        )
        q, k = (rope(each, theta, architecture == "llama") for each in (q, k))
        k, v = (np.repeat(each, N_HEAD // N_HEAD_KV, 1) for each in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(HEAD_DIM)
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        x = x + linear(f"blk.{i}.attn_output", np.einsum("hqk,khd->qhd", p, v).reshape(n, -1))
        normed = rms_norm(x, w[f"blk.{i}.ffn_norm.weight"], eps)
        gate = linear(f"blk.{i}.ffn_gate", normed)
        x = x + linear(f"blk.{i}.ffn_down", gate / (1 + np.exp(-gate)) * linear(f"blk.{i}.ffn_up", normed))
    x = rms_norm(x, w["output_norm.weight"], eps)
    return np.asarray(x @ w.get("output.weight", w["token_embd.weight"]).T)


def llama_cpp_logits(path: Path, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """llama.cpp's, one token at a time, with a KV cache of F32."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False,
    )  # fmt: skip
    for token in ids:
        model.eval([int(token)])
    return np.array(model.scores[: len(ids)], np.float32)


def main() -> None:
    """Write both files and biases.npz."""
    ids = np.load(HERE / "logits.npz")["ids"]
    recorded = {"ids": ids}
    for name, architecture in FILES.items():
        tensors = weights(architecture)
        write(HERE / f"{name}.gguf", architecture, tensors)
        recorded[name] = llama_cpp_logits(HERE / f"{name}.gguf", ids)
        recorded[f"{name}.exact"] = forward(architecture, tensors, ids).astype(np.float32)
        wide = recorded[f"{name}.exact"].astype(np.float64)
        off = np.sqrt(((recorded[name] - wide) ** 2).sum() / (wide**2).sum())
        print(name, f"llama.cpp vs exact {off:.2e}, max abs {abs(recorded[name] - wide).max():.2g},",
              f"logit RMS {np.sqrt((wide**2).mean()):.2f},",
              f"same argmax {(recorded[name].argmax(1) == wide.argmax(1)).sum()}/{len(ids)}")  # fmt: skip
    np.savez_compressed(HERE / "biases.npz", **recorded)


if __name__ == "__main__":
    main()
