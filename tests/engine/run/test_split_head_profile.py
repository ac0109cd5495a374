"""A head on the device, of which a token by itself computes the rows that the file's profile lists."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from head_profiles import F32, NAME, ROW, by_sign, with_profile
from split_runs import IDS, Case, OpenEmulated, model_of, nan_rows, on_device, plan_named

from hotcold.engine.plan.launches import launches_of_a_token
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.traffic import token_traffic
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels import ref
from hotcold.kernels.formats import CANDIDATE_WORDS

Kind = GGMLQuantizationType
MODELS = {"f16": "smallthinker.f16", "q8_0": "smallthinker.softmax.q8_0"}
CASE, N = Case("off"), 6


@contextmanager
def opened(
    folder: Path, data: Path, name: str = "f16", kind: Kind = Kind.F32, listed: float = 1.0
) -> Iterator[GGUFFile]:
    """A model with a profile of this type; `listed` times what fc2 has."""
    source = data / "llamacpp" / f"{MODELS[name]}.gguf"
    fc1, fc2 = by_sign(source, 2 if kind == Kind.F32 else 32)
    with open_gguf(with_profile(source, folder / "a.gguf", fc1, fc2 * listed, kind)) as file:
        yield file


def plans(file: GGUFFile, budget: str) -> tuple[Plan, Plan]:
    """By the profile, and with the whole head, which are the same bytes but for the profile's."""
    model = model_of(file)
    return plan_named(model, CASE, budget), plan_named(replace(model, sparse_head=False), CASE, budget)


def one_by_one(executor: Executor) -> F32:
    out = np.zeros((N, executor.model.n_vocab), np.float32)
    for i in range(N):
        executor.run(IDS[i : i + 1], i, out[i : i + 1])
    return out


def by_profile(whole: F32) -> F32:
    """What is left of whole logits by a profile of signs."""
    is_even = np.arange(whole.shape[1]) % 2 == 0
    return np.where(is_even == (whole[:, [ROW]] > 0), whole, -np.inf)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("name", "kind"), [("f16", Kind.F32), ("q8_0", Kind.Q8_0), ("f16", Kind.Q8_0), ("q8_0", Kind.F32)]
)
def test_rows_that_the_profile_lists_are_computed_and_no_others(
    name: str, kind: Kind, data: Path, tmp_path: Path, open_emulated: OpenEmulated
) -> None:
    """With the bits of the whole head, in graphs and without; a batch computes all rows."""
    with opened(tmp_path, data, name, kind) as file:
        sparse, dense = plans(file, "everything")
        found = []
        for plan, has_graphs in ((dense, True), (sparse, True), (sparse, False)):
            device = open_emulated(build_kind="fast", policy="late")
            device.has_graphs = has_graphs
            with on_device(plan, file, device) as executor:
                alone, batch = one_by_one(executor), np.zeros((4, executor.model.n_vocab), np.float32)
                executor.run(IDS[:4], 0, batch)
                found.append((alone, batch.tobytes()))
    (whole, of_batch), (some, same_batch), (ungraphed, _) = found
    assert some.tobytes() == by_profile(whole).tobytes() == ungraphed.tobytes()
    assert of_batch == same_batch and {True, False} == set((whole[:, ROW] > 0).tolist())


def test_a_profile_that_lists_nothing_means_all_rows(
    data: Path, tmp_path: Path, open_emulated: OpenEmulated
) -> None:
    with opened(tmp_path, data, listed=0.0) as file:
        found = []
        for plan in plans(file, "everything"):
            with on_device(plan, file, open_emulated(build_kind="fast")) as executor:
                found.append(one_by_one(executor).tobytes())
    assert found[0] == found[1]


