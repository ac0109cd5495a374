"""Experts behind a ReLU: a down projection with a row a neuron, and rows of silent neurons that are not read."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from expert_files import Tensors, numbers_of, write_mixture
from numpy.typing import NDArray

from hotcold.engine.model.load import load_model
from hotcold.engine.model.sparsity import resolve_sparsity
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.errors import SettingError
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels import ref, ref_experts

F32 = NDArray[np.float32]
LogitsOf = Callable[[Executor, NDArray[np.int32], int], F32]
IDS = np.array([7, 300, 41, 5, 260, 12], np.int32)


@pytest.fixture(scope="module")
def tensors(data: Path) -> tuple[dict[str, Any], Tensors]:
    """The numbers of a SmallThinker whose experts are no squares, and its keys."""
    _, kept, numbers = numbers_of(data / "llamacpp" / "smallthinker.window5.q4_0.gguf")
    kept.pop("smallthinker.attention.sliding_window")
    return kept, numbers


def write(path: Path, metadata: dict[str, Any], tensors: Tensors, by_neuron: bool) -> Path:
    """See `write_mixture`."""
    return write_mixture(path, "smallthinker", metadata, tensors, by_neuron)


def executor(file: GGUFFile, sparsity: str, n_threads: int = 2) -> Executor:
    return Executor(plan_for_cpu(load_model(file), Wanted(sparsity, 16, 6, "f32")), file, n_threads)


def test_both_ways_round_and_both_modes_give_the_same(
    tensors: tuple[dict[str, Any], Tensors],
    tmp_path: Path,
    logits_of: LogitsOf,
    distance: Callable[[F32, F32], float],
) -> None:
    """The very bits in both modes, in batches and one by one, on any number of threads."""
    results = []
    for by_neuron in (False, True):
        path = write(tmp_path / f"{by_neuron}.gguf", *tensors, by_neuron)
        seen = set()
        with open_gguf(path) as file:
            for sparsity, step, n_threads in (("off", 1, 1), ("off", 6, 3), ("exact", 1, 2), ("exact", 4, 1)):
                with executor(file, sparsity, n_threads) as it:
                    logits = logits_of(it, IDS, step)
                    listed, firing = it.counts.sum((0, 1))
                seen.add(logits.tobytes())
                assert listed == len(IDS) * 5 * 2 * 32
                if sparsity == "exact":
                    assert 0.3 < firing / listed < 0.7
        assert len(seen) == 1
        results.append(logits)
    assert distance(results[1], results[0]) <= 1e-5


@pytest.mark.parametrize("name", ["mixtral.f16", "granitemoe.q8_0"])
def test_any_mixture_with_a_relu_spares_rows(name: str, data: Path, logits_of: LogitsOf) -> None:
    """The very bits of all neurons, from fewer of them: the weights were trained with SiLU, but ReLU is asked for."""
    seen = set()
    with open_gguf(data / "llamacpp" / f"{name}.gguf") as file:
        model = replace(load_model(file), ffn_activation="relu")
        ids = (IDS % model.n_vocab).astype(np.int32)
        for sparsity in ("off", "exact"):
            with Executor(plan_for_cpu(model, Wanted(sparsity, 16, 6, "f32")), file, 2) as it:
                seen.add(logits_of(it, ids, 6).tobytes())
                listed, firing = it.counts.sum((0, 1))
    assert len(seen) == 1 and model.experts is not None
    assert 0.3 < firing / listed < 0.7


def gates_of_first_layer(metadata: dict[str, Any], t: Tensors, token: int) -> tuple[F32, Any]:
    """Layer 0 of the first token, which attends to itself alone: the experts' gates, and who is chosen."""
    x = t["token_embd.weight"][[token]]
    chosen, _ = ref_experts.top_k((x @ t["blk.0.ffn_gate_inp.weight"].T).astype(np.float32), 2, "softmax")
    eps = metadata["smallthinker.attention.layer_norm_rms_epsilon"]
    n = ref.rms_norm(x, t["blk.0.attn_norm.weight"], eps).astype(np.float32)
    v = (n @ t["blk.0.attn_v.weight"].T).reshape(2, 24)
    a = np.repeat(v, 2, axis=0).reshape(1, -1) @ t["blk.0.attn_output.weight"].T
    n = ref.rms_norm((x + a).astype(np.float32), t["blk.0.ffn_norm.weight"], eps).astype(np.float32)
    return np.einsum("efk,k->ef", t["blk.0.ffn_gate_exps.weight"], n[0]), chosen[0]


