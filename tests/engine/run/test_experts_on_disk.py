"""A mixture whose file is larger than memory: the system hears which experts come next, and no bit changes."""

import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

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
