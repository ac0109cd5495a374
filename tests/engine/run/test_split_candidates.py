"""A head on the device tells the likeliest tokens alone where they are enough; texts are those of whole logits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from split_runs import (
    IDS,
    Case,
    OpenEmulated,
    cpu_executor,
    model_of,
    nan_rows,
    on_device,
    plan_named,
)

import hotcold
from hotcold.engine.generation.generation import Engine
from hotcold.engine.plan.plan import Plan
from hotcold.engine.run.executor import Executor
from hotcold.errors import SettingError
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels import ref
from hotcold.kernels.formats import CANDIDATE_WORDS

PROMPT = "Once upon a time"
ENOUGH: tuple[dict[str, Any], ...] = ({"temp": 0.0}, {}, {"ignore_eos": True, "top_k": 9, "temp": 1.5})
NEED_ALL: tuple[dict[str, Any], ...] = (
    {"top_k": 0},
    {"top_k": 65},
    {"top_k": 64, "ignore_eos": True},
    {"temp": 0.0, "repeat_penalty": 1.1},
    {"temp": 0.0, "logprobs": 2},
)


def rows_of(executor: Executor, n: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    return np.full((n, executor.model.n_vocab), 7, np.float32), np.zeros((n, CANDIDATE_WORDS), np.int32)


@pytest.mark.parametrize("has_graphs", [False, True])
def test_they_are_those_of_the_logits(
    has_graphs: bool, plan: Plan, file: GGUFFile, open_emulated: OpenEmulated
) -> None:
    """Of runs of one token and of several; a graph for whole logits stands beside one for candidates."""
    device = open_emulated(build_kind="fast", policy="late")
    device.has_graphs = has_graphs
    with on_device(plan, file, device) as executor:
        for start, n in ((0, 1), (1, 3), (4, 1), (5, 1)):
            ids, (whole, _) = IDS[start : start + n], rows_of(executor, n)
            executor.run(ids, start, whole)
            logits, found = rows_of(executor, n)
            executor.run(ids, start, logits, candidates=found)
            assert found.tolist() == [ref.candidates(row).tolist() for row in whole]
            assert (logits == 7).all()  # nothing but the candidates came


def test_they_alone_cross_the_bus(plan: Plan, file: GGUFFile, open_emulated: OpenEmulated) -> None:
    device, sent = open_emulated(build_kind="fast"), []
    with on_device(plan, file, device) as executor:
        logits, found = rows_of(executor, 1)
        for candidates in (None, found):
            before = device.counters.d2h_bytes
            executor.run(IDS[:1], 0, logits, candidates=candidates)
            sent.append(device.counters.d2h_bytes - before)
        assert sent[0] - sent[1] == 4 * executor.model.n_vocab - 4 * CANDIDATE_WORDS


def test_logits_that_are_not_finite_come_whole(
    plan: Plan, file: GGUFFile, tmp_path: Path, open_emulated: OpenEmulated
) -> None:
    """To tell what is wrong with them, as always."""
    image, output = bytearray(file.path.read_bytes()), plan.model.output
    nan_rows(file, output, np.array([70]), image)
    (path := tmp_path / "nan.gguf").write_bytes(image)
    with open_gguf(path) as spoiled:
        model = model_of(spoiled)
        with on_device(
            plan_named(model, Case("predictor"), "everything"), spoiled, open_emulated()
        ) as executor:
            (whole, _), (logits, found) = rows_of(executor, 2), rows_of(executor, 2)
            executor.run(IDS[:2], 0, whole)
            executor.run(IDS[:2], 0, logits, candidates=found)
    assert np.isnan(whole[:, 70]).all() and found[:, 0].tolist() == [1, 1]
    assert logits.tobytes() == whole.tobytes()


def test_who_cannot_have_them_is_told(plan: Plan, file: GGUFFile, open_emulated: OpenEmulated) -> None:
    with on_device(plan, file, open_emulated(build_kind="fast")) as executor:
        logits, found = rows_of(executor, 1)
        wrong: tuple[Any, ...] = (found[:, :-1], np.repeat(found, 2, 0), found.astype(np.int64))
        for bad in wrong:
            with pytest.raises(SettingError, match="candidates array"):
                executor.run(IDS[:1], 0, logits, candidates=bad)
        with pytest.raises(SettingError, match="candidates: .*only with logits"):
            executor.run(IDS[:1], 0, None, candidates=found)
    with cpu_executor(model_of(file), file, Case("predictor")) as executor:
        assert not executor.gives_candidates
        with pytest.raises(SettingError, match="of a head on a device"):
            executor.run(IDS[:1], 0, logits, candidates=found)


@pytest.fixture(scope="module")
def engine(compiler: str) -> Iterator[Engine]:
    with hotcold.load(device="emulated", vram_budget="64MiB", n_ctx=64, n_batch=8, threads=2) as opened:
        assert opened.executor.gives_candidates
        yield opened


def text_and_bytes(engine: Engine, settings: dict[str, Any], n: int = 5) -> tuple[list[int], float]:
    """Ids of a text, and what came from the device for a token of it."""
    (device,) = engine.executor.devices
    generation = engine.generate(PROMPT, n, seed=11, **settings)
    next(generation)  # one token, at least
    before, counted = device.counters.d2h_bytes, len(generation.ids)
    next(generation)
    n_bytes = (device.counters.d2h_bytes - before) / (len(generation.ids) - counted)
    list(generation)
    return generation.ids, n_bytes


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("settings", "is_enough"), [(s, True) for s in ENOUGH] + [(s, False) for s in NEED_ALL]
)
def test_texts_are_those_of_whole_logits(
    settings: dict[str, Any], is_enough: bool, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, n_bytes = text_and_bytes(engine, settings)
    assert n_bytes == 4 * (CANDIDATE_WORDS if is_enough else engine.model.n_vocab)
    monkeypatch.setattr(Executor, "gives_candidates", False)
    whole, n_bytes = text_and_bytes(engine, settings)
    assert n_bytes == 4 * engine.model.n_vocab
    assert ids == whole and len(ids) == 5


@pytest.mark.slow
def test_a_draft_is_judged_by_them(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "Once upon a time, once upon a time, once upon a"
    texts = []
    for gives in (True, False):
        monkeypatch.setattr(Executor, "gives_candidates", gives)
        texts.append("".join(engine.generate(prompt, 6, temp=0.0, draft="ngram")))
    assert texts[0] == texts[1]
