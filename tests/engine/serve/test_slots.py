"""Several answers at a time: each says what it says alone, and begins with what a slot already holds."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from serving import Served, served, until

from hotcold import Engine, load
from hotcold.engine.generation import slot as slots
from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.serve import worker
from hotcold.engine.serve.worker import Continuation, Done, Piece, Task, Worker
from hotcold.errors import DeviceError

TEXT = "/v1/completions"
PROMPTS = ("Emma", "It is a truth universally acknowledged, that a single man", "Mr. Darcy looked " * 12)
N_SLOTS = 3


@pytest.fixture(scope="module", params=[pytest.param("off", marks=pytest.mark.slow), "predictor"])
def engine(request: pytest.FixtureRequest, tiny_model: Any) -> Iterator[Engine]:
    path: Path = tiny_model("q8_0", request.param == "predictor")
    with load(path, n_ctx=160, threads=1, sparsity=request.param, n_slots=N_SLOTS) as engine:
        yield engine


@pytest.fixture
def server(engine: Engine) -> Iterator[Served]:
    with served(engine) as server:
        yield server


def asked(i: int) -> dict[str, Any]:
    """One of several requests: greedy ones, and some that draw."""
    return {"prompt": PROMPTS[i % 3], "max_tokens": 20 + i, "temperature": (0, 0.9)[i % 2], "seed": i}


def text_of(server: Served, body: dict[str, Any]) -> str:
    told = server.ask(TEXT, body)
    assert told.status == 200
    text: str = told.json["choices"][0]["text"]
    return text


def test_an_answer_is_the_same_among_others(server: Served, engine: Engine) -> None:
    alone = [text_of(server, asked(i)) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            assert list(pool.map(lambda i: text_of(server, asked(i)), range(8))) == alone
    for i in (0, 3):
        body = asked(i)
        ours = engine.generate(
            body["prompt"], body["max_tokens"], temp=body["temperature"], seed=i, parse_special=False
        )
        assert "".join(ours) == alone[i]
    assert text_of(server, asked(0)) == alone[0]  # though the engine has been used meanwhile


@pytest.mark.parametrize("sparsity", ["off", pytest.param("predictor", marks=pytest.mark.slow)])
def test_sixteen_at_once_and_a_restart(
    sparsity: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, among fifteen others in one step, and with the model loaded again: the same."""
    path, taken, step = tiny_model("q8_0", sparsity == "predictor"), list[int](), slots.step

    def noted(engine: Engine, some: Any, logits: Any) -> Any:
        taken.append(len(some))
        return step(engine, some, logits)

    monkeypatch.setattr(worker, "step", noted)
    answers = list[list[str]]()
    for at_once in (1, 16):
        with (
            load(path, n_ctx=96, threads=1, sparsity=sparsity, n_slots=16) as engine,
            served(engine) as server,
            ThreadPoolExecutor(at_once) as pool,
        ):
            answers.append(list(pool.map(partial(text_of, server), map(asked, range(16)))))
    assert answers[0] == answers[1] and len(set(answers[0])) > 8
    assert max(taken) > 8


@pytest.mark.slow
def test_several_at_once_wholly_on_a_device(compiler: str) -> None:
    """Three answers in two slots, whose caches are there: each says what it says alone."""
    device: dict[str, Any] = {"device": "emulated", "vram_budget": "64MiB", "n_batch": 16}
    bodies = [asked(i) | {"max_tokens": 6} for i in range(3)]
    with load(None, n_ctx=96, threads=1, n_slots=2, **device) as engine, served(engine) as server:
        assert {cache.side for cache in engine.executor.plan.caches} == {"gpu"}
        alone = [text_of(server, body) for body in bodies]
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(partial(text_of, server), bodies)) == alone


