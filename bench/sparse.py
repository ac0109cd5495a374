"""What sparsity gains: a ReLU model with predictors beside the same shape dense, in one run.

    python bench/sparse.py [--type q4_0] [--ranks 256 1024] [--listed 0.1] [--seconds 10]
        [--shape 1b|7b] [--layers N] [--batches 1,2,5,64]

Random models of 1.1 billion weights: a dense one, and one with predictors of each rank, whose threshold
is set so that the wanted share of neurons is listed; about half of those have a positive gate, since
weights are random. Decoding steps of dense, sparse, and sparse with every listed neuron counted as
positive take turns. The FFN's own time comes from walking its ops alone. --batches takes numbers of tokens that run
together instead: the sparse model in times of its first batch, and beside the same file run dense. One thread
is timed by its processor time, which other programs hardly change.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from random_model import LlamaShape, write, write_sparse

from hotcold.engine.host.machine import default_threads
from hotcold.engine.model.load import load_model
from hotcold.engine.model.model import Model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cpu import program
from hotcold.kernels.cpu.team import Program, Team

N_CTX = 256
SHAPES = {"1b": LlamaShape(), "7b": LlamaShape(4096, 11008, 32, 32, 32)}


def listed_share(executor: Executor, ids: NDArray[np.int32]) -> tuple[float, float]:
    """Shares of neurons that the tokens listed and fired."""
    before = executor.counts.sum(1)
    for i, token in enumerate(ids):
        executor.run(np.array([token], np.int32), i)
    listed, firing = (executor.counts.sum(1) - before).sum(0) / len(ids)
    n = executor.model.n_layer * executor.model.n_ff
    return listed / n, firing / n


def with_threshold(
    model: Model, file: GGUFFile, wanted: float, ids: NDArray[np.int32], n_threads: int
) -> Model:
    """The model with the threshold at which the wanted share is listed, by bisection."""
    low, high = -50.0, 50.0
    for _ in range(14):
        middle = (low + high) / 2
        candidate = dataclasses.replace(model, sparse_threshold=middle)
        with Executor(plan_for_cpu(candidate, Wanted("predictor", N_CTX, 1)), file, n_threads) as executor:
            share, _ = listed_share(executor, ids)
        low, high = (middle, high) if share > wanted else (low, middle)
    return dataclasses.replace(model, sparse_threshold=high)


def walk_alone(executor: Executor, op: str, seconds: float) -> float:
    """Median time of one token's nodes of this op alone."""
    nodes = [records for node, records in executor.run_steps.lowered[1] if node.op == op]
    job, team = Program([record for records in nodes for record in records]), Team(executor.n_threads)
    job.run[program.N_TOKENS] = 1
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        team.walk(job)
        times.append(time.perf_counter() - start)
    team.close()
    return float(np.median(times))


