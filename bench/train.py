"""What training a predictor takes: one layer of a ReLU model's shape, time, memory and GFLOP/s.

    python bench/train.py [--n-embd 4096] [--n-ff 11008] [--rank 512] [--tokens 20000] [--epochs 4]

Weights are random with a low rank planted, so that a predictor exists, and as many neurons fire as in a sparse model.
The products' GFLOP/s, with the losses and the optimiser's time in them, stand beside NumPy's on all cores, which are as
many as float32 products can have, and those of a prompt's tile, the kernel that multiplies float32 matrices with a
batch, in turns. What all layers and more tokens would take is arithmetic from the steps' time.
"""

import argparse
import math
import resource
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import hotcold.kernels.cpu  # noqa: F401  sets the folder of compiled code
from hotcold.engine.host.machine import default_threads
from hotcold.engine.train.arithmetic import threads
from hotcold.engine.train.gate import gate_of_matrix
from hotcold.engine.train.predictor import TRIAL_STEPS, train
from hotcold.engine.train.samples import Samples
from hotcold.engine.train.settings import BATCH, Training
from hotcold.kernels.cpu import program, rows
from hotcold.kernels.cpu.team import Program, Team

PLANTED, FIRING = 64, 0.1  # rank of what decides, and the share of neurons that fire
TILE_TOKENS, TILE_ROWS, TILE_SECONDS = 256, 4096, 2.0
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """Of a layer, and of what it is trained on."""

    n_embd: int
    n_ff: int
    rank: int
    n_tokens: int
    epochs: int

    @property
    def steps(self) -> int:
        """Batches that see each token so often."""
        return math.ceil(self.epochs * self.n_tokens / BATCH)

    @property
    def step_flop(self) -> int:
        """Of the products of one step: two matrices, each forwards and backwards by both of its sides."""
        return 6 * BATCH * self.rank * (self.n_embd + self.n_ff)


def planted(shape: Shape, seed: int = 0) -> tuple[Samples, F32]:
    """Inputs, what fires on them, and the matrix that decides it: a product of low rank and some noise."""
    random = np.random.default_rng(seed)
    onto = random.standard_normal((shape.n_ff, PLANTED), np.float32)
    directions = random.standard_normal((PLANTED, shape.n_embd), np.float32) / np.float32(
        math.sqrt(shape.n_embd)
    )
    gate = onto @ directions
    gate += np.float32(0.1 * gate.std()) * random.standard_normal(gate.shape, np.float32)
    x = random.standard_normal((shape.n_tokens, shape.n_embd), np.float32)
    some = x[:512] @ gate.T
    gate[:, 0] -= (
        np.quantile(some, 1 - FIRING, axis=0) / 8
    )  # a number that is alike in all inputs holds most back
    x[:, 0] = 8
    bits = [
        np.packbits(x[at : at + BATCH] @ gate.T > 0, axis=1, bitorder="little")
        for at in range(0, len(x), BATCH)
    ]
    return Samples(x.astype(np.float16), np.concatenate(bits), shape.n_ff), gate


def tile_gflops(n_threads: int) -> float:
    """Of a prompt's tile on float32: the best of some runs."""
    w, x = (np.ones((n, TILE_ROWS), np.float32) for n in (TILE_ROWS, TILE_TOKENS))
    y = np.zeros((TILE_TOKENS, TILE_ROWS), np.float32)
    at = {
        "w": w.ctypes.data,
        "w_type": rows.F32_ID,
        "w_stride": 4 * TILE_ROWS,
        "n_rows": TILE_ROWS,
        "k": TILE_ROWS,
    }
    at |= {"x": x.ctypes.data, "x_stride": 4 * TILE_ROWS, "y": y.ctypes.data, "y_stride": 4 * TILE_ROWS}
    job, team = (
        Program([{"code": program.MUL_MAT, "chunks": program.panel_chunks(TILE_ROWS), **at}]),
        Team(n_threads),
    )
    job.run[program.N_TOKENS] = TILE_TOKENS
    times, until = list[float](), time.perf_counter() + TILE_SECONDS
    try:
        while len(times) < 3 or time.perf_counter() < until:
            begin = time.perf_counter()
            team.walk(job)
            times.append(time.perf_counter() - begin)
    finally:
        team.close()
    return 2 * TILE_TOKENS * TILE_ROWS**2 / min(times[1:]) / 1e9


def sgemm_gflops() -> float:
    """Of NumPy's product of float32 matrices on all cores: the best of some runs."""
    x, w = (np.ones((n, TILE_ROWS), np.float32) for n in (BATCH, TILE_ROWS))
    y, times, until = (
        np.zeros((BATCH, TILE_ROWS), np.float32),
        list[float](),
        time.perf_counter() + TILE_SECONDS,
    )
    while len(times) < 3 or time.perf_counter() < until:
        begin = time.perf_counter()
        np.matmul(x, w.T, out=y)
        times.append(time.perf_counter() - begin)
    return 2 * BATCH * TILE_ROWS**2 / min(times) / 1e9


def report(shape: Shape) -> list[str]:
    """Train one layer; what it took, a line each."""
    samples, gate = planted(shape)
    tiles, numpys, heard = [tile_gflops(default_threads())], [sgemm_gflops()], list[tuple[int, float]]()
    cpus = list[float]()
    begin, cpu_before = time.perf_counter(), time.process_time()

    def hear(done: int, total: int) -> None:
        heard.append((done, time.perf_counter()))
        cpus.append(time.process_time())

    with threads(default_threads()) as on:
        trained = train(samples, shape.rank, gate_of_matrix(gate), Training(0.97, shape.steps, 1), hear, on)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu_before
    tiles.append(tile_gflops(default_threads()))
    numpys.append(sgemm_gflops())
    n_run = shape.steps + min(TRIAL_STEPS, shape.steps)  # both starts are tried, one goes on
    (first, since), (last, until) = heard[0], heard[-1]  # after the trial, steps alone
    step = (until - since) / (last - first) if last > first else seconds / n_run
    cpu_step = (cpus[-1] - cpus[0]) / (last - first) if last > first else cpu / n_run
    gflops, of_cpu, found = shape.step_flop / step / 1e9, shape.step_flop / cpu_step / 1e9, trained.quality
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    hours = 32 * (4 * 100_000 / BATCH) * step / 3600
    return [
        f"n_embd {shape.n_embd}, n_ff {shape.n_ff}, rank {shape.rank}, {shape.n_tokens} tokens, {n_run} steps",
        f"recall {found.recall:.1%}, listed {found.listed:.1%}, firing {found.firing:.1%}; began with {trained.start}",
        f"{seconds:.0f} s ({cpu:.0f} of a core), of which {n_run * step:.0f} s are steps; {peak:.2f} GB at most",
        f"a step {step:.2f} s, {gflops:.0f} GFLOP/s, {of_cpu:.0f} for each second of a core",
        f"NumPy's products {min(numpys):.0f} to {max(numpys):.0f} GFLOP/s, a prompt's tile {min(tiles):.0f} to {max(tiles):.0f}",
        f"32 layers, 4 epochs of 100 000 tokens, by arithmetic: {hours:.1f} h of steps",
    ]


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("n-embd", 4096),
        ("n-ff", 11008),
        ("rank", 512),
        ("tokens", 20_000),
        ("epochs", 4),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    for line in report(Shape(given.n_embd, given.n_ff, given.rank, given.tokens, given.epochs)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
