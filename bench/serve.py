"""Tokens a second, first token and gaps under 1, 4 and 16 clients: one slot, four, and another server, in turns.

    python bench/serve.py [-m FILE] [--slots 1,4] [--clients 1,4,16] [--seconds 20] [--turns 2] [-n 64] [-t THREADS]
                          [--peer FOLDER]

Each server is a process of its own on the loopback; all are up all the time, and one at a time is asked: every turn
asks each of them with every number of clients. A client asks one streamed completion after the other, from a prompt
of its own. Times are those that clients see; tokens are pieces with text. Measure on an idle machine.

--peer takes llama-cpp-python's server along, on the same file and with as many threads, flash attention and no
interrupting of answers; FOLDER is where it was installed, by

    pip install --target FOLDER 'llama-cpp-python[server]'

and "" where it is importable as it is. It answers one request at a time. Its answers may end before -n tokens.
"""

import argparse
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

TEXT = "the sea was calm and the ship lay still while all on board slept but one who kept the watch"
N_CTX = 1024


@dataclass
class Seen:
    """What clients saw: seconds to the first piece and between pieces, and pieces with text, a token each."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    n_tokens: int = 0


def hotcold_command(model: str | None, n_slots: int, threads: int) -> list[str]:
    """Of a server of ours."""
    command = [sys.executable, "-m", "hotcold", "serve", "--port", "0", "--slots", str(n_slots)]
    return [*command, "-c", str(N_CTX), "-t", str(threads), *(["-m", model] if model else [])]


def peer_command(model: str, threads: int, port: int) -> list[str]:
    """Of llama-cpp-python's."""
    options = {
        "model": model,
        "n_ctx": N_CTX,
        "n_threads": threads,
        "n_threads_batch": threads,
        "flash_attn": True,
        "interrupt_requests": False,
        "verbose": False,
        "host": "127.0.0.1",
        "port": port,
    }
    pairs = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "llama_cpp.server", *pairs]


@contextmanager
def served(command: Sequence[str], folder: str | None = None) -> Iterator[int]:
    """The port of a server, which ends with the block."""
    paths = {"PYTHONPATH": folder} if folder else {}
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | paths,
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"(?:listening|running) on http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise SystemExit(f"{command[2]} ended: {''.join(said[-3:])}")
        reading = threading.Thread(target=process.stderr.read)  # what it says must not hold it up
        reading.start()
        try:
            yield int(found[1])
        finally:
            process.terminate()
            reading.join()


def free_port() -> int:
    """One that is free at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def ask(port: int, prompt: str, n: int, seen: Seen, end: float) -> None:
    """One request after the other, until the time is over."""
    body = {"prompt": prompt, "max_tokens": n, "stream": True, "ignore_eos": True, "temperature": 0}
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        last, is_first = time.monotonic(), True
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        for line in connection.getresponse():
            if not line.startswith(b"data: {") or b'"text":""' in line or b'"text": ""' in line:
                continue
            now = time.monotonic()
            (seen.first if is_first else seen.gaps).append(now - last)
            last, is_first = now, False
            seen.n_tokens += now < end
            if now >= end:  # what waited for its first piece has had it
                break
        connection.close()


def measure(port: int, n_clients: int, seconds: float, n: int, seen: Seen | None = None) -> Seen:
    """So many clients for so long; what they see is added to `seen`."""
    seen, end = seen or Seen(), time.monotonic() + seconds
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


def numbers(text: str) -> list[int]:
    """A list with commas."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Measure, and print a row for each server and number of clients."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", help="[default: the bundled model]")
    parser.add_argument("--slots", type=numbers, default=[1, 4])
    parser.add_argument("--clients", type=numbers, default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=20, help="of each row, all turns together")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("-n", type=int, default=64, help="tokens of an answer")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peer", metavar="FOLDER")
    arguments = parser.parse_args()
    model, threads = arguments.model, arguments.threads
    if arguments.peer is not None and model is None:
        parser.error("--peer needs -m FILE")
    with ExitStack() as stack:
        ports = {
            f"{n} slot{'s' * (n > 1)}": stack.enter_context(served(hotcold_command(model, n, threads)))
            for n in arguments.slots
        }
        if arguments.peer is not None:
            command = peer_command(model, threads, free_port())
            ports["llama-cpp-python"] = stack.enter_context(served(command, arguments.peer))
        for port in ports.values():
            measure(port, 1, 2, 8)  # warm
        rows = {(name, n_clients): Seen() for n_clients in arguments.clients for name in ports}
        for _ in range(arguments.turns):
            for (name, n_clients), seen in rows.items():
                measure(ports[name], n_clients, arguments.seconds / arguments.turns, arguments.n, seen)
    print(f"{'server':18}{'clients':>8}{'tok/s':>9}{'first 50':>9}{'99 (ms)':>9}{'gap 50':>9}{'99 (ms)':>9}")
    for (name, n_clients), seen in rows.items():
        row = f"{name:18}{n_clients:>8}{seen.n_tokens / arguments.seconds:>9.1f}"
        print(row + milliseconds(seen.first) + milliseconds(seen.gaps))


if __name__ == "__main__":
    main()
