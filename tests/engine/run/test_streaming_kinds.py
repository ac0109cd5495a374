"""Prompts for which single neurons of experts are sent, or thresholds with them, or of one of several sequences.

As in test_streaming.py: the bits are those of a run for which all of it lies on the device before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from split_runs import Case, Logits, OpenEmulated, cpu_executor, model_of, on_device, plan_named
from streamed_runs import LEAST, all_there, last_failure, logits_in_runs, sender_of, with_streaming
from threshold_models import IDS, forward, model_file

from hotcold.engine.device import staging
from hotcold.engine.device.sending import Sender
from hotcold.engine.device.store import DeviceStore
from hotcold.engine.graph.graph import COLD
from hotcold.engine.model.model import Model
from hotcold.engine.plan import streaming
from hotcold.engine.plan.footprint import ffn_part
from hotcold.engine.plan.plan import Plan
from hotcold.engine.run.executor import Executor
from hotcold.errors import DeviceError
from hotcold.gguf_io import GGUFFile, open_gguf

slow = pytest.mark.slow
SIZES, N_BATCH = (8, 12), 12
BOUND_OF_F32 = 1e-5  # as in test_threshold_split.py
BY_NEURON, WHOLE = ("qwen3_moe", True), ("qwen3_moe", False)
CASES = [
    (*BY_NEURON, "threshold", "dense + 50%"),
    ("llama", True, "threshold", "half"),
    (*BY_NEURON, "off", "half"),
    (*BY_NEURON, "off", "dense + 50%"),
    (*BY_NEURON, "threshold", "half"),
    (*WHOLE, "threshold", "dense + 50%"),
    (*WHOLE, "threshold", "half"),
    ("llama", True, "threshold", "dense + 50%"),
    ("gemma3", True, "threshold", "dense + 17%"),
]
EACH_CASE = [pytest.param(*case, marks=() if case in CASES[:2] else slow) for case in CASES]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces go in many parts, as large ones do."""
    monkeypatch.setattr(staging, "STAGING_BYTES", 40000)


@dataclass(frozen=True)
class Streamed:
    """A model that is streamed, and what NumPy makes of it."""

    file: GGUFFile
    plan: Plan
    wanted: np.ndarray[Any, Any]


@contextmanager
def streamed(case: tuple[str, bool, str, str], folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Streamed]:
    kind, sparse_layout, sparsity, budget = case
    path, source = model_file(folder, kind, sparse_layout=sparse_layout)
    wanted, thresholds = forward(source, IDS, patch)
    with open_gguf(path) as file:
        for name, numbers in thresholds.items():
            file.add(name, numbers)
        plan = plan_named(model_of(file), Case(sparsity, n_ctx=64, n_batch=N_BATCH), budget)
        yield Streamed(file, with_streaming(plan), wanted)


def logits_of(executor: Executor) -> Logits:
    return logits_in_runs(executor, IDS, SIZES)


