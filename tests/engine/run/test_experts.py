"""Mixtures of experts: what is read, old files with one tensor an expert, batches of any size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from expert_files import write_old
from numpy.typing import NDArray

from hotcold.engine.measure.traffic import token_bytes
from hotcold.engine.model.load import load_model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile, open_gguf

F32 = NDArray[np.float32]
LogitsOf = Callable[[Executor, NDArray[np.int32], int], F32]
IDS = np.array([7, 300, 41], np.int32)
PARTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def executor(file: GGUFFile, n_threads: int = 2) -> Executor:
    return Executor(plan_for_cpu(load_model(file), Wanted("off", 64, 32, "f32")), file, n_threads)


def poisoned(path: Path, experts: set[tuple[int, int]], target: Path) -> Path:
    """A copy of the file with NaN in all rows of these (layer, expert)."""
    image = bytearray(path.read_bytes())
    with open_gguf(path) as file:
        for layer, e in experts:
            for part in PARTS:
                info = file.tensors[f"blk.{layer}.{part}.weight"]
                size = info.n_bytes // info.ne[2]
                at = info.offset + e * size
                image[at : at + size] = b"\xff" * size
    target.write_bytes(image)
    return target


@pytest.mark.parametrize(
    ("name", "n_tokens"), [("mixtral.q4_0", 1), ("qwen3moe.f16", 1), ("qwen3moe.f16", 2)]
)
def test_experts_that_are_not_chosen_are_not_read(
    name: str, n_tokens: int, data: Path, logits_of: LogitsOf, tmp_path: Path
) -> None:
    """NaN in one expert after the other tells which are chosen; then in all the others at once."""
    path, ids = data / "llamacpp" / f"{name}.gguf", IDS[:n_tokens]

    def logits(experts: set[tuple[int, int]]) -> F32:
        with open_gguf(poisoned(path, experts, tmp_path / "nan.gguf")) as file, executor(file) as it:
            return logits_of(it, ids, n_tokens)

    wanted = logits(set())
    with open_gguf(path) as file:
        model = load_model(file)
    assert model.experts is not None
    assert np.isfinite(wanted).all()
    every = {(layer, e) for layer in range(model.n_layer) for e in range(model.experts.n_expert)}
    unread = {each for each in every if logits({each}).tobytes() == wanted.tobytes()}
    n_chosen = len(every) - len(unread)
    assert model.n_layer * model.experts.n_used <= n_chosen <= n_tokens * model.n_layer * model.experts.n_used
    assert n_chosen < len(every)
    assert logits(unread).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("step", [1, 3])
def test_one_tensor_an_expert(step: int, data: Path, logits_of: LogitsOf, tmp_path: Path) -> None:
    old = tmp_path / "old.gguf"
    with open_gguf(data / "llamacpp" / "mixtral.q4_0.gguf") as file:
        write_old(old, file)
        with executor(file) as it:
            wanted = logits_of(it, IDS, step)
    with open_gguf(old) as file:
        assert "blk.0.ffn_gate.3.weight" in file.tensors
        assert not load_model(file).warnings
        with executor(file) as it:
            assert logits_of(it, IDS, step).tobytes() == wanted.tobytes()


def test_the_bytes_of_a_token_are_those_of_its_experts(data: Path) -> None:
    """Two of four, with the router; the shared expert whole."""
    for name, n_used, n_expert in (("mixtral.f16", 2, 4), ("qwen2moe.q4_0", 2, 4)):
        with open_gguf(data / "llamacpp" / f"{name}.gguf") as file:
            model = load_model(file)
            rows = {"token_embd.weight": model.token_embd.row_bytes}
            routed = sum(t.n_bytes for t in file.tensors.values() if "_exps" in t.name)
            rest = sum(rows.get(t.name, t.n_bytes) for t in file.tensors.values() if "_exps" not in t.name)
        head = model.output.n_bytes if model.output is model.token_embd else 0
        assert token_bytes(model) == rest + head + routed * n_used // n_expert
