"""llama.cpp beside hotcold on the same file, alternately, in one run.

    pip install llama-cpp-python        (builds from source; nothing else needs it)
    python bench/peer.py [--model FILE.gguf ...] [--types q4_0 q8_0] [--sparse] [--depths 512,4096]
        [--batches 1,2,4,8,16] [--powerinfer PATH-OF-MAIN] [--seconds 10]

Without --model random models of 1.1 billion weights are written: of one type, or, by the name of a mix such
as q4_k_m, of the types that `hotcold convert` gives its matrices. --sparse also decodes a ReLU model of that
shape with predictors of rank 256 whose threshold lists a tenth of the neurons, beside llama.cpp's dense
speed. --depths takes numbers of positions instead: at each, a chunk of 512 prompt tokens that ends there and
a token after it, llama.cpp with flash attention. --batches takes numbers of tokens that run together, as in
several chats. --powerinfer names PowerInfer's built program `main`: it decodes the sparse model, whose file
then carries the threshold, beside hotcold, and llama.cpp is left out.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from random_model import HALFS, LlamaShape, write, write_mix, write_sparse
from sparse import with_threshold

from hotcold.engine.host.machine import default_threads
from hotcold.engine.model.load import load_model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.mixes import MIXES

N_CTX, PROMPT, DEPTH = 512, 256, 64
CHUNK = 512  # tokens of a prompt that run together at a depth
REST = 0.03  # seconds before each turn: OpenMP's threads keep their cores for 10 ms after llama.cpp's token


def load_peer(path: Path, n_threads: int, n_ctx: int, n_batch: int) -> Any:
    """llama.cpp's model of this file; with flash attention, which is its faster way."""
    try:
        import llama_cpp
    except ImportError:
        sys.exit("bench/peer.py needs llama.cpp: pip install llama-cpp-python")
    return llama_cpp.Llama(
        str(path),
        n_ctx=n_ctx,
        n_batch=n_batch,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        flash_attn=True,
        verbose=False,
    )


def peer_prompt(peer: Any, ids: NDArray[np.int32]) -> None:
    """Run a prompt from an empty cache."""
    peer.reset()
    peer.eval(ids.tolist())


def peer_run(peer: Any, ids: NDArray[np.int32], n_past: int) -> None:
    """Run tokens from position n_past on, forgetting what lies behind it."""
    peer.n_tokens = n_past
    peer.eval(ids.tolist())


