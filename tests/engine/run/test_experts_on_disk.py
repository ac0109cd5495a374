"""A mixture whose file is larger than memory: the system hears which experts come next, and no bit changes."""

import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from split_runs import Case, OpenEmulated, mixed_logits, model_of, on_device, plan_named

from hotcold.engine.host.steps import Walk
from hotcold.engine.model.load import load_model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run import executor as executors
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import open_gguf
from hotcold.kernels.cpu import program

IDS = np.array([7, 300, 41], np.int32)


@pytest.mark.parametrize("n_tokens", [1, 3])
@pytest.mark.parametrize("name", ["smallthinker.window5.q4_0", "qwen3moe.f16"])
def test_the_chosen_are_named_as_soon_as_they_are_known(
    name: str,
    n_tokens: int,
    data: Path,
    logits_of: Callable[[Executor, NDArray[np.int32], int], NDArray[np.float32]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind each router, which SmallThinker has before attention; the ranges are the experts' of the map."""
    found = []
    with open_gguf(data / "llamacpp" / f"{name}.gguf") as file:
        model = load_model(file)
        assert model.experts is not None
        n_expert = model.experts.n_expert
        for fits in (True, False):
            monkeypatch.setattr(executors, "fits_memory", lambda *_, fits=fits: fits)
            with Executor(plan_for_cpu(model, Wanted("off", 64, 8, "f32")), file, 2) as executor:
                found.append(logits_of(executor, IDS[:n_tokens], n_tokens))
                (walk,) = executor.run_steps.of(n_tokens, True)
                assert isinstance(walk, Walk)
                told = [
                    (node.op, record)
                    for node, records in walk.lowered
                    for record in records
                    if record["code"] == program.WILL_NEED
                ]
                assert len(told) == (0 if fits else model.n_layer)
                if fits:
                    continue
                for i, (op, record) in enumerate(told):
                    assert op == "top_k" and record["advice"] == mmap.MADV_WILLNEED
                    for field, part in (("w", "gate"), ("w1", "up"), ("w2", "down")):
                        rows = file.data(f"blk.{i}.ffn_{part}_exps.weight")
                        table = executor.host.store.experts(model.layers[i].ffn_matrices[0])
                        assert field != "w" or record["w"] == table
                        assert record[f"{field}_stride"] * n_expert == rows.nbytes
                ops = [node.op for node, _ in walk.lowered]
                is_early = ops.index("top_k") < ops.index("attention")
                assert is_early == name.startswith("smallthinker")
    assert found[0].tobytes() == found[1].tobytes()


def addresses(at: int, n_expert: int) -> NDArray[np.int64]:
    """A table of the experts' first rows, as kernels read it."""
    return np.array((ctypes.c_int64 * n_expert).from_address(at))


@pytest.mark.sample(3)
@pytest.mark.parametrize("n_tokens", [1, 3])
@pytest.mark.parametrize("budget", ["dense", "dense + 50%"])
@pytest.mark.parametrize("name", ["smallthinker.window5.q4_0", "qwen3moe.f16"])
def test_where_a_device_routes_the_cold_ones_are_named_before_they_are_read(
    name: str,
    budget: str,
    n_tokens: int,
    data: Path,
    open_emulated: OpenEmulated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the router's answer as it came down, and none of the experts that are on the device."""
    found, case = [], Case("off")
    with open_gguf(data / "llamacpp" / f"{name}.gguf") as file:
        model = model_of(file)
        assert model.experts is not None
        plan, n_expert = plan_named(model, case, budget), model.experts.n_expert
        hot = [split.hot for split in plan.layers]
        assert any(ids.size for ids in hot) == (budget != "dense")
        for fits in (True, False):
            monkeypatch.setattr(executors, "fits_memory", lambda *_, fits=fits: fits)
            with on_device(plan, file, open_emulated(build_kind="fast", policy="late")) as executor:
                found.append(mixed_logits(executor, (n_tokens,) * 9))
                walks = executor.run_steps.walks[1 if n_tokens == 1 else case.n_batch]
                of_experts = [
                    (node, [record["code"] for record in records], records)
                    for walk in walks
                    for node, records in walk.lowered
                    if node.op == "expert_ffn"
                ]
                assert all(node.op != "top_k" for walk in walks for node, _ in walk.lowered)
                assert len(of_experts) == sum(ids.size < n_expert for ids in hot)
                assert all((program.WILL_NEED in codes) != fits for _, codes, _ in of_experts)
                if fits:
                    continue
                for node, codes, records in of_experts:
                    assert codes.index(program.WILL_NEED) < codes.index(program.GROUP)
                    assert codes.count(program.WILL_NEED) == 1
                    record = records[codes.index(program.WILL_NEED)]
                    assert node.tensor("chosen").origin is not None  # it was copied from the device
                    layer = node.layer or 0
                    told = addresses(record["w"], n_expert)
                    assert np.flatnonzero(told == 0).tolist() == hot[layer].tolist()
                    weights = model.layers[layer].ffn_matrices
                    rows = [file.data(weight.name) for weight in weights]
                    first = rows[0].__array_interface__["data"][0]
                    at = first + np.arange(n_expert) * (rows[0].nbytes // n_expert)
                    assert told[told != 0].tolist() == at[told != 0].tolist()
                    strides = [record[f"{field}_stride"] for field in ("w", "w1", "w2")]
                    assert strides == [each.nbytes // n_expert for each in rows]
    assert found[0].tobytes() == found[1].tobytes()
