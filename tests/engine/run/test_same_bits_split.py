"""On runs with a device, too, a token's logits do not depend on batches, threads or reuse."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from split_runs import Case, OpenEmulated, budget_bytes, model_of, on_device, split_plan

from hotcold.engine.model.model import Model
from hotcold.engine.plan.plan import Plan
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import open_gguf
from hotcold.kernels.cuda.device.device import Device

Logits = NDArray[np.float32]
LogitsOf = Callable[[Executor, NDArray[np.int32], int], Logits]

N_TOKENS = 65
BATCHES = ((1, 1), (3, 2), (16, 3), (37, 4), (65, 2))
"""Tokens a run, and threads."""
SHARES = {"split": 0.5, "all": 1.0}
"""Of what lies between the smallest budget and everything."""

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k")
SMALLEST = ("iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "tq2_0", "tq1_0")
OTHER_TYPES = ("q2_k", "q3_k", "iq4_nl", "mxfp4", "iq4_xs", "iq3_s", "iq3_xxs", *SMALLEST)
DENSE = [
    *(f"llamacpp/llama.{kind}" for kind in TYPES),
    *(f"llamacpp-types/llama.{kind}" for kind in (*OTHER_TYPES, "mix.q4_k_m", "n288.q4_k_m")),
    *(f"llamacpp/{name}" for name in ("falcon.norm2.q4_0", "gemma3.q4_0", "phi3.longrope.q8_0")),
]
MIXTURES = ["llamacpp/mixtral.q4_0", "llamacpp/qwen2moe.q4_0"]
SPARSE = [f"powerinfer/{name}.powerinfer" for name in ("llama-q4_0", "bamboo-f16", "falcon-q4_0", "opt-f16")]
MODES = [(name, "off") for name in (*DENSE, *MIXTURES, *SPARSE)] + [
    (name, mode) for name in SPARSE for mode in ("exact", "predictor")
]
CASES = [(*mode, where) for mode in MODES for where in SHARES]
QUICK = ("powerinfer/llama-q4_0.powerinfer", "predictor", "split")


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def open_anew(request: pytest.FixtureRequest) -> Callable[[], Device]:
    """Opens a fast emulated device, or hands out the one card."""
    if request.param == "cuda":
        card: Device = request.getfixturevalue("card")
        return lambda: card
    open_emulated: OpenEmulated = request.getfixturevalue("open_emulated")
    return lambda: open_emulated(build_kind="fast")


def plan_of(model: Model, case: Case, share: float) -> Plan:
    smallest, largest = (budget_bytes(model, case, which) for which in ("one layer", "everything"))
    return split_plan(model, case, smallest + int(share * (largest - smallest)))


def reused_logits(executor: Executor, ids: NDArray[np.int32]) -> Logits:
    """The same in runs of many sizes, over a cache that other tokens have filled."""
    out, start = np.zeros((len(ids), executor.model.n_vocab), np.float32), 0
    executor.run(ids[::-1].copy(), 0, None)
    for stop in (*np.cumsum((7, 1, 2, 30, 1)), len(ids)):
        executor.run(ids[start:stop], start, out[start:stop])
        start = stop
    return out


@pytest.mark.parametrize(
    ("name", "sparsity", "where"),
    [pytest.param(*c, marks=() if c == QUICK else pytest.mark.slow) for c in CASES],
)
def test_logits_do_not_depend_on_batches_threads_or_reuse(
    name: str,
    sparsity: str,
    where: str,
    recorded: Callable[[str], Path],
    open_anew: Callable[[], Device],
    logits_of: LogitsOf,
) -> None:
    """Of one plan: what lies on the device says whose order of sums a row has."""
    with open_gguf(recorded(name)) as file:
        model, seen = model_of(file), dict[bytes, tuple[int, int]]()
        plan = plan_of(model, Case(sparsity, "f16", 128, N_TOKENS), SHARES[where])
        ids = np.random.default_rng(0).integers(3, min(model.n_vocab, 200), N_TOKENS).astype(np.int32)
        for n_batch, n_threads in BATCHES:
            with on_device(plan, file, open_anew(), n_threads) as executor:
                logits = logits_of(executor, ids, n_batch)
                assert np.isfinite(logits).all()
                seen[logits.tobytes()] = n_batch, n_threads
                if n_batch == N_TOKENS:
                    seen[reused_logits(executor, ids).tobytes()] = 0, n_threads
    assert len(seen) == 1, seen.values()


def test_batches_go_through_small_tiles_and_large_ones(data: Path, open_emulated: OpenEmulated) -> None:
    """So that what is said above is said of both."""
    with open_gguf(data / "llamacpp/llama.q4_0.gguf") as file:
        model, device = model_of(file), open_emulated(build_kind="fast")
        plan = plan_of(model, Case("off", "f16", 128, N_TOKENS), SHARES["all"])
        with on_device(plan, file, device) as executor:
            for n_tokens, kernels in (
                (16, {"matmul_few_q4_0"}),
                (N_TOKENS, {"matmul_few_q4_0", "matmul_q4_0"}),
            ):
                device.counters.launches.clear()
                executor.run(np.full(n_tokens, 5, np.int32), 0, None)
                assert {k for k in device.counters.launches if k.startswith("matmul_")} == kernels


def test_logits_of_a_long_context_do_not_depend_on_batches(data: Path, open_emulated: OpenEmulated) -> None:
    """Where a token's parts have blocks of their own, and a batch takes them behind each other."""
    n_before, n_after = 1025, 12
    with open_gguf(data / "llamacpp/llama.q8_0.gguf") as file:
        model = model_of(file, 1)
        plan = plan_of(model, Case("off", "f16", 1100, 512), SHARES["all"])
        ids = np.random.default_rng(0).integers(3, 200, n_before + n_after).astype(np.int32)
        seen = set()
        with on_device(plan, file, open_emulated(build_kind="fast")) as executor:
            for start in range(0, n_before, 512):
                executor.run(ids[start : min(start + 512, n_before)], start, None)
            for sizes in ((n_after,), (1,) * n_after, (5, 1, 6)):
                logits, start = np.zeros((n_after, model.n_vocab), np.float32), 0
                for size in sizes:
                    some = ids[n_before + start :][:size]
                    executor.run(some, n_before + start, logits[start : start + size])
                    start += size
                seen.add(logits.tobytes())
    assert len(seen) == 1