@pytest.mark.parametrize("by_neuron", [False, True])
def test_rows_of_silent_neurons_are_not_read(
    by_neuron: bool, tensors: tuple[dict[str, Any], Tensors], tmp_path: Path, logits_of: LogitsOf
) -> None:
    metadata, numbers = tensors
    gates, chosen = gates_of_first_layer(metadata, numbers, int(IDS[0]))
    changed = {name: array.copy() for name, array in numbers.items()}
    for e in range(4):
        silent = np.flatnonzero(gates[e] < -1e-3) if e in chosen else np.arange(32)
        changed["blk.0.ffn_up_exps.weight"][e, silent] = np.nan
        if by_neuron or e not in chosen:
            changed["blk.0.ffn_down_exps.weight"][e][:, silent] = np.nan
    results = []
    for name, some in (("good", numbers), ("nan", changed)):
        with (
            open_gguf(write(tmp_path / f"{name}.gguf", metadata, some, by_neuron)) as file,
            executor(file, "exact") as it,
        ):
            results.append(logits_of(it, IDS[:1], 1))
    assert np.isfinite(results[0]).all()
    assert results[0].tobytes() == results[1].tobytes()


def test_which_modes_there_are(tensors: tuple[dict[str, Any], Tensors], tmp_path: Path, data: Path) -> None:
    with open_gguf(write(tmp_path / "a.gguf", *tensors, by_neuron=True)) as file:
        model = load_model(file)
        assert resolve_sparsity(model, "auto")[0] == "exact"
        with pytest.raises(SettingError, match="no predictors"):
            resolve_sparsity(model, "predictor")
    with open_gguf(write(tmp_path / "b.gguf", *tensors, by_neuron=False)) as file:
        model = load_model(file)
        assert resolve_sparsity(model, "auto")[0] == "off"
        assert resolve_sparsity(model, "exact")[0] == "exact"
    with (
        open_gguf(data / "llamacpp" / "mixtral.q4_0.gguf") as file,
        pytest.raises(SettingError, match="only ReLU has exact zeros"),
    ):
        resolve_sparsity(load_model(file), "exact")


def test_powerinfers_file_without_a_gating_function_means_the_sigmoid(
    tensors: tuple[dict[str, Any], Tensors], tmp_path: Path
) -> None:
    metadata, numbers = tensors
    silent = {key: value for key, value in metadata.items() if not key.endswith("expert_gating_func")}
    with open_gguf(write(tmp_path / "a.gguf", silent, numbers, by_neuron=True)) as file:
        experts = load_model(file).experts
    assert experts is not None
    assert experts.gating == "sigmoid"


def test_a_silu_mixture_the_other_way_round_gives_the_same(
    data: Path, tmp_path: Path, logits_of: LogitsOf, distance: Callable[[F32, F32], float]
) -> None:
    """Neurons with a negative gate count too; one token has the bits of a batch."""
    architecture, metadata, tensors = numbers_of(data / "llamacpp" / "mixtral.q4_0.gguf")
    found = []
    for by_neuron in (False, True):
        path = write_mixture(tmp_path / f"{by_neuron}.gguf", architecture, metadata, tensors, by_neuron)
        with open_gguf(path) as file:
            seen = []
            for step in (1, 6):
                with executor(file, "off") as it:
                    seen.append(logits_of(it, IDS, step))
        assert seen[0].tobytes() == seen[1].tobytes()
        found.append(seen[0])
    assert distance(found[1], found[0]) <= 1e-5