def checked_bits(
    plan: Plan, file: GGUFFile, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> Logits:
    """The logits, which have the same bits whether rows are there or are sent, in any order."""
    orders: list[tuple[dict[str, Any], tuple[int, ...]]] = [
        ({"policy": "late"}, SIZES),
        ({"policy": "random", "seed": 2, "order": 9}, (5, 3, 12)),
        ({"policy": "eager"}, (12, 8)),
    ]
    with all_there(plan, file, open_emulated, monkeypatch) as executor:
        want = logits_of(executor)
    for options, sizes in orders:
        with on_device(plan, file, open_emulated(build_kind="fast", **options)) as executor:
            assert logits_in_runs(executor, IDS, sizes).tobytes() == want.tobytes(), options
            assert sender_of(executor).sent_bytes > 0
    return want


@pytest.mark.parametrize(("kind", "sparse_layout", "sparsity", "budget"), EACH_CASE)
def test_bits_are_those_of_rows_that_are_there(
    kind: str,
    sparse_layout: bool,
    sparsity: str,
    budget: str,
    tmp_path: Path,
    open_emulated: OpenEmulated,
    monkeypatch: pytest.MonkeyPatch,
    distance: Callable[[Logits, Logits], float],
) -> None:
    """In every order of streams, threads and blocks; and near NumPy, which leaves out what is below a threshold."""
    with streamed((kind, sparse_layout, sparsity, budget), tmp_path, monkeypatch) as the:
        want = checked_bits(the.plan, the.file, open_emulated, monkeypatch)
        near = the.wanted
        if sparsity == "off":
            with cpu_executor(the.plan.model, the.file, Case("off", n_ctx=64, n_batch=N_BATCH)) as executor:
                near = logits_of(executor)
    assert distance(want, near.astype(np.float32)) < BOUND_OF_F32


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=slow)])
def test_a_copy_fails_and_the_next_run_is_right(
    every: bool, tmp_path: Path, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows, of numbers and of thresholds."""
    with streamed(CASES[0], tmp_path, monkeypatch) as the:
        device = open_emulated(build_kind="fast", policy="random")
        with on_device(the.plan, the.file, device) as executor:
            want = logits_of(executor)
            failed = last_failure(
                device, "h2d", count(1) if every else (2, 30), want, lambda: logits_of(executor)
            )
    assert failed >= 30


def test_thresholds_that_stay_behind_are_found(
    tmp_path: Path, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Sender.send

    def without_thresholds(self: Sender, number: int, team: Any) -> None:
        pieces, self.pieces = self.pieces, tuple(replace(piece, n_thresholds=0) for piece in self.pieces)
        try:
            send(self, number, team)
        finally:
            self.pieces = pieces

    with streamed(CASES[1], tmp_path, monkeypatch) as the:
        with on_device(the.plan, the.file, open_emulated(build_kind="fast")) as executor:
            want = logits_of(executor).tobytes()
        monkeypatch.setattr(Sender, "send", without_thresholds)
        with on_device(the.plan, the.file, open_emulated(build_kind="fast")) as executor:
            assert logits_of(executor).tobytes() != want


PARTS = [
    ("llamacpp/mixtral.q4_0", "dense + 50%", 2, 5e-3),
    ("llamacpp/mixtral.q4_0", "half", 3, 5e-3),
    ("llamacpp/qwen2moe.q4_0", "one layer", 3, 5e-3),
    ("llamacpp/gptoss.mxfp4", "half", 2, 5e-3),
    ("llamacpp/gptoss.mxfp4", "dense + 50%", 3, 5e-3),
    ("llamacpp/qwen3moe.f16", "half", 4, BOUND_OF_F32),
]


@pytest.mark.parametrize(
    ("name", "budget", "n_parts", "bound"),
    [pytest.param(*each, marks=() if each == PARTS[-1] else slow) for each in PARTS],
)
def test_a_large_mixture_is_sent_in_parts(
    name: str,
    budget: str,
    n_parts: int,
    bound: float,
    data: Path,
    open_emulated: OpenEmulated,
    monkeypatch: pytest.MonkeyPatch,
    distance: Callable[[Logits, Logits], float],
) -> None:
    """With the biases of its experts, where those are lacking; a part that is read by another's numbers is seen."""
    with open_gguf(data / f"{name}.gguf") as file:
        model, case = model_of(file), Case("off", n_ctx=64, n_batch=N_BATCH)
        in_parts(model, n_parts, monkeypatch)
        plan = with_streaming(plan_named(model, case, budget))
        assert plan.streaming is not None
        of_experts = [piece for piece in plan.streaming.pieces if piece.units is not None]
        assert {piece.rows for piece in of_experts} >= {COLD, f"{COLD}1"}
        want = checked_bits(plan, file, open_emulated, monkeypatch)
        with cpu_executor(model, file, case) as executor:
            assert distance(want, logits_of(executor)) < bound
        neurons = DeviceStore.neurons
        monkeypatch.setattr(
            DeviceStore,
            "neurons",
            lambda self, i, rows: neurons(self, i, COLD if rows == f"{COLD}1" else rows),
        )
        with on_device(plan, file, open_emulated(build_kind="fast")) as executor:
            try:
                assert logits_of(executor).tobytes() != want.tobytes()
            except DeviceError as error:  # what lies there by now may be no places of rows
                assert "bad memory access" in str(error)


def test_neurons_of_experts_are_sent_in_parts_with_their_thresholds(
    tmp_path: Path, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    with streamed(CASES[0], tmp_path, monkeypatch) as the:
        in_parts(the.plan.model, 3, monkeypatch)
        plan = with_streaming(replace(the.plan, streaming=None))
        assert plan.streaming is not None and len(plan.streaming.pieces) == 3 * the.plan.model.n_layer
        assert np.isfinite(checked_bits(plan, the.file, open_emulated, monkeypatch)).all()


def in_parts(model: Model, n: int, patch: pytest.MonkeyPatch) -> None:
    n_bytes = ffn_part(model.layers[0], "off").n_bytes
    patch.setattr(streaming, "PART_BYTES", -(-n_bytes // n))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "sides"),
    [("dense + 17%", ["gpu", "gpu"]), pytest.param("half", ["cpu", "cpu"], marks=pytest.mark.slow)],
)
def test_a_prompt_of_one_of_several_sequences(
    budget: str, sides: list[str], data: Path, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of two sequences by turns, and a token of both in one run: each says what it says alone."""
    ids = np.array([1, 31, 40, 7, 55, 91, 26, 14, 28, 69, 66, 12, 5, 3], np.int32)
    with open_gguf(data / "powerinfer/llama-f16.powerinfer.gguf") as file:
        model, case = model_of(file), Case("predictor", n_ctx=64, n_batch=N_BATCH, n_slots=3)
        plan = with_streaming(plan_named(model, case, budget))
        assert plan.streaming is not None and [cache.side for cache in plan.caches] == sides
        with all_there(plan, file, open_emulated, monkeypatch) as executor:
            want = logits_in_runs(executor, ids, (8, 5, 1))
        for options in ({"policy": "late"}, {"policy": "random", "seed": 3}):
            with on_device(plan, file, open_emulated(build_kind="fast", **options)) as executor:
                out = np.zeros((3, len(ids), model.n_vocab), np.float32)
                for first, end in ((0, 8), (8, 13)):
                    for slot in (2, 0):
                        executor.run(ids[first:end], first, out[slot, first:end], slot)
                assert executor.sends_for(LEAST) and sender_of(executor).sent_bytes > 0
                together = np.zeros((2, model.n_vocab), np.float32)
                executor.run_apart(ids[[13, 13]], [13, 13], [0, 2], together)
                out[[0, 2], 13] = together
            assert out[0].tobytes() == out[2].tobytes() == want.tobytes(), options