def alternate(
    ours: Callable[[int], None], theirs: Callable[[int], None], seconds: float
) -> tuple[float, float]:
    """Median seconds of both, run in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    end, i = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or i < 5:
        for function, figures in zip((ours, theirs), times, strict=True):
            time.sleep(REST)
            start = time.perf_counter()
            function(i)
            figures.append(time.perf_counter() - start)
        i += 1
    return float(np.median(times[0])), float(np.median(times[1]))


@dataclass(frozen=True)
class Both:
    """One file open in both programs.

    Attributes:
        ids: random tokens of its vocabulary, as many as run together at most.
        logits: room for one token's.
    """

    ours: Executor
    peer: Any
    ids: NDArray[np.int32]
    logits: NDArray[np.float32]

    def times(self, first: int, last: int, seconds: float) -> tuple[float, float]:
        """Seconds that tokens first to last - 1 take together at their positions, here and there."""
        some = self.ids[first:last]
        return alternate(
            lambda _: self.ours.run(some, first, self.logits),
            lambda _: peer_run(self.peer, some, first),
            seconds,
        )


@contextmanager
def both(path: Path, n_threads: int, n_ctx: int, n_batch: int) -> Iterator[Both]:
    """Open a file in both programs."""
    peer = load_peer(path, n_threads, n_ctx, n_batch)
    with (
        open_gguf(path) as file,
        Executor(plan_for_cpu(load_model(file), Wanted("off", n_ctx, n_batch)), file, n_threads) as executor,
    ):
        n_vocab = executor.model.n_vocab
        ids = np.random.default_rng(0).integers(3, n_vocab, max(n_batch, n_ctx)).astype(np.int32)
        yield Both(executor, peer, ids, np.zeros((1, n_vocab), np.float32))


def compare(path: Path, name: str, n_threads: int, seconds: float, sparse: Path | None) -> None:
    """Prompt and decode of one file; of the sparse file, decode beside the dense file's peer."""
    with both(path, n_threads, N_CTX, PROMPT) as opened:
        peer, ids, logits = opened.peer, opened.ids, opened.logits

        def token(i: int) -> None:
            opened.ours.run(ids[i % DEPTH : i % DEPTH + 1], i % DEPTH, logits)

        def peer_token(i: int) -> None:
            peer_run(peer, ids[i % DEPTH : i % DEPTH + 1], i % DEPTH)

        ours, theirs = alternate(
            lambda _: opened.ours.run(ids[:PROMPT], 0, logits),
            lambda _: peer_prompt(peer, ids[:PROMPT]),
            seconds,
        )
        report(name, f"prompt of {PROMPT}", PROMPT / ours, PROMPT / theirs)
        ours, theirs = alternate(token, peer_token, seconds)
        report(name, "decode", 1 / ours, 1 / theirs)
    if sparse is None:
        return
    with open_gguf(sparse) as file:
        model = with_threshold(load_model(file), file, 0.1, ids[:4], n_threads)
        with Executor(plan_for_cpu(model, Wanted("predictor", N_CTX, 1)), file, n_threads) as executor:

            def sparse_token(i: int) -> None:
                executor.run(ids[i % DEPTH : i % DEPTH + 1], i % DEPTH, logits)

            ours, theirs = alternate(sparse_token, peer_token, seconds)
            report(name, "decode, sparse beside dense", 1 / ours, 1 / theirs)


def compare_batches(path: Path, name: str, n_threads: int, seconds: float, batches: list[int]) -> None:
    """Some tokens together from the first position on; speeds, and each side's time in times of its first batch's."""
    with both(path, n_threads, N_CTX, max(batches)) as opened:
        first: tuple[float, float] | None = None
        for n in batches:
            times = opened.times(0, n, seconds)
            first = first or times
            relative = " and ".join(f"{t / t0:.2f}" for t, t0 in zip(times, first, strict=True))
            report(name, f"{n} at once, x {relative}", n / times[0], n / times[1])


def compare_powerinfer(
    path: Path, main: Path, name: str, kind: GGMLQuantizationType, n_threads: int, seconds: float
) -> None:
    """Sparse decode of one file at one threshold, in turns with PowerInfer's program."""
    ids = np.random.default_rng(0).integers(3, 1000, 4).astype(np.int32)
    with open_gguf(path) as file:
        threshold = with_threshold(load_model(file), file, 0.1, ids, n_threads).sparse_threshold
    write_sparse(path, LlamaShape(), kind, 256, threshold)
    ours: list[float] = []
    theirs: list[float] = []
    with (
        open_gguf(path) as file,
        Executor(plan_for_cpu(load_model(file), Wanted("predictor", N_CTX, 1)), file, n_threads) as executor,
    ):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(ours) < 3:
            start = time.perf_counter()
            for i in range(DEPTH):
                executor.run(ids[:1], i)
            ours.append(DEPTH / (time.perf_counter() - start))
            theirs.append(powerinfer_speed(main, path, n_threads))
    report(
        name,
        f"sparse decode, threshold {threshold:.3g}",
        float(np.median(ours)),
        float(np.median(theirs)),
        "PowerInfer",
    )


