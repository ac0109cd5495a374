"""A model that leaves out neurons below their thresholds gives what NumPy gives."""

from pathlib import Path

import numpy as np
import pytest
from threshold_models import IDS, forward, model_file

from hotcold.engine.generation.loading import load_with
from hotcold.engine.generation.run_options import RunOptions

KINDS = [("llama", True), ("gemma3", True), ("qwen3_moe", True), ("qwen3_moe", False)]


@pytest.mark.parametrize(("kind", "sparse_layout"), KINDS)
def test_logits_are_those_of_a_numpy_pass(
    kind: str, sparse_layout: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = model_file(tmp_path, kind, sparse_layout)
    wanted, thresholds = forward(model, IDS, monkeypatch)
    options = RunOptions(n_ctx=32, n_batch=32, device="cpu", sparsity="threshold", kv_type="f32")
    with load_with(path, options, tensors=thresholds) as engine:
        for step in (1, 3, len(IDS)):
            before = engine.executor.counts.sum(1)
            logits = np.zeros(wanted.shape, np.float32)
            for i in range(0, len(IDS), step):
                engine.executor.run(IDS[i : i + step], i, logits[i : i + step])
            error = np.sqrt(((logits - wanted) ** 2).sum() / (wanted**2).sum())
            assert error < 1e-5
            _, computed = (engine.executor.counts.sum(1) - before).T
            n_used = 1 if model.config.get("num_experts") is None else model.config["num_experts_per_tok"]
            width = next(iter(thresholds.values())).shape[-1] * n_used
            assert (computed > 8 * width).all() and (computed < 0.9 * len(IDS) * width).all()


def test_without_thresholds_all_neurons_are_computed(tmp_path: Path) -> None:
    from hotcold import load
    from hotcold.engine.calibrate.levels import none_yet

    path, _ = model_file(tmp_path, "llama")
    with load(path, n_ctx=32, n_batch=32, kv_type="f32") as engine:
        assert engine.sparsity == "off"
        n_layer, n_ff = engine.model.n_layer, engine.model.n_ff
        wanted = np.zeros((len(IDS), engine.model.n_vocab), np.float32)
        engine.executor.run(IDS, 0, wanted)
    options = RunOptions(n_ctx=32, n_batch=32, sparsity="threshold", kv_type="f32")
    with load_with(path, options, tensors=none_yet(n_layer, n_ff, 0)) as engine:
        got = np.zeros_like(wanted)
        engine.executor.run(IDS, 0, got)
    assert np.allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("emulated", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "sparse_layout"), KINDS)
def test_each_sequence_is_exact_at_its_own_first_positions(
    kind: str, sparse_layout: bool, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sequences go on by one token in one run: one behind the first positions, two at them."""
    path, model = model_file(tmp_path, kind, sparse_layout)
    _, thresholds = forward(model, IDS, monkeypatch)
    pasts = [12, 3, 7]
    options = RunOptions(
        n_ctx=32, n_batch=32, n_slots=3, device=device, vram_budget="auto", sparsity="threshold"
    )
    with load_with(path, options, tensors=thresholds) as engine:
        executor = engine.executor
        assert {cache.side == "cpu" for cache in executor.plan.caches} == {device == "cpu"}
        together, alone = np.zeros((2, len(pasts), engine.model.n_vocab), np.float32)
        for slot, n_past in enumerate(pasts):
            executor.run(IDS[:n_past], 0, None, slot)
        executor.run_apart(IDS[pasts], pasts, [0, 1, 2], together)
        for slot, n_past in enumerate(pasts):
            executor.run(IDS[n_past : n_past + 1], n_past, alone[slot : slot + 1], slot)
    assert np.array_equal(together.view(np.int32), alone.view(np.int32))
