"""A token's logits depend on the tokens before it and the model alone: not on batches, threads or reuse."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.engine.model.load import load_model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import open_gguf

Logits = NDArray[np.float32]
LogitsOf = Callable[[Executor, NDArray[np.int32], int], Logits]

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k")
OTHERS = (
    "falcon.norm2.q4_0",
    "qwen2.f16",
    "qwen3.q4_0",
    "phi3.longrope.q8_0",
    "granite.q4_0",
    "gemma3.q4_0",
    "mixtral.q4_0",
    "qwen2moe.q4_0",
)
DENSE = [*(f"llamacpp/llama.{kind}" for kind in TYPES), *(f"llamacpp/{name}" for name in OTHERS)]
SPARSE = [f"powerinfer/{name}.powerinfer" for name in ("llama-q4_0", "bamboo-f16", "falcon-q4_0", "opt-f16")]
CASES = [(name, "off") for name in DENSE] + [
    (name, mode) for name in SPARSE for mode in ("exact", "predictor")
]

N_CTX = 512
BATCHES = ((1, 1), (3, 2), (16, 3), (37, 4), (512, 2))


@pytest.mark.parametrize(("name", "sparsity"), CASES)
def test_logits_do_not_depend_on_batches_or_threads(
    name: str, sparsity: str, logits_of: LogitsOf, recorded: Callable[[str], Path]
) -> None:
    with open_gguf(recorded(name)) as file:
        model = load_model(file)
        ids = np.random.default_rng(0).integers(3, min(model.n_vocab, 200), 65).astype(np.int32)
        seen = set()
        for n_batch, n_threads in BATCHES:
            with Executor(plan_for_cpu(model, Wanted(sparsity, N_CTX, n_batch)), file, n_threads) as executor:
                logits = logits_of(executor, ids, n_batch)
                assert np.isfinite(logits).all()
                seen.add(logits.tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["llamacpp/llama.q4_k", "powerinfer/llama-q4_0.powerinfer"])
def test_logits_do_not_depend_on_what_was_reused(name: str, data: Path) -> None:
    """The same cache filled in other steps, and once with other tokens behind the shared ones."""
    with (
        open_gguf(data / f"{name}.gguf") as file,
        Executor(plan_for_cpu(load_model(file), Wanted("off", 64, 32)), file, 2) as executor,
    ):
        ids = np.random.default_rng(1).integers(3, 200, 40).astype(np.int32)
        seen = set()
        for cuts in ([32, 39], [1, 2, 7, 39], [20, 25, 39]):
            logits, start = np.zeros((1, executor.model.n_vocab), np.float32), 0
            executor.run(ids[:20][::-1].copy(), 0, None)  # what lay in the cache before
            for stop in [*cuts, 40]:
                executor.run(ids[start:stop], start, logits if stop == 40 else None)
                start = stop
            seen.add(logits.tobytes())
    assert len(seen) == 1
