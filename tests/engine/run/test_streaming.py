"""Prompts for which the device is sent what it lacks: the same bits as if all of it were there.

"There" means: every piece in memory of its own on the device, all of it copied before the run. Where no layer is
divided and every KV cache is on the device, that is the plan that has everything there.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from split_runs import Case, Logits, OpenEmulated, cpu_executor, model_of, on_device, plan_named, split_plan
from streamed_runs import all_there, last_failure, logits_in_runs, sender_of, with_streaming

import hotcold
from hotcold.engine.device import staging
from hotcold.engine.device.sending import Await, Release, Sender
from hotcold.engine.device.staging import Staging
from hotcold.engine.generation.description import description
from hotcold.engine.host.steps import Context
from hotcold.engine.model.model import Model
from hotcold.engine.plan.plan import Plan, SentPiece, SentRows
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.prompts import ON_THE_EMULATED, settle_prompts
from hotcold.errors import DoesNotFitError
from hotcold.gguf_io import open_gguf

slow = pytest.mark.slow
IDS = np.array([1, 31, 40, 7, 55, 91, 26, 14, 28, 69, 66, 12, 5], np.int32)
N_BATCH = 13
BOUND_OF_F32 = 1e-5  # as in test_split_logits.py
CASES = [
    ("powerinfer/llama-f16.powerinfer", "predictor", "dense + 50%"),
    ("powerinfer/llama-q4_0.powerinfer", "exact", "dense + 17%"),
    ("powerinfer/llama-q4_0.powerinfer", "off", "dense + 50%"),
    ("powerinfer/llama-f16.powerinfer", "predictor", "half"),
    ("powerinfer/opt-f16.powerinfer", "predictor", "dense + 17%"),
    ("powerinfer/opt-f16.powerinfer", "exact", "one layer"),
    ("powerinfer/falcon-q4_0.powerinfer", "predictor", "one layer"),
    ("powerinfer/bamboo-f16.powerinfer", "predictor", "dense + 17%"),
    ("llamacpp/llama.q8_0", "off", "one layer"),
    ("llamacpp/falcon.norm2.q4_0", "off", "half"),
    ("llamacpp/gemma3.q4_0", "off", "half"),
    ("llamacpp/phi3.longrope.q8_0", "off", "one layer"),
    ("llamacpp-types/llama.mix.q4_k_m", "off", "half"),
    ("llamacpp/mixtral.q4_0", "off", "dense + 50%"),
    ("llamacpp/mixtral.q4_0", "off", "half"),
    ("llamacpp/qwen2moe.q4_0", "off", "dense + 50%"),
    ("llamacpp/qwen2moe.q4_0", "off", "one layer"),
    ("llamacpp/gptoss.mxfp4", "off", "dense + 50%"),
]
QUICK = CASES[:2] + CASES[8:9]
EACH_CASE = [pytest.param(*case, marks=() if case in QUICK else slow) for case in CASES]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces go in many parts, as large ones do, so that the host waits in the middle of them."""
    monkeypatch.setattr(staging, "STAGING_BYTES", 40000)


def logits_of(executor: Executor, sizes: Sequence[int] = (8, 5)) -> Logits:
    return logits_in_runs(executor, IDS, sizes)


def streamed_plan(model: Model, sparsity: str, budget: str) -> Plan:
    """The plan for a budget, with staging buffers beside it."""
    return with_streaming(plan_named(model, Case(sparsity, n_ctx=64, n_batch=N_BATCH), budget))


