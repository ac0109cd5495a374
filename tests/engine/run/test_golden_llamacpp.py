"""Logits against llama.cpp's own, and against exact arithmetic; and what is chosen.

A choice is sure where the first is ahead by more than twice what any logit of llama.cpp is from exact arithmetic: both
may be so far off.
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
from hotcold.gguf_io import open_gguf

Logits = NDArray[np.float32]

# relative RMS against llama.cpp, and against float64, which rounds no inputs
BOUNDS = {
    "llama.f32": (2e-3, 2e-3),
    "llama.f16": (2e-3, 2e-3),
    "llama.bf16": (1e-2, 2e-3),
    "llama.q8_0": (3e-2, 3e-2),
    "llama.q4_0": (3e-2, 3e-2),
    "llama.q4_1": (3e-2, 3e-2),
    "llama.q5_0": (3e-2, 3e-2),
    "llama.q5_1": (3e-2, 3e-2),
    "llama.q4_k": (4.5e-2, 3e-2),
    "llama.q5_k": (4.5e-2, 3e-2),
    "llama.q6_k": (4.5e-2, 3e-2),
    "llama.ropefreqs.f16": (2e-3, 2e-3),
    "llama.ropelinear.q8_0": (3e-2, 3e-2),
    "falcon.f16": (2e-3, 2e-3),
    "falcon.norm2.q4_0": (3e-2, 3e-2),
    "qwen2.f16": (2e-3, 2e-3),
    "llama.biases.f16": (2e-3, 2e-3),
    "llama.yarn.f16": (2e-3, 2e-3),
    "qwen3.f16": (2e-3, 1e-4),
    "qwen3.q4_0": (3e-2, 3e-2),
    "phi3.f16": (2e-3, 1e-4),
    "phi3.longrope.q8_0": (3e-2, 3e-2),
    "llama.yarn.q8_0": (3e-2, 3e-2),
    "granite.q4_0": (3e-2, 3e-2),
    "gemma3.f16": (2e-3, 1e-4),
    "gemma3.q4_0": (3e-2, 3e-2),
}
EXPERTS = {
    "mixtral.f16": (2e-3, 1e-4),
    "mixtral.q4_0": (3e-2, 3e-2),
    "qwen3moe.f16": (2e-3, 1e-4),
    "olmoe.f16": (2e-3, 1e-4),
    "qwen2moe.q4_0": (3e-2, 3e-2),
    "smallthinker.f16": (2e-3, 1e-4),
    "smallthinker.softmax.q8_0": (3e-2, 3e-2),
    "smallthinker.window5.q4_0": (3e-2, 3e-2),
    "granitemoe.q8_0": (3e-2, 3e-2),
    "gptoss.mxfp4": (3e-2, 3e-2),
}
RECORDINGS = {
    "qwen2.f16": "biases.npz",
    "llama.biases.f16": "biases.npz",
    "llama.yarn.f16": "yarn.npz",
    **dict.fromkeys(list(BOUNDS)[-8:], "dense.npz"),
    **dict.fromkeys(EXPERTS, "experts.npz"),
}
BOUNDS |= EXPERTS
N_CTX = {"phi3.longrope.q8_0": 512}  # beyond the original context the long factors count


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("step", [1, 48])
def test_logits_equal_the_recording(
    name: str,
    step: int,
    data: Path,
    distance: Callable[[Logits, Logits], float],
    logits_of: Callable[[Executor, NDArray[np.int32], int], Logits],
    recorded: Callable[[str], Path],
) -> None:
    wanted = np.load(data / "llamacpp" / RECORDINGS.get(name, "logits.npz"))
    bound, exact_bound = BOUNDS[name]
    with (
        open_gguf(recorded(f"llamacpp/{name}")) as file,
        Executor(
            plan_for_cpu(load_model(file), Wanted("off", N_CTX.get(name, 64), 48, "f32")), file, 2
        ) as executor,
    ):
        logits = logits_of(executor, wanted["ids"], step)
    assert distance(logits, wanted[name]) <= bound
    assert distance(logits, wanted[f"{name}.exact"]) <= exact_bound
    exact = wanted[f"{name}.exact"]
    largest = float(np.abs(wanted[name] - exact).max())
    for theirs in (wanted[name], exact):
        second, first = np.sort(theirs, axis=1)[:, -2:].T
        sure = first - second > 2 * largest
        assert (logits.argmax(1) == theirs.argmax(1))[sure].all()
        assert sure.sum() >= len(sure) // 8
