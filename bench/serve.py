"""Tokens a second, first token and gaps of `hotcold serve` under 1, 4 and 16 clients, with one slot and with four.

    python bench/serve.py [-m FILE] [--slots 1,4] [--clients 1,4,16] [--seconds 20] [-n 64] [-t THREADS]

The server is a process of its own on the loopback; each client asks one streamed completion after the other, from a
prompt of its own. Times are those that clients see. Measure on an idle machine.
"""

import argparse
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

TEXT = "the sea was calm and the ship lay still while all on board slept but one who kept the watch"


@dataclass
class Seen:
    """What clients saw: seconds to the first piece and between pieces, and pieces, a token each."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    n_tokens: int = 0


@contextmanager
def served(model: str | None, n_slots: int, threads: int | None) -> Iterator[int]:
    """The port of a server, which ends with the block."""
    command = [sys.executable, "-m", "hotcold", "serve", "--port", "0", "--slots", str(n_slots), "-c", "1024"]
    command += (["-m", model] if model else []) + (["-t", str(threads)] if threads else [])
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"listening on .*:(\d+)$", line.rstrip()):
                break
        else:
            raise SystemExit("the server ended")
        try:
            yield int(found[1])
        finally:
            process.terminate()


def ask(port: int, prompt: str, n: int, seen: Seen, end: float) -> None:
    """One request after the other, until the time is over."""
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        body = {"prompt": prompt, "max_tokens": n, "stream": True, "ignore_eos": True, "temperature": 0}
        last, is_first = time.monotonic(), True
        connection.request("POST", "/v1/completions", json.dumps(body))
        for line in connection.getresponse():
            if not line.startswith(b'data: {"id"'):
                continue
            now = time.monotonic()
            (seen.first if is_first else seen.gaps).append(now - last)
            last, is_first = now, False
            seen.n_tokens += now < end
        connection.close()


def measure(port: int, n_clients: int, seconds: float, n: int) -> Seen:
    """So many clients for so long."""
    seen, end = Seen(), time.monotonic() + seconds
    prompts = [" ".join(np.random.default_rng(i).permutation(TEXT.split())) for i in range(n_clients)]
    threads = [threading.Thread(target=ask, args=(port, prompt, n, seen, end)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def milliseconds(values: list[float]) -> str:
    """The 50th and the 99th percentile."""
    if not values:
        return f"{'-':>9}{'-':>9}"
    return "".join(f"{np.percentile(values, p) * 1e3:9.1f}" for p in (50, 99))


def main() -> None:
    """Measure, and print a row for each number of slots and clients."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default=None)
    parser.add_argument("--slots", default="1,4")
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("-n", type=int, default=64, help="tokens of an answer")
    parser.add_argument("-t", "--threads", type=int, default=None)
    arguments = parser.parse_args()
    print(f"{'slots':>5}{'clients':>8}{'tok/s':>9}{'first 50':>9}{'99 (ms)':>9}{'gap 50':>9}{'99 (ms)':>9}")
    for n_slots in map(int, arguments.slots.split(",")):
        with served(arguments.model, n_slots, arguments.threads) as port:
            measure(port, 1, 2, 8)  # warm
            for n_clients in map(int, arguments.clients.split(",")):
                seen = measure(port, n_clients, arguments.seconds, arguments.n)
                rate = seen.n_tokens / arguments.seconds
                row = f"{n_slots:>5}{n_clients:>8}{rate:>9.1f}"
                print(row + milliseconds(seen.first) + milliseconds(seen.gaps), flush=True)


if __name__ == "__main__":
    main()
