"""A head of which a token by itself computes the rows that the file's profile lists; the others are -infinity."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run
from expert_files import numbers_of, write_mixture
from head_profiles import F32, NAME, ROW, by_sign, with_profile

from hotcold import load
from hotcold.engine.model.load import load_model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import open_gguf

IDS = np.array([1, 31, 400, 7, 55, 91, 269, 14], np.int32)


@pytest.fixture(scope="module")
def source(data: Path) -> Path:
    return data / "llamacpp" / "smallthinker.f16.gguf"


@pytest.fixture(scope="module")
def written(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[F32, F32], Path]:
    """A SmallThinker with a profile."""
    return lambda *fcs: with_profile(source, tmp_path_factory.mktemp("profile") / "a.gguf", *fcs)


def logits(path: Path, step: int, sparse_head: bool = True) -> F32:
    with open_gguf(path) as file:
        model = replace(load_model(file), sparse_head=sparse_head)
        out = np.zeros((len(IDS), model.n_vocab), np.float32)
        with Executor(plan_for_cpu(model, Wanted("off", 16, step, "f32")), file, 2) as it:
            for i in range(0, len(IDS), step):
                it.run(IDS[i : i + step], i, out[i : i + step])
    return out


def test_rows_that_the_profile_lists_are_computed_and_no_others(
    written: Callable[[F32, F32], Path], source: Path
) -> None:
    path = written(*by_sign(source))
    whole, some = logits(path, 1, sparse_head=False), logits(path, 1)
    listed = (np.arange(whole.shape[1]) % 2 == 0) == (whole[:, [ROW]] > 0)
    assert {True, False} == set((whole[:, ROW] > 0).tolist())
    assert np.array_equal(some[listed], whole[listed])
    assert (some[~listed] == -np.inf).all()


def test_a_batch_computes_all_rows(written: Callable[[F32, F32], Path], source: Path) -> None:
    path = written(*by_sign(source))
    assert np.array_equal(logits(path, 4), logits(path, 4, sparse_head=False))


def test_a_profile_that_lists_nothing_means_all_rows(
    written: Callable[[F32, F32], Path], source: Path
) -> None:
    fc1, fc2 = by_sign(source)
    path = written(fc1, fc2 * 0)
    assert np.array_equal(logits(path, 1), logits(path, 1, sparse_head=False))


def test_a_profile_of_another_shape_is_refused(source: Path, tmp_path: Path) -> None:
    architecture, metadata, tensors = numbers_of(source)
    tensors[NAME] = np.zeros((2, 665), np.float32)
    path = write_mixture(tmp_path / "a.gguf", architecture, metadata, tensors, by_neuron=False)
    with open_gguf(path) as file, pytest.raises(FileError, match=r"then n_vocab = 600 rows of as many"):
        load_model(file)


def test_the_command_and_the_library_turn_it_off(source: Path) -> None:
    with pytest.raises(SettingError, match="head_sparsity"):
        load(source, head_sparsity="on")
    assert "--head-sparsity" in run("generate", "--help").stdout
    assert "--head-sparsity" in run("chat", "--help").stdout
    assert run("generate", "--head-sparsity", "some", "-p", "a").returncode == 2
