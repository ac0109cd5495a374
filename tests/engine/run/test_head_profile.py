"""A head of which a token by itself computes the rows that the file's profile lists; the others are -infinity."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run
from expert_files import F32, numbers_of, write_mixture
from split_runs import Case, budget_bytes, model_of, split_plan

from hotcold import load
from hotcold.engine.model.load import load_model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import open_gguf

IDS = np.array([1, 31, 400, 7, 55, 91, 269, 14], np.int32)
ROW = 269  # of the head
NAME = "lm_head_profiler.weight"


@pytest.fixture(scope="module")
def written(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[F32, F32], Path]:
    """A SmallThinker with a profile of two matrices, one behind the other in one tensor."""
    architecture, metadata, tensors = numbers_of(data / "llamacpp" / "smallthinker.f16.gguf")

    def write(fc1: F32, fc2: F32) -> Path:
        flat = np.concatenate([fc1.reshape(-1), fc2.reshape(-1)]).astype(np.float32)
        path = tmp_path_factory.mktemp("profile") / "a.gguf"
        rows = flat.reshape(len(fc1), -1)
        return write_mixture(path, architecture, metadata, {**tensors, NAME: rows}, by_neuron=False)

    return write


def by_sign(data: Path) -> tuple[F32, F32]:
    """Even rows are listed where the logit of ROW is positive, odd ones where it is negative."""
    _, _, tensors = numbers_of(data / "llamacpp" / "smallthinker.f16.gguf")
    head = tensors["token_embd.weight"]
    odd = np.arange(len(head)) % 2
    return np.stack([head[ROW], -head[ROW]]), np.stack([1 - odd, odd], 1).astype(np.float32)


def logits(path: Path, step: int, sparse_head: bool = True) -> F32:
    with open_gguf(path) as file:
        model = replace(load_model(file), sparse_head=sparse_head)
        out = np.zeros((len(IDS), model.n_vocab), np.float32)
        with Executor(plan_for_cpu(model, Wanted("off", 16, step, "f32")), file, 2) as it:
            for i in range(0, len(IDS), step):
                it.run(IDS[i : i + step], i, out[i : i + step])
    return out


def test_rows_that_the_profile_lists_are_computed_and_no_others(
    written: Callable[[F32, F32], Path], data: Path
) -> None:
    path = written(*by_sign(data))
    whole, some = logits(path, 1, sparse_head=False), logits(path, 1)
    listed = (np.arange(whole.shape[1]) % 2 == 0) == (whole[:, [ROW]] > 0)
    assert {True, False} == set((whole[:, ROW] > 0).tolist())
    assert np.array_equal(some[listed], whole[listed])
    assert (some[~listed] == -np.inf).all()


def test_a_batch_computes_all_rows(written: Callable[[F32, F32], Path], data: Path) -> None:
    path = written(*by_sign(data))
    assert np.array_equal(logits(path, 4), logits(path, 4, sparse_head=False))


def test_a_profile_that_lists_nothing_means_all_rows(written: Callable[[F32, F32], Path], data: Path) -> None:
    fc1, fc2 = by_sign(data)
    path = written(fc1, -np.abs(fc2) * 0)
    assert np.array_equal(logits(path, 1), logits(path, 1, sparse_head=False))


def test_with_a_device_the_head_is_whole(written: Callable[[F32, F32], Path], data: Path) -> None:
    with open_gguf(written(*by_sign(data))) as file:
        model = model_of(file)
    for budget in ("nothing", "everything"):
        plan = split_plan(model, Case("off"), budget_bytes(model, Case("off"), budget))
        names = [p.node.name for p in plan.decode.placed.nodes]
        assert ("head_profile" in names) == (budget == "nothing")
        entries = [entry for entry in plan.weights if entry.tensor == NAME]
        assert sum(entry.n_bytes for entry in entries) == 4 * 2 * (64 + 600)
        assert len({entry.name for entry in plan.weights}) == len(plan.weights)


def test_a_profile_of_another_shape_is_refused(data: Path, tmp_path: Path) -> None:
    architecture, metadata, tensors = numbers_of(data / "llamacpp" / "smallthinker.f16.gguf")
    tensors[NAME] = np.zeros((2, 665), np.float32)
    path = write_mixture(tmp_path / "a.gguf", architecture, metadata, tensors, by_neuron=False)
    with open_gguf(path) as file, pytest.raises(FileError, match=r"then n_vocab = 600 rows of as many"):
        load_model(file)


def test_the_command_and_the_library_turn_it_off(data: Path) -> None:
    with pytest.raises(SettingError, match="head_sparsity"):
        load(data / "llamacpp" / "smallthinker.f16.gguf", head_sparsity="on")
    assert "--head-sparsity" in run("generate", "--help").stdout
    assert "--head-sparsity" in run("chat", "--help").stdout
    assert run("generate", "--head-sparsity", "some", "-p", "a").returncode == 2