def test_rows_that_are_not_listed_are_not_read(
    data: Path, tmp_path: Path, open_emulated: OpenEmulated
) -> None:
    """NaN in them changes no bit."""
    with opened(tmp_path, data) as file:
        plan, _ = plans(file, "everything")
        with on_device(plan, file, open_emulated()) as executor:
            logits = np.zeros((1, executor.model.n_vocab), np.float32)
            executor.run(IDS[:1], 0, logits)
        unread = np.setdiff1d(np.flatnonzero(np.isneginf(logits[0])), IDS[:1])  # the embedding is the head
        image = bytearray(file.path.read_bytes())
        nan_rows(file, plan.model.output, unread, image)
        (tmp_path / "nan.gguf").write_bytes(image)
        with (
            open_gguf(tmp_path / "nan.gguf") as spoiled,
            on_device(plans(spoiled, "everything")[0], spoiled, open_emulated()) as executor,
        ):
            again = np.zeros_like(logits)
            executor.run(IDS[:1], 0, again)
    assert again.tobytes() == logits.tobytes() and unread.size > 200


def test_where_the_head_stays_on_the_cpu_the_profile_does(
    data: Path, tmp_path: Path, open_emulated: OpenEmulated
) -> None:
    with opened(tmp_path, data) as file:
        found = []
        for plan in plans(file, "half"):
            (head,) = (entry for entry in plan.weights if entry.role == "head")
            of_profile = [entry.side for entry in plan.weights if entry.role == "profile"]
            assert head.side == "cpu" and of_profile == ["cpu", "cpu"]
            with on_device(plan, file, open_emulated(build_kind="fast")) as executor:
                found.append(one_by_one(executor))
        some, whole = found
        assert some.tobytes() == by_profile(whole).tobytes()


def test_the_plan_counts_it(data: Path, tmp_path: Path, open_emulated: OpenEmulated) -> None:
    with opened(tmp_path, data) as file:
        plan, whole = plans(file, "everything")
        n_bytes = 4 * (2 * 64 + 600 * 4)  # rows of two numbers take 16 bytes there
        entries = [entry for entry in plan.weights if entry.tensor == NAME]
        assert [(e.role, e.side, e.device_rows) for e in entries] == [
            ("profile", "gpu", 2),
            ("profile", "gpu", 600),
        ]
        assert sum(entry.device_bytes for entry in entries) == n_bytes == plan.totals.predictors
        assert len({entry.name for entry in plan.weights}) == len(plan.weights)
        assert token_traffic(plan).device_bytes - token_traffic(whole).device_bytes == n_bytes
        assert {e.side for e in whole.weights if e.tensor == NAME} == {"cpu"} and not whole.totals.predictors
        assert token_traffic(whole).host_bytes == token_traffic(plan).host_bytes
        for some in (plan, whole):
            device = open_emulated(build_kind="fast")
            with on_device(some, file, device) as executor:
                logits, found = np.zeros((1, 600), np.float32), np.zeros((1, CANDIDATE_WORDS), np.int32)
                executor.run(IDS[:1], 0, logits, candidates=found)
                assert sum(device.counters.launches.values()) == launches_of_a_token(some)
                assert device.counters.live_bytes <= some.totals.used


def test_candidates_are_those_of_the_listed_rows(
    data: Path, tmp_path: Path, open_emulated: OpenEmulated
) -> None:
    """What was left out is no fault, for which whole rows would come."""
    with opened(tmp_path, data) as file:
        plan, _ = plans(file, "everything")
        with on_device(plan, file, open_emulated(build_kind="fast")) as executor:
            for i in range(3):
                whole, logits = (np.full((1, executor.model.n_vocab), 7, np.float32) for _ in range(2))
                found = np.zeros((1, CANDIDATE_WORDS), np.int32)
                executor.run(IDS[i : i + 1], i, whole)
                executor.run(IDS[i : i + 1], i, logits, candidates=found)
                assert found[0].tolist() == ref.candidates(whole[0], left_out=True).tolist()
                assert found[0, 0] == 0 and (logits == 7).all()
