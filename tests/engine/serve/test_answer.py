"""What goes on between the worker's thread and a loop: one waking a round, and an end when nobody listens."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any, cast

from hotcold import Engine
from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.serve.answer import Post, post_of
from hotcold.engine.serve.asked import Asked
from hotcold.engine.serve.forms import Form
from hotcold.engine.serve.prompts import Prompt
from hotcold.engine.serve.reply import Reply
from hotcold.engine.serve.worker import Continuation, Task, Worker


class Loop:
    """One that is woken by hand."""

    def __init__(self) -> None:
        self.called = list[Callable[[], None]]()

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        self.called.append(call)


def test_a_loop_is_woken_once_for_all_that_came() -> None:
    loop, heard = Loop(), list[Any]()
    post = Post(cast(Any, loop))
    for i in range(4):
        post.put(heard.append, i)
    post.wake()
    post.wake()
    assert len(loop.called) == 1 and not heard
    loop.called.pop()()
    assert heard == [0, 1, 2, 3]
    post.put(heard.append, 4)
    post.wake()
    loop.called.pop()()
    assert heard[-1] == 4


def test_a_loop_that_has_ended_is_not_kept() -> None:
    loop = asyncio.new_event_loop()
    post, kept = post_of(loop), weakref.ref(loop)
    assert post is post_of(loop)
    loop.close()
    del loop
    gc.collect()
    assert kept() is None
    post.wake()


def test_a_round_of_the_worker_wakes_once(engine: Engine) -> None:
    order, ended = list[str](), threading.Event()
    settings = GenerationSettings(max_tokens=3, temp=0.0, ignore_eos=True).checked()

    def wake() -> None:
        order.append("wake")
        if "Done" in order:
            ended.set()

    with Worker(engine) as worker:
        worker.submit(
            Task(Continuation([1, 270], settings), lambda it: order.append(type(it).__name__), wake)
        )
        assert ended.wait(60)
    assert "wake wake" not in " ".join(order) and order[-3:] == ["Piece", "Done", "wake"]


def test_a_stream_that_ends_before_its_first_token_stops_the_answer(engine: Engine) -> None:
    """The role of a chat's answer comes before anything is heard of the worker."""
    taken = list[Task]()

    class Waiting:
        submit = taken.append

    asked = Asked(GenerationSettings(max_tokens=-1).checked(), n=2)
    form = Form("m", engine.tokenizer, None, is_chat=True)
    reply = Reply(cast(Any, Waiting()), asked, [Prompt([1])], form)

    async def first_alone() -> Any:
        chunks: Any = reply.chunks()
        try:
            return await anext(chunks)
        finally:
            await chunks.aclose()

    assert asyncio.run(first_alone())["choices"][0]["delta"]["role"] == "assistant"
    assert len(taken) == 2 and all(task.is_stopped for task in taken)