def test_several_run_at_a_time(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """All slots, and no more; who goes makes room for the next, and disturbs nobody."""
    wanted = text_of(server, {"prompt": "Emma", "temperature": 0, "max_tokens": 60, "ignore_eos": True})
    taken, step = list[int](), slots.step

    def slowly(engine: Engine, some: Any, logits: Any) -> list[int]:
        taken.append(len(some))
        time.sleep(0.01)
        return step(engine, some, logits)

    monkeypatch.setattr(worker, "step", slowly)
    long = {"prompt": "Emma", "temperature": 0, "max_tokens": -1, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(text_of, server, long | {"max_tokens": 60})
        held = [server.open(TEXT, long) for _ in range(3)]
        until(lambda: N_SLOTS in taken)
        for connection in held:
            connection.close()
        assert answer.result() == wanted
    assert max(taken) == N_SLOTS


def test_a_prompt_goes_where_most_of_it_is(server: Served) -> None:
    """Three conversations in turns, each of which finds what it left."""
    for prompt in PROMPTS:
        text_of(server, {"prompt": prompt, "max_tokens": 1})
    for prompt in PROMPTS:
        told = server.ask(TEXT, {"prompt": prompt + " and", "max_tokens": 1}).json["usage"]
        cached = told["prompt_tokens_details"]["cached_tokens"]
        assert told["prompt_tokens"] - 4 <= cached < told["prompt_tokens"]


def test_a_prompt_that_is_held_begins_with_the_others_step(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a prompt that a slot holds one token is left, which takes no run of its own, and says the same."""
    bodies = [{"prompt": prompt, "max_tokens": 12, "temperature": 0} for prompt in PROMPTS]
    wanted, slices = [text_of(server, body) for body in bodies], list[int]()
    run_slice, step = slots.Slot.run_slice, slots.step

    def noted(self: Any, most: int, logits: Any) -> bool:
        slices.append(self.number)
        return run_slice(self, most, logits)

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.01)
        return step(*arguments)

    monkeypatch.setattr(slots.Slot, "run_slice", noted)
    monkeypatch.setattr(worker, "step", slowly)
    with ThreadPoolExecutor(3) as pool:
        held = server.open(TEXT, {"prompt": PROMPTS[2], "max_tokens": -1, "ignore_eos": True})
        until(lambda: bool(slices))
        slices.clear()
        told = [server.ask(TEXT, body) for body in bodies[:2]]
        assert not slices and [each.json["choices"][0]["text"] for each in told] == wanted[:2]
        held.close()
        assert list(pool.map(partial(text_of, server), bodies)) == wanted


def test_a_failing_step_is_told_to_all_whom_it_concerns(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        time.sleep(0.05)
        raise DeviceError("device", "cuda", "it does not answer")

    with monkeypatch.context() as patch, ThreadPoolExecutor(3) as pool:
        patch.setattr(worker, "step", fail)
        found = list(pool.map(lambda i: server.ask(TEXT, asked(i)).status, range(3)))
    assert found == [503] * 3
    assert server.ask(TEXT, asked(0)).status == 200


@pytest.mark.slow
def test_a_streamed_prompt_passes_in_whole_batches_beside_others(
    compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent is sent once for many tokens as for few, and for the same tokens as without others: to the bit."""
    sizes, run_slice = dict[int, list[int]](), slots.Slot.run_slice

    def noted(self: Any, most: int, logits: Any) -> bool:
        before = self.n_lacking
        is_last = run_slice(self, most, logits)
        sizes.setdefault(self.number, []).append(before - self.n_lacking)
        return is_last

    monkeypatch.setattr(slots.Slot, "run_slice", noted)
    monkeypatch.setattr(worker, "SLICE", 3)
    settings = GenerationSettings(max_tokens=4, temp=0.0, logprobs=3, ignore_eos=True).checked()
    size: dict[str, Any] = {"n_ctx": 96, "n_batch": 16, "threads": 1, "n_slots": 2}
    device: dict[str, Any] = {"device": "emulated", "vram_budget": "4MiB", "stream_batch": 8}
    with load(None, **size, **device) as engine, Worker(engine) as ours:
        ids = engine.prompt_ids(PROMPTS[2], parse_special=False)[:39]

        def told() -> list[Piece]:
            pieces, ended = list[Piece](), threading.Event()

            def deliver(event: Any) -> None:
                assert not isinstance(event, BaseException), event
                if isinstance(event, Done):
                    ended.set()
                else:
                    pieces.append(event)

            ours.submit(Task(Continuation(ids, settings), deliver))
            assert ended.wait(60)
            return pieces

        alone = told()
        assert sizes.pop(0) == [16, 16, 7]
        begun = threading.Event()
        long = Task(Continuation(ids[:5], replace(settings, max_tokens=60)), lambda event: begun.set())
        ours.submit(long)
        assert begun.wait(60)
        assert told() == alone
        long.stop()
    assert [16, 16, 3, 3] in sizes.values()


def test_a_prompt_passes_in_slices_beside_others(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer goes on while a long prompt passes: between two of its slices it gets a token."""
    order, run_slice, step = list[str](), slots.Slot.run_slice, slots.step

    submitted = threading.Event()

    def noted_slice(self: Any, most: int, logits: Any) -> bool:
        assert submitted.wait(60)  # else the first answer may have ended before the second prompt came
        order.append(f"slice {most}")
        return run_slice(self, most, logits)

    def noted_step(engine: Engine, some: Any, logits: Any) -> list[int]:
        order.append(f"step {len(some)}")
        return step(engine, some, logits)

    monkeypatch.setattr(slots.Slot, "run_slice", noted_slice)
    monkeypatch.setattr(worker, "step", noted_step)
    monkeypatch.setattr(worker, "SLICE", 8)
    settings = GenerationSettings(max_tokens=30, temp=0.0, seed=1, ignore_eos=True).checked()
    events = list[Any]()
    ids = [engine.prompt_ids(text, parse_special=False) for text in ("Emma", PROMPTS[2] + "and")]
    done, both = threading.Event(), [0]

    def deliver(event: Any) -> None:
        events.append(event)
        if isinstance(event, Done):
            both[0] += 1
            if both[0] == 2:
                done.set()

    with Worker(engine) as ours:
        for each in ids:
            ours.submit(Task(Continuation(each, settings), deliver))
        submitted.set()
        assert done.wait(60)
    assert not any(isinstance(event, BaseException) for event in events)
    slices = [i for i, what in enumerate(order) if what == "slice 8"]
    assert len(slices) >= 4 and all(order[i + 1] == "step 1" for i in slices[:-1])
    assert "step 2" in order