@pytest.mark.parametrize(("name", "sparsity", "budget"), EACH_CASE)
def test_bits_are_those_of_rows_that_are_there(
    name: str,
    sparsity: str,
    budget: str,
    data: Path,
    open_emulated: OpenEmulated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In every order of streams, threads and blocks, for any number of threads, and whatever a token's company is."""
    orders: list[tuple[dict[str, Any], int, tuple[int, ...]]] = [
        ({"policy": "late"}, 2, (8, 5)),
        ({"policy": "ahead"}, 2, (5, 8)),
        ({"policy": "random", "seed": 2, "order": 9}, 3, (5, 3, 5)),
        ({"policy": "eager"}, 1, (13,)),
    ]
    with open_gguf(data / f"{name}.gguf") as file:
        plan = streamed_plan(model_of(file), sparsity, budget)
        with all_there(plan, file, open_emulated, monkeypatch) as executor:
            want = logits_of(executor)
        for options, n_threads, sizes in orders:
            with on_device(plan, file, open_emulated(build_kind="fast", **options), n_threads) as executor:
                assert logits_of(executor, sizes).tobytes() == want.tobytes(), options
                assert sender_of(executor).sent_bytes > 0


@pytest.mark.parametrize(
    ("name", "sparsity"),
    [
        ("powerinfer/llama-q4_0.powerinfer", "predictor"),
        pytest.param("powerinfer/opt-f16.powerinfer", "exact", marks=slow),
        pytest.param("powerinfer/falcon-q4_0.powerinfer", "off", marks=slow),
        pytest.param("powerinfer/bamboo-f16.powerinfer", "predictor", marks=slow),
    ],
)
def test_bits_are_those_of_a_plan_that_has_everything_there(
    name: str, sparsity: str, data: Path, open_emulated: OpenEmulated
) -> None:
    """Where every cache is on the device and no layer is divided: no neuron is hot."""
    with open_gguf(data / f"{name}.gguf") as file:
        model = model_of(file)
        case = Case(sparsity, n_ctx=64, n_batch=N_BATCH)
        everything = plan_named(model, case, "everything")
        with on_device(everything, file, open_emulated(build_kind="fast")) as executor:
            want = logits_of(executor)
        plan = with_streaming(split_plan(model, case, everything.totals.used, hot=()))
        assert plan.hot_share == 0
        with on_device(plan, file, open_emulated(build_kind="fast")) as executor:
            assert logits_of(executor).tobytes() == want.tobytes()


def test_near_the_cpu_and_decoding_goes_on(
    data: Path, open_emulated: OpenEmulated, distance: Callable[[Logits, Logits], float]
) -> None:
    """Where both sides sum floats in orders of their own; short batches and single tokens are not sent for."""
    with open_gguf(data / "powerinfer/llama-f16.powerinfer.gguf") as file:
        model = model_of(file)
        plan, sizes = streamed_plan(model, "predictor", "half"), (8, 1, 2, 1, 1)
        with cpu_executor(model, file, Case("predictor", n_ctx=64, n_batch=N_BATCH)) as executor:
            want = logits_of(executor, sizes)
        with on_device(plan, file, open_emulated(build_kind="fast")) as executor:
            got = logits_of(executor, sizes)
            assert sender_of(executor).sent_bytes == sum(
                sent.n_bytes for piece in sender_of(executor).pieces for sent in piece.sent
            )
    assert distance(got, want) < BOUND_OF_F32


@pytest.mark.sample(5)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=slow)])
@pytest.mark.parametrize("kind", ["launch", "h2d", "d2h"])
def test_a_call_fails_and_the_next_run_is_right(
    kind: str, every: bool, data: Path, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    if every:  # of few copies a run
        monkeypatch.setattr(staging, "STAGING_BYTES", 4 << 20)
    with open_gguf(data / "powerinfer/llama-f16.powerinfer.gguf") as file:
        plan = streamed_plan(model_of(file), "predictor", "half")
        device = open_emulated(build_kind="fast", policy="random")
        with on_device(plan, file, device) as executor:
            want = logits_of(executor)
            failed = last_failure(
                device, kind, count(1) if every else (1, 7, 19), want, lambda: logits_of(executor)
            )
    assert failed >= 7


def nothing(*_: object) -> None:
    """What a planted bug leaves out."""


def rolled(self: Sender, piece: SentPiece, each: SentRows) -> Any:
    """The neurons' rows in another order than their numbers."""
    rows, cold, matrix = ROWS(self, piece, each)
    return rows, None if cold is None else np.roll(cold, 1), matrix


def without_numbers(self: Sender, number: int, team: Any) -> None:
    """A piece whose neurons' numbers stay behind."""
    pieces, self.pieces = self.pieces, tuple(replace(piece, index=None) for piece in self.pieces)
    try:
        SEND(self, number, team)
    finally:
        self.pieces = pieces


def first_buffer_only(self: Await, context: Context) -> None:
    """A wait for the other piece's copies."""
    self.sender.device.compute.wait(self.sender.filled[(self.number + 1) % 2])


def without_waiting(self: Staging, n_bytes: int) -> Any:
    """A part that is filled again while it may be on its way."""
    self.turn = (self.turn + 1) % staging.N_PARTS
    return self.pinned.view(self.turn * self.part, n_bytes, np.uint8).array


ROWS, SEND = Sender._rows, Sender.send
DIVIDED = "wrong rows of a divided layer"
PLANTED: dict[str, tuple[type, str, Any]] = {
    "a buffer is written before its kernels are done": (Release, "run", nothing),
    "kernels begin before the copies are done": (Await, "run", nothing),
    "kernels wait for the other buffer": (Await, "run", first_buffer_only),
    "a part is filled while it is copied": (Staging, "_next", without_waiting),
    DIVIDED: (Sender, "_rows", rolled),
    "numbers of neurons stay behind": (Sender, "send", without_numbers),
}


@pytest.mark.sample(5)
@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_found(
    bug: str, data: Path, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[dict[str, Any]] = [{"policy": "late"}, *({"policy": "random", "seed": i} for i in range(6))]
    with open_gguf(data / "powerinfer/llama-f16.powerinfer.gguf") as file:
        plan = streamed_plan(model_of(file), "predictor", "dense + 50%" if bug == DIVIDED else "half")
        with on_device(plan, file, open_emulated(build_kind="fast")) as executor:
            want = logits_of(executor).tobytes()
        monkeypatch.setattr(*PLANTED[bug])
        for options in orders:
            with on_device(plan, file, open_emulated(build_kind="fast", **options)) as executor:
                if logits_of(executor).tobytes() != want:
                    return
    pytest.fail(f"not found: {bug}")


def test_from_the_option_to_the_line_of_v(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, left open on the emulated device, measured, and refused where the buffers do not fit."""
    size: dict[str, Any] = {"n_ctx": 64, "n_batch": 16, "threads": 1, "device": "emulated"}
    with hotcold.load(None, **size, vram_budget="4MiB", stream_batch=4) as engine:
        line = (
            "prompts: batches of 4 tokens and more run on the device, as asked for; 4.8 MiB are sent for each"
        )
        assert line in description(engine)
        engine.logits(IDS[:2].tolist())
        assert sender_of(engine.executor).sent_bytes == 0
        engine.logits(IDS[:4].tolist())
        assert sender_of(engine.executor).sent_bytes > 4 << 20
        plan = engine.executor.plan
        assert engine.executor.devices
        assert engine.executor.devices[0].counters.live_bytes == plan.totals.used <= 4 << 20
        assert plan.streaming is not None
        engine.executor.plan = replace(plan, streaming=replace(plan.streaming, asked=None))
        assert "GB/s" in (line := settle_prompts(engine.executor)) and "the CPU takes" in line
        stream_from = engine.executor.run_steps.stream_from
        assert stream_from is not None and (
            f"batches of {stream_from} tokens" in line or "never pays" in line
        )
    with hotcold.load(None, **size, vram_budget="4MiB") as engine:
        assert engine.executor.plan.streaming is None and ON_THE_EMULATED in engine.executor.prompts
    with hotcold.load(None, **size, vram_budget="4MiB", stream_batch=0) as engine:
        assert engine.executor.plan.streaming is None and not engine.executor.prompts
    with pytest.raises(DoesNotFitError, match=r"stream_batch: 4 \(two staging buffers .* do not fit"):
        hotcold.load(None, **size, vram_budget="2270KiB", stream_batch=4, strict=True)
    with hotcold.load(None, **size, vram_budget="2270KiB", stream_batch=4) as engine:
        assert any("staging buffers" in line for line in engine.warnings)
