"""Threads that use one engine: each has the text that it has alone, nobody waits for ever, and none is pushed back."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hotcold import Engine, load
from hotcold.engine.generation import line as lines
from hotcold.engine.generation.line import Line
from hotcold.engine.serve.shared import Shared
from hotcold.errors import SettingError


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load(n_ctx=128, n_batch=16, threads=1) as engine:
        yield engine


def asked(i: int) -> dict[str, Any]:
    prompts = (
        "Emma",
        "Mr. Darcy looked",
        [1, 270, 265],
        "It is a truth universally acknowledged, that a single man",
    )
    draft = ("off", "ngram")[i // 4 % 2]
    return {"prompt": prompts[i % 4], "max_tokens": 20, "seed": i, "draft": draft, "ignore_eos": True}


def text_of(generate: Callable[..., Iterator[str]], i: int) -> str:
    return "".join(generate(**asked(i)))


def alone(engine: Engine, n: int) -> list[str]:
    return ["".join(engine.generate(**asked(i))) for i in range(n)]


def test_threads_have_what_the_engine_says_alone(engine: Engine) -> None:
    wanted, ids = alone(engine, 12), [1, 270, 265, 300]
    logits = engine.logits(ids).tobytes()
    with ThreadPoolExecutor(8) as pool:
        texts = [pool.submit(text_of, engine.generate, i) for i in range(12)]
        others = [pool.submit(lambda: engine.logits(ids).tobytes()) for _ in range(6)]
        assert [text.result(60) for text in texts] == wanted
        assert {other.result(60) for other in others} == {logits}


@pytest.mark.parametrize("name", ["", "llamacpp/gemma3.f16.gguf"])
def test_texts_of_one_thread_may_take_turns(name: str, data: Path) -> None:
    """Each comes back by running its tokens again, of a model with windows too."""
    prompts = [list(range(3 + i, 103 + i)) for i in range(3)]
    settings: dict[str, Any] = {"max_tokens": 12, "seed": 1, "ignore_eos": True}
    with load(data / name if name else None, n_ctx=128, n_batch=16, threads=1) as engine:
        wanted = ["".join(engine.generate(prompt, **settings)) for prompt in prompts]
        each = [engine.generate(prompt, **settings) for prompt in prompts]
        found = ["", "", ""]
        while any(texts := [next(generation, "") for generation in each]):
            found = [text + more for text, more in zip(found, texts, strict=True)]
        assert found == wanted
        last = each[-1]
        again = engine.generate([*last.held.ids, 7], 2, temp=0.0, after=last)
        assert "".join(again) == "".join(engine.generate([*last.held.ids, 7], 2, temp=0.0))


def test_a_text_that_rests_lets_others_begin_and_goes_on_rightly(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "PATIENCE", 0.05)
    wanted = alone(engine, 2)
    resting = engine.generate(**asked(0))
    text = next(resting)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: "".join(engine.generate(**asked(1)))).result(60) == wanted[1]
    assert text + "".join(resting) == wanted[0]


def test_a_text_that_nobody_wants_any_more_keeps_nobody_waiting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "PATIENCE", 1000.0)
    for _ in engine.generate(**asked(0)):
        break
    with pytest.raises(SettingError):
        next(engine.generate([1, 2], draft="other"))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: "".join(engine.generate(**asked(1)))).result(60)


def test_one_text_may_be_read_by_several_threads(engine: Engine) -> None:
    wanted = "".join(engine.generate(**asked(3)))
    generation, found = engine.generate(**asked(3)), list[str]()

    def read() -> None:
        found.extend(generation)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted("".join(found)) == sorted(wanted)


def test_who_shares_an_engine_disturbs_nobody(engine: Engine) -> None:
    wanted = alone(engine, 6)
    with Shared(engine) as shared, ThreadPoolExecutor(6) as pool:
        asks: tuple[Callable[..., Iterator[str]], ...] = (engine.generate, shared.generate)
        found = [pool.submit(text_of, asks[i % 2], i) for i in range(6)]
        assert [text.result(60) for text in found] == wanted


def test_an_engine_closes_between_two_steps() -> None:
    for _ in range(3):
        engine = load(n_ctx=128, threads=1)
        started, ends = threading.Event(), list[str]()

        def read(engine: Engine = engine, started: Any = started, ends: list[str] = ends) -> None:
            try:
                for _ in engine.generate("Emma", -1, ignore_eos=True):
                    started.set()
                ends.append("text")
            except SettingError as error:
                ends.append(error.bound or str(error))

        thread = threading.Thread(target=read)
        thread.start()
        assert started.wait(60)
        engine.close()
        thread.join(60)
        assert len(ends) == 1


def test_nobody_is_passed_by_who_comes_later() -> None:
    """Not even by a thread that begins one text after the other."""
    line, order, first = Line(), list[str](), object()

    def one(name: str) -> None:
        with line.alone():
            order.append(name)

    with line.step(first):
        threads = [threading.Thread(target=one, args=(name,)) for name in "abc"]
        for i, thread in enumerate(threads):
            thread.start()
            while len(line._waiting) <= i:
                time.sleep(0.001)
    with line.step(first):  # its own next step comes first
        order.append("first")
    line.end(first)
    one("late")
    for thread in threads:
        thread.join(60)
    assert order == ["first", "a", "b", "c", "late"]


def test_a_step_inside_a_step_is_part_of_it() -> None:
    line, key = Line(), object()
    with line.step(key):
        with line.alone(), line.step(None, overtakes=True):
            pass
        assert line._key is key
    line.end(key)
    assert line._key is None