def powerinfer_speed(main: Path, path: Path, n_threads: int) -> float:
    """Tokens a second as PowerInfer's `main` reports them after a short prompt."""
    command = [str(main), "-m", str(path), "-n", str(DEPTH), "-t", str(n_threads), "-p", "w1", "--ignore-eos"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    found = re.search(r"\beval time =.*?runs.*?([0-9.]+) tokens per second", done.stderr)
    if done.returncode or not found:
        sys.exit(f"{main} failed or reports no speed: {done.stderr.strip().splitlines()[-1:]}")
    return float(found.group(1))


def compare_depths(path: Path, name: str, n_threads: int, seconds: float, depths: list[int]) -> None:
    """A chunk that ends at each depth, and a token after it; both fill their caches on the way."""
    with both(path, n_threads, max(depths) + 1, CHUNK) as opened:
        filled = 0
        for depth in sorted(depths):
            start = max(0, depth - CHUNK)
            for first in range(filled, start, CHUNK):
                some = opened.ids[first : min(first + CHUNK, start)]
                opened.ours.run(some, first)
                peer_run(opened.peer, some, first)
            ours, theirs = opened.times(start, depth, seconds)
            n = depth - start
            report(name, f"chunk of {n} up to {depth}", n / ours, n / theirs)
            ours, theirs = opened.times(depth, depth + 1, seconds)
            report(name, f"decode at {depth}", 1 / ours, 1 / theirs)
            filled = depth


def report(name: str, what: str, ours: float, theirs: float, peer: str = "llama.cpp") -> None:
    """One line: tokens per second and the ratio."""
    print(
        f"{name:8} {what:28} hotcold {ours:7.1f}/s | {peer} {theirs:7.1f}/s | {ours / theirs:.2f}",
        flush=True,
    )


def numbers(text: str) -> list[int]:
    """Numbers above 0, with commas between."""
    found = [int(word) for word in text.split(",")]
    if min(found) < 1:
        raise ValueError
    return found


def file(text: str) -> Path:
    """A file that is there."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"no file: {text}")
    return Path(text)


def asked(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is none of it is refused before a model is written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", dest="models", type=file, nargs="*", default=[])
    known = [*(kind.name.lower() for kind in HALFS), "f32", "f16", "bf16", *MIXES]
    parser.add_argument("--types", nargs="*", default=["q4_0", "q8_0"], choices=known, metavar="TYPE")
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--seconds", type=float, default=10)
    for option in ("--depths", "--batches"):
        parser.add_argument(option, type=numbers, default=[])
    parser.add_argument("--powerinfer", type=file)
    return parser.parse_args(words)


def main() -> None:
    """Compare each file or type."""
    arguments = asked()
    print(f"{arguments.threads} threads, load average {os.getloadavg()[0]:.1f}", flush=True)
    for path in arguments.models:
        compare_file(path, path.stem, arguments, None)
    if arguments.models:
        return
    for name in arguments.types:
        mixed = name in MIXES
        if mixed and (arguments.sparse or arguments.powerinfer):
            sys.exit(f"--sparse and --powerinfer take one type, not the mix {name}")
        kind = GGMLQuantizationType.F16 if mixed else GGMLQuantizationType[name.upper()]
        with tempfile.TemporaryDirectory() as folder:
            dense, sparse = Path(folder) / "dense.gguf", Path(folder) / "sparse.gguf"
            if arguments.sparse or arguments.powerinfer:
                write_sparse(sparse, LlamaShape(), kind, 256)
            if arguments.powerinfer:
                how = arguments.threads, arguments.seconds
                compare_powerinfer(sparse, arguments.powerinfer, name, kind, *how)
                continue
            if mixed:
                write_mix(dense, LlamaShape(), name)
            else:
                write(dense, LlamaShape(), kind)
            compare_file(dense, name, arguments, sparse if arguments.sparse else None)


def compare_file(path: Path, name: str, arguments: argparse.Namespace, sparse: Path | None) -> None:
    """The comparisons asked for."""
    how = arguments.threads, arguments.seconds
    if arguments.depths:
        compare_depths(path, name, *how, arguments.depths)
    if arguments.batches:
        compare_batches(path, name, *how, arguments.batches)
    if not arguments.depths and not arguments.batches:
        compare(path, name, *how, sparse)


if __name__ == "__main__":
    main()
