"""bench/serve.py counts what clients see."""

import time

import serve
from serving import served

from hotcold import load


def test_clients_are_counted() -> None:
    seen = serve.Seen()
    with load(n_ctx=64, threads=1, n_slots=2) as engine, served(engine) as server:
        serve.ask(server.port, "the sea was calm", 6, seen, time.monotonic() + 0.5)
        both = serve.measure(server.port, 2, 0.5, 6)
    assert seen.n_tokens and len(seen.first) >= 1 and len(both.first) >= 2
    assert both.n_tokens <= len(both.first) + len(both.gaps)
    assert serve.milliseconds([0.001, 0.001]).split() == ["1.0", "1.0"] and serve.milliseconds(
        []
    ).split() == ["-", "-"]