class AllListed:
    """One-token runs of a sparse executor that read up and down rows of every listed neuron."""

    def __init__(self, executor: Executor) -> None:
        records = [record for _, records in executor.run_steps.lowered[1] for record in records]
        whole = [r | {"skip": 0} if r["code"] == program.SPARSE_FFN else r for r in records]
        self._job, self._team = Program(whole), Team(executor.n_threads)

    def run(self, ids: NDArray[np.int32], n_past: int, logits: NDArray[np.float32]) -> None:
        """As the executor's `run` of one token."""
        run = self._job.run
        run[program.N_TOKENS], run[program.N_PAST], run[program.TOKEN_IDS] = 1, n_past, ids.ctypes.data
        run[program.LOGITS_ADDRESS] = logits.ctypes.data
        self._team.walk(self._job)

    def close(self) -> None:
        """End the threads."""
        self._team.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--type", default="q4_0")
    parser.add_argument("--ranks", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--listed", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument(
        "--layers", type=int, help="fewer than the shape has: quicker, and much the same ratios"
    )
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[])
    arguments = parser.parse_args()
    kind, shape = GGMLQuantizationType[arguments.type.upper()], SHAPES[arguments.shape]
    shape = dataclasses.replace(shape, n_layer=arguments.layers or shape.n_layer)
    if arguments.batches:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sparse.gguf"
            write_sparse(path, shape, kind, arguments.ranks[0])
            with open_gguf(path) as file:
                measure_batches(file, arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        dense, sparse = Path(folder) / "dense.gguf", Path(folder) / "sparse.gguf"
        write(dense, shape, kind)
        for rank in arguments.ranks:
            write_sparse(sparse, shape, kind, rank)
            print(f"{arguments.type}, predictors of rank {rank}, {arguments.threads} threads")
            with open_gguf(dense) as dense_file, open_gguf(sparse) as sparse_file:
                measure(dense_file, sparse_file, arguments)


def measure(dense_file: GGUFFile, sparse_file: GGUFFile, arguments: argparse.Namespace) -> None:
    """Alternate the decoding steps; then the FFNs alone."""
    ids = np.random.default_rng(0).integers(3, SHAPES[arguments.shape].n_vocab, 64).astype(np.int32)
    n_threads, seconds = arguments.threads, arguments.seconds
    model = with_threshold(load_model(sparse_file), sparse_file, arguments.listed, ids[:4], n_threads)
    with (
        Executor(
            plan_for_cpu(load_model(dense_file), Wanted("off", N_CTX, 1)), dense_file, n_threads
        ) as dense,
        Executor(plan_for_cpu(model, Wanted("predictor", N_CTX, 1)), sparse_file, n_threads) as sparse,
    ):
        listed, firing = listed_share(sparse, ids)
        every = AllListed(sparse)
        runs = {"dense": dense, "sparse": sparse, "sparse, all listed positive": every}
        tokens = alternate(runs, ids, model.n_vocab, seconds)
        every.close()
        ffn = {
            "dense": walk_alone(dense, "dense_gated_ffn", seconds / 3),
            "sparse": walk_alone(sparse, "sparse_gated_ffn", seconds / 3),
            "predictor": walk_alone(sparse, "predictor", seconds / 3),
        }
    print(f"  {listed:.1%} of neurons listed, {firing:.1%} firing")
    for name, value in tokens.items():
        print(f"  {name:28} {1 / value:6.1f} tokens/s, {tokens['dense'] / value:.2f} times dense")
    print("  FFN alone, ms a token: " + ", ".join(f"{name} {value * 1e3:.2f}" for name, value in ffn.items()))
    with_predictor = ffn["sparse"] + ffn["predictor"]
    print(
        f"  FFN {ffn['dense'] / ffn['sparse']:.2f} times as fast as dense, "
        f"{ffn['dense'] / with_predictor:.2f} times with its predictor",
        flush=True,
    )


def measure_batches(file: GGUFFile, arguments: argparse.Namespace) -> None:
    """Some tokens together, sparse and dense in turns."""
    n_threads, batches, model = arguments.threads, arguments.batches, load_model(file)
    clock = time.thread_time if n_threads == 1 else time.perf_counter
    ids = np.random.default_rng(0).integers(3, model.n_vocab, max(batches)).astype(np.int32)
    model = with_threshold(model, file, arguments.listed, ids[:4], n_threads)
    print(
        f"{arguments.type} {arguments.shape}, {model.n_layer} layers, {arguments.listed:.0%} listed, {n_threads} threads"
    )
    with (
        Executor(plan_for_cpu(model, Wanted("predictor", N_CTX, max(batches))), file, n_threads) as sparse,
        Executor(plan_for_cpu(model, Wanted("off", N_CTX, max(batches))), file, n_threads) as dense,
    ):
        first = 0.0
        for n in batches:
            times: tuple[list[float], list[float]] = ([], [])
            end = time.perf_counter() + arguments.seconds
            while time.perf_counter() < end or len(times[0]) < 5:
                for executor, figures in zip((sparse, dense), times, strict=True):
                    start = clock()
                    executor.run(ids[:n], 0)
                    figures.append(clock() - start)
            of_sparse, of_dense = (float(np.median(figures)) for figures in times)
            first = first or of_sparse
            print(
                f"  {n:3} tokens: {of_sparse * 1e3:8.2f} ms, {of_sparse / first:5.2f} times the first; "
                f"dense {of_dense * 1e3:8.2f} ms, {of_dense / of_sparse:.2f} times as long",
                flush=True,
            )


def alternate(runs: dict[str, Any], ids: NDArray[np.int32], n_vocab: int, seconds: float) -> dict[str, float]:
    """Median seconds of one decoding step of each, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    logits, end, i = np.zeros((1, n_vocab), np.float32), time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        for name, executor in runs.items():
            start = time.perf_counter()
            executor.run(ids[i % 64 : i % 64 + 1], i % 64, logits)
            times[name].append(time.perf_counter() - start)
        i += 1
    return {name: float(np.median(values)) for name, values in times.items()}


if __name__ == "__main__":
    main()
