"""Why logits of K types are farther from llama.cpp's than others: it rounds inputs by 256 numbers, hotcold by 32.

A forward in float64 over the same file, which rounds as either does, tells the rounding from all else.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.engine.model.load import load_model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile, blocks, open_gguf

F64 = NDArray[np.float64]
Rounding = Callable[[F64], F64]


def as_q8_k(x: F64) -> F64:
    """Blocks of 256; the number of the largest magnitude becomes -127, as in ggml's Q8_K."""
    b = x.astype(np.float32).reshape(*x.shape[:-1], -1, 256)
    largest = np.take_along_axis(b, np.abs(b).argmax(-1)[..., None], -1)
    scale = np.float32(-127) / largest
    return (np.minimum(np.rint(b * scale), 127).astype(np.float64) / scale).reshape(x.shape)


def as_q8_0(x: F64) -> F64:
    """Blocks of 32; the largest magnitude becomes 127, as in Q8_0."""
    b = x.astype(np.float32).reshape(*x.shape[:-1], -1, 32)
    scale = np.abs(b).max(-1, keepdims=True) / np.float32(127)
    rounded: F64 = np.rint(b / scale).astype(np.float64) * scale
    return rounded.reshape(x.shape)


def forward(file: GGUFFile, ids: NDArray[np.int32], rounded: Rounding) -> F64:
    """A llama's logits after each token, in float64 but for the rounding of what matrices multiply."""
    weights = {
        name: np.asarray(blocks.dequantize(file.data(name), info.type), np.float64).reshape(info.shape)
        for name, info in file.tensors.items()
    }
    keys = {k.removeprefix("llama."): v for k, v in file.metadata.items()}
    eps, n_head, n_head_kv = (
        keys[f"attention.{name}"] for name in ("layer_norm_rms_epsilon", "head_count", "head_count_kv")
    )
    x = weights["token_embd.weight"][ids]
    n, size = len(ids), x.shape[1] // n_head
    angles = np.outer(np.arange(n), keys["rope.freq_base"] ** (-np.arange(0, size, 2) / size))[:, None]

    def norm(x: F64, w: F64) -> F64:
        normed: F64 = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w
        return normed

    def rotated(x: F64) -> F64:
        pairs = x.reshape(n, -1, size)[..., ::2] + 1j * x.reshape(n, -1, size)[..., 1::2]
        turned = pairs * np.exp(1j * angles)
        return np.stack([turned.real, turned.imag], -1).reshape(n, -1, size)

    for i in range(keys["block_count"]):

        def times(name: str, x: F64, i: int = i) -> F64:
            return rounded(x) @ weights[f"blk.{i}.{name}.weight"].T

        a = norm(x, weights[f"blk.{i}.attn_norm.weight"])
        q, k = rotated(times("attn_q", a)), rotated(times("attn_k", a))
        v = times("attn_v", a).reshape(n, n_head_kv, size)
        k, v = (each.repeat(n_head // n_head_kv, 1) for each in (k, v))
        scores = np.einsum("thd,uhd->htu", q, k) / np.sqrt(size) + np.triu(np.full((n, n), -np.inf), 1)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + times("attn_output", np.einsum("htu,uhd->thd", shares, v).reshape(n, -1))
        a = norm(x, weights[f"blk.{i}.ffn_norm.weight"])
        gate = times("ffn_gate", a)
        x = x + times("ffn_down", gate / (1 + np.exp(-gate)) * times("ffn_up", a))
    return rounded(norm(x, weights["output_norm.weight"])) @ weights["output.weight"].T


@pytest.mark.parametrize(
    "name", ["llama.q4_k", *(pytest.param(f"llama.q{n}_k", marks=pytest.mark.slow) for n in (5, 6))]
)
def test_what_is_between_ours_and_theirs_is_the_rounding(
    name: str,
    data: Path,
    distance: Callable[[F64, F64], float],
    logits_of: Callable[[Executor, NDArray[np.int32], int], NDArray[np.float32]],
    recorded: Callable[[str], Path],
) -> None:
    """With their rounding the forward meets their logits, with ours ours; and ours is the one nearer to exact."""
    wanted = np.load(data / "llamacpp" / "logits.npz")
    ids, theirs, exact = wanted["ids"], wanted[name], wanted[f"{name}.exact"]
    with (
        open_gguf(recorded(f"llamacpp/{name}")) as file,
        Executor(plan_for_cpu(load_model(file), Wanted("off", 64, 48, "f32")), file, 2) as executor,
    ):
        ours = logits_of(executor, ids, 1).astype(np.float64)
        assert distance(forward(file, ids, lambda x: x), exact) < 1e-6
        by_256, by_32 = forward(file, ids, as_q8_k), forward(file, ids, as_q8_0)
    assert distance(by_256, theirs) < 1e-2
    assert distance(by_32, ours) < 1e-2
    assert distance(ours, exact) < distance(theirs, exact)
