"""One engine for several threads and coroutines: each has the text that it has alone."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import until

from hotcold import Engine, load
from hotcold.engine.generation import rows
from hotcold.engine.serve.shared import Shared
from hotcold.engine.serve.worker import Closed
from hotcold.errors import DoesNotFitError, SettingError


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load(n_ctx=128, threads=1, n_slots=3) as engine:
        yield engine


def asked(i: int) -> dict[str, Any]:
    return {"prompt": ("Emma", "Mr. Darcy looked", [1, 270, 265])[i % 3], "max_tokens": 15, "seed": i}


def test_threads_have_what_the_engine_says_alone(engine: Engine) -> None:
    wanted = ["".join(engine.generate(**asked(i))) for i in range(9)]
    with Shared(engine) as shared, ThreadPoolExecutor(9) as pool:
        assert list(pool.map(lambda i: "".join(shared.generate(**asked(i))), range(9))) == wanted
    assert "".join(engine.generate(**asked(1))) == wanted[1]


def test_coroutines_too(engine: Engine) -> None:
    wanted = ["".join(engine.generate(**asked(i))) for i in range(5)]

    async def one(shared: Shared, i: int) -> str:
        return "".join([piece async for piece in shared.stream(**asked(i))])

    async def all_of_them(shared: Shared) -> list[str]:
        return await asyncio.gather(*(one(shared, i) for i in range(5)))

    with Shared(engine) as shared:
        assert asyncio.run(all_of_them(shared)) == wanted


def test_who_stops_to_listen_makes_room(engine: Engine) -> None:
    with Shared(engine) as shared:
        for _ in range(6):  # twice as many as there are slots
            pieces = shared.generate("Emma", max_tokens=-1, ignore_eos=True)
            next(pieces)
            del pieces
        assert "".join(shared.generate("Emma", max_tokens=3))


@pytest.mark.parametrize("is_closed", [False, True])
def test_whom_nobody_ever_listened_to_ends_too(
    engine: Engine, is_closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropped before its first piece, or closed, it stops within a step."""
    monkeypatch.setattr(rows, "check_finite", lambda *_: time.sleep(0.02))
    with Shared(engine) as shared:
        pieces = shared.generate("Emma", max_tokens=-1, ignore_eos=True)
        until(lambda: shared._worker.n_generated > 2)
        statistics = shared._worker.running[0].sequence.statistics
        if is_closed:
            pieces.close()
            assert not list(pieces)
        n = statistics.n_generated
        del pieces
        until(lambda: not shared._worker.n_running)
        assert statistics.n_generated <= n + 1


def test_what_is_wrong_is_said_at_once(engine: Engine) -> None:
    with Shared(engine) as shared:
        with pytest.raises(SettingError, match="temp"):
            shared.generate("Emma", temp=-1)
        with pytest.raises(DoesNotFitError, match="128"):
            shared.generate("Emma " * 300)
    with pytest.raises(Closed):
        shared.generate("Emma")
