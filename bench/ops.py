"""Each kernel's bytes a second beside a plain streaming sum, in one run.

    python bench/ops.py [seconds a figure] [matvec predictor small monotone ffn prompt attention bytes] [types]
        [one]

Matrices and FFN layers lie in a ring of mapped memory far beyond any cache; a kernel and the sum take
turns over it, and the median of the ratios of neighbours is printed, since other work on the machine
slows both. A prompt's tiles take turns with those of Q8_0, a chunk of its attention with multiply-adds in
registers alone. Types such as Q4_K limit the tables to these; `one` is one thread, and its own time, for a machine
that others use. `monotone` fails where some tokens take longer than one fewer and one more. `bytes` runs the portable
code in a build that counts every row it reads, and fails when a sparse FFN at 90 % sparsity reads over 10 % more than
the formula says.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from attention import CHUNK, SHAPES, TYPE_IDS, HeadShape, Layers, Peak, gflop
from attention import RING as KV_RING
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from random_model import random_rows

from hotcold.engine.host.machine import default_threads
from hotcold.kernels.cpu import kernel_files, pack, program, rows, sizes, weight_types
from hotcold.kernels.cpu.stream import StreamingSum
from hotcold.kernels.cpu.team import Program, Team

RING = 384 << 20
FLOAT_TYPES = (rows.F32_ID, rows.F16_ID, rows.BF16_ID)
BLOCK_TYPES = tuple(kind.type_id for kind in weight_types.BLOCK_TYPES)
NAMES = {type_id: GGMLQuantizationType(type_id).name for type_id in (*FLOAT_TYPES, *BLOCK_TYPES)}
N_EMBD, N_FF = 4096, 11008
PREDICTOR_TYPES = (rows.F16_ID, rows.Q8_0_ID, rows.Q4_0_ID)
RANK = 256  # of a predictor, whose second matrix has rows as short as that
SMALL = (1, 2, 4, 8, 12, 16)  # tokens
EACH, TOLERANCE = tuple(range(1, 19)), 1.05  # tokens, and what a figure may be off by
PROMPT = (5632, 2048)  # rows and columns

TABLE_NAMES = ("matvec", "predictor", "small", "monotone", "ffn", "prompt", "attention", "bytes")


def asked(words: list[str]) -> argparse.Namespace:
    """The command line: seconds, and the words tables, types and `one`; any other word is refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    known = {*TABLE_NAMES, "one", *(name.lower() for name in NAMES.values())}
    parser.add_argument("seconds", type=float, nargs="?", default=3.0, help="a figure (default: 3)")
    parser.add_argument(
        "words", type=str.lower, nargs="*", metavar="word", help="what to measure: " + " ".join(sorted(known))
    )
    found = parser.parse_args(words)
    for word in found.words:
        if word not in known | {"counting"}:
            parser.error(
                f"{word} is no table, no type and not 'one'; these are known: {' '.join(sorted(known))}"
            )
    return found


ASKED = asked(sys.argv[1:])
ONE = "one" in ASKED.words
clock = time.thread_time if ONE else time.perf_counter

Record = dict[str, Any]


def ring(type_id: int, n_bytes: int) -> tuple[NDArray[np.uint8], int]:
    """Random blocks in a mapped file, and how many times n_bytes fit."""
    copies = max(2, RING // n_bytes)
    with tempfile.TemporaryFile() as file:
        part = np.concatenate(list(random_rows(GGMLQuantizationType(type_id), n_bytes, 0)))
        for _ in range(copies):
            file.write(part.tobytes())
        file.flush()
        return np.memmap(file, np.uint8, "r"), copies


def packed_inputs(n_tokens: int, k: int, type_id: int) -> tuple[NDArray[np.uint8], int]:
    """Random inputs as the type wants them, and their row stride."""
    plain = program.aligned(4 * n_tokens * k)
    plain.view(np.float32)[:] = np.random.default_rng(0).standard_normal(n_tokens * k)
    if not sizes.is_quantised(type_id):
        return plain, 4 * k
    stride = sizes.packed_bytes(k)
    out = program.aligned(n_tokens * stride)
    for t in range(n_tokens):
        pack.pack_row(plain.ctypes.data + 4 * t * k, k, out.ctypes.data + t * stride)
    return out, stride


def weight(name: str, base: int, type_id: int, k: int) -> Record:
    """Record fields of a matrix of the ring."""
    return {name: base, f"{name}_type": type_id, f"{name}_stride": sizes.row_bytes(type_id, k)}


def alternate(
    kernel: Callable[[], float], total: Callable[[], float], seconds: float
) -> tuple[float, float, float]:
    """Run both in turns; medians of kernel and sum in GB/s, and of their ratios. Both give their bytes."""
    kernel(), total()
    speeds: list[float] = []
    sums: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(speeds) < 5:
        for function, figures in ((kernel, speeds), (total, sums)):
            start = clock()
            n_bytes = function()
            figures.append(n_bytes / (clock() - start) / 1e9)
    ratios = np.array(speeds) / np.array(sums)
    return float(np.median(speeds)), float(np.median(sums)), float(np.median(ratios))


def line(what: str, figures: tuple[float, float, float]) -> None:
    """One row of a table."""
    print(f"{what:<34} {figures[0]:6.1f} GB/s | sum {figures[1]:6.1f} | share {figures[2]:.2f}", flush=True)


def matvec(type_id: int, n_rows: int, k: int, team: Team, stream: StreamingSum, seconds: float) -> None:
    """A matrix times one vector, over the whole ring."""
    size = n_rows * sizes.row_bytes(type_id, k)
    memory, copies = ring(type_id, size)
    x, _ = packed_inputs(1, k, type_id)
    y = program.aligned(4 * n_rows)
    chunks = program.row_chunks(n_rows, sizes.row_bytes(type_id, k))
    shape = {"chunks": chunks, "n_rows": n_rows, "k": k, "x": x.ctypes.data, "y": y.ctypes.data}
    records = [
        {"code": program.MAT_VEC, **weight("w", memory.ctypes.data + i * size, type_id, k), **shape}
        for i in range(copies)
    ]
    job = one_token(records)

    def kernel() -> int:
        team.walk(job)
        return copies * size

    line(f"{NAMES[type_id]:7} {n_rows} x {k}", alternate(kernel, lambda: stream.sum(memory), seconds))


def one_token(records: list[Record]) -> Program:
    """A program for one token."""
    job = Program(records)
    job.run[program.N_TOKENS] = 1
    return job


class FFN:
    """Layers of a sparse FFN with a list of neurons, about half of which fire."""

    def __init__(self, type_id: int, share: float, n_embd: int = N_EMBD, n_ff: int = N_FF) -> None:
        size = n_ff * sizes.row_bytes(type_id, n_embd)
        self.memory, copies = ring(type_id, size)
        layers = copies // 3 or 1
        if copies < 3:
            self.memory, layers = np.concatenate([np.asarray(self.memory)] * 2)[: 3 * size], 1
        generator = np.random.default_rng(1)
        picked = np.sort(generator.choice(n_ff, int(n_ff * share), replace=False)).astype(np.int64)
        self.listed, self.length = picked, np.array([len(picked)], np.int64)
        self.x, _ = packed_inputs(1, n_embd, type_id)
        self.partial = program.aligned(4 * program.PIECES * n_embd)
        self.y = program.aligned(4 * n_embd)
        self.counts = np.zeros((program.MAX_CHUNKS, 2), np.int64)
        self.row_bytes = sizes.row_bytes(type_id, n_embd)
        self.job = one_token(
            [r for i in range(layers) for r in self._layer(type_id, n_embd, n_ff, 3 * i * size)]
        )

    def _layer(self, type_id: int, n_embd: int, n_ff: int, at: int) -> list[Record]:
        base, size = self.memory.ctypes.data + at, n_ff * self.row_bytes
        three = [weight(name, base + i * size, type_id, n_embd) for i, name in enumerate(("w", "w1", "w2"))]
        ffn = {"code": program.SPARSE_FFN, "chunks": program.PIECES, **three[0], **three[1], **three[2]}
        ffn |= {"n_rows": n_ff, "k": n_embd, "x": self.x.ctypes.data, "z": self.x.ctypes.data}
        ffn |= {"listed": self.listed.ctypes.data, "n_listed": self.length.ctypes.data, "skip": 1}
        ffn |= {"scratch": self.partial.ctypes.data, "scratch_stride": 4 * n_embd}
        ffn |= {"counts": self.counts.ctypes.data}
        total = {
            "code": program.REDUCE,
            "chunks": 8,
            "x": self.partial.ctypes.data,
            "n_parts": program.PIECES,
        }
        total |= {"x_stride": 4 * n_embd, "k": n_embd, "y": self.y.ctypes.data}
        return [ffn, total]

    def run(self, team: Team) -> int:
        """One pass over all layers; bytes by the formula: gates of the listed, up and down of the firing."""
        self.counts[:] = 0
        team.walk(self.job)
        listed, firing = self.counts.sum(0).tolist()
        return int((listed + 2 * firing) * self.row_bytes)


def ffn(type_id: int, share: float, team: Team, stream: StreamingSum, seconds: float) -> None:
    """The fused FFN; the sum reads as many bytes in the order they lie."""
    layers = FFN(type_id, share)
    n_bytes = layers.run(team)
    view = layers.memory[: n_bytes // (1 << 20) * (1 << 20)]
    what = f"{NAMES[type_id]:7} FFN, {share:.0%} listed"
    line(what, alternate(lambda: layers.run(team), lambda: stream.sum(view), seconds))


def prompt_job(type_id: int, n_tokens: int) -> tuple[Program, list[Any]]:
    """A matrix times a batch, and the memory that it reads and writes."""
    n_rows, k = PROMPT
    memory, _ = ring(type_id, n_rows * sizes.row_bytes(type_id, k))
    x, stride = packed_inputs(n_tokens, k, type_id)
    y = program.aligned(4 * n_rows * n_tokens)
    at = {"x": x.ctypes.data, "x_stride": stride, "y": y.ctypes.data, "y_stride": 4 * n_rows}
    chunks = program.panel_chunks(n_rows)
    tile = {"code": program.MUL_MAT, "chunks": chunks, **weight("w", memory.ctypes.data, type_id, k), **at}
    job = Program([tile | {"n_rows": n_rows, "k": k}])
    job.run[program.N_TOKENS] = n_tokens
    return job, [memory, x, y]


def prompt(type_id: int, n_tokens: int, team: Team, seconds: float) -> None:
    """A matrix times a batch, in GFLOP/s, in turns with the same of Q8_0."""
    (job, kept), (base, kept_base) = (prompt_job(t, n_tokens) for t in (type_id, rows.Q8_0_ID))

    def walk(program: Program) -> float:
        team.walk(program)
        return float(2 * PROMPT[0] * PROMPT[1] * n_tokens)

    speed, of_base, share = alternate(lambda: walk(job), lambda: walk(base), seconds)
    what = f"{NAMES[type_id]:7} {PROMPT[0]} x {PROMPT[1]} by {n_tokens} tokens"
    print(f"{what} {speed:6.0f} GFLOP/s | Q8_0 {of_base:6.0f} | share {share:.2f}", flush=True)
    del kept, kept_base


def times_of_batches(
    type_id: int, n_rows: int, k: int, batches: tuple[int, ...], team: Team, seconds: float
) -> NDArray[np.float64]:
    """Seconds of a matrix times each number of tokens, over the whole ring; all in turns: [turn, batch]."""
    size = n_rows * sizes.row_bytes(type_id, k)
    memory, copies = ring(type_id, size)
    x, stride = packed_inputs(max(batches), k, type_id)
    y = program.aligned(4 * n_rows * max(batches))
    at = {"x": x.ctypes.data, "x_stride": stride, "y": y.ctypes.data, "y_stride": 4 * n_rows}
    shape = {"chunks": program.row_chunks(n_rows, sizes.row_bytes(type_id, k)), "n_rows": n_rows, "k": k}
    bases = [memory.ctypes.data + i * size for i in range(copies)]
    jobs = []
    for n in batches:
        code = program.MAT_VEC if n == 1 else program.MUL_MAT
        job = Program([{"code": code, **weight("w", base, type_id, k), **shape, **at} for base in bases])
        job.run[program.N_TOKENS] = n
        jobs.append(job)
    times: list[list[float]] = [[] for _ in batches]
    end = time.perf_counter() + seconds * len(batches)
    while time.perf_counter() < end or len(times[0]) < 5:
        for job, figures in zip(jobs, times, strict=True):
            start = clock()
            team.walk(job)
            figures.append(clock() - start)
    return np.array(times).T


def small(type_id: int, n_rows: int, k: int, team: Team, seconds: float) -> None:
    """A few tokens, in times of one."""
    times = times_of_batches(type_id, n_rows, k, SMALL, team, seconds)
    ratios = np.median(times / times[:, :1], axis=0)
    figures = "  ".join(f"{n}: {ratio:.2f}" for n, ratio in zip(SMALL, ratios, strict=True))
    print(f"{NAMES[type_id]:7} {n_rows} x {k}, tokens in times of one: {figures}", flush=True)


def is_monotone(type_id: int, n_rows: int, k: int, team: Team, seconds: float) -> bool:
    """Whether n tokens take no longer than n - 1 and one more."""
    times = np.median(times_of_batches(type_id, n_rows, k, EACH, team, seconds), axis=0)
    more = times[1:] / (times[:-1] + times[0])
    figures = "  ".join(f"{n}: {t / times[0]:.2f}" for n, t in zip(EACH, times, strict=True))
    worst = int(np.argmax(more))
    print(f"{NAMES[type_id]:7} {n_rows} x {k}, tokens in times of one: {figures}")
    print(f"        worst: {EACH[worst + 1]} tokens take {more[worst]:.2f} of one fewer and one", flush=True)
    return bool(more[worst] <= TOLERANCE)


def decode_attention(
    kv_type: str, shape: HeadShape, n_keys: int, team: Team, stream: StreamingSum, seconds: float
) -> None:
    """One token's attention over layer after layer; bytes are those of keys and values."""
    layers = Layers(kv_type, shape, 1, n_keys, KV_RING)
    what = f"{kv_type} {shape[0]}/{shape[1]} heads of {shape[2]} at {n_keys}"
    line(what, alternate(lambda: layers.run(team), lambda: stream.sum(layers.memory), seconds))


def chunk_attention(
    kv_type: str, shape: HeadShape, n_keys: int, team: Team, peak: Peak, seconds: float
) -> None:
    """Attention of a chunk that ends at n_keys positions, of one layer."""
    layers, work = Layers(kv_type, shape, CHUNK, n_keys, 0), gflop(shape, CHUNK, n_keys)

    def kernel() -> float:
        layers.run(team)
        return work

    speed, top, share = (1e9 * x for x in alternate(kernel, peak.run, seconds))
    what = f"{kv_type} {shape[0]}/{shape[1]} heads of {shape[2]}, {CHUNK} up to {n_keys}"
    print(f"{what:<40} {speed:6.0f} GFLOP/s | peak {top:6.0f} | share {share / 1e9:.2f}", flush=True)


def count_bytes() -> None:
    """Compare the counted with the formula's bytes, in this counting process."""
    team, failed = Team(1), []
    for type_id in (rows.F32_ID, rows.F16_ID, rows.BF16_ID, rows.Q8_0_ID, rows.Q4_0_ID):
        layers = FFN(type_id, 0.1, 1024, 4096)
        layers.run(team)
        before = kernel_files.counted_bytes()
        formula = layers.run(team)
        counted = kernel_files.counted_bytes() - before
        print(f"{NAMES[type_id]:7} FFN at 90 % sparsity: {counted} bytes counted, {formula} by the formula")
        if not formula <= counted <= 1.1 * formula:
            failed.append(NAMES[type_id])
    team.close()
    if failed:
        sys.exit(f"more than 10 % over the formula: {', '.join(failed)}")


def count_in_portable_build() -> None:
    """Run `count_bytes` in a process whose kernels are portable and count."""
    with tempfile.TemporaryDirectory() as folder:
        level = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
        environment = os.environ | level | {"HOTCOLD_COUNT_BYTES": "1", "NUMBA_CACHE_DIR": folder}
        done = subprocess.run([sys.executable, __file__, "0", "counting"], check=False, env=environment)
    if done.returncode:
        sys.exit(done.returncode)


def wanted_types(types: tuple[int, ...]) -> list[int]:
    """Those that the command line names; all, if it names none."""
    named = [type_id for type_id in types if NAMES[type_id].lower() in ASKED.words]
    return named or list(types)


def attention_table(team: Team, stream: StreamingSum, seconds: float) -> None:
    """Every type of cache, a token and a chunk of several shapes."""
    peak = Peak(team.n)
    for kv_type in TYPE_IDS:
        for shape in SHAPES:
            for n_keys in (1024, 4096):
                decode_attention(kv_type, shape, n_keys, team, stream, seconds)
            chunk_attention(kv_type, shape, 4096, team, peak, seconds)


def matvec_table(team: Team, stream: StreamingSum, seconds: float) -> None:
    """Every type, three shapes."""
    for type_id in wanted_types((*FLOAT_TYPES, *BLOCK_TYPES)):
        for n_rows, k in ((N_FF, N_EMBD), (N_EMBD, N_FF), (2048, 2048)):
            matvec(type_id, n_rows, k, team, stream, seconds)


def predictor_table(team: Team, stream: StreamingSum, seconds: float) -> None:
    """Rows of a predictor's second matrix."""
    for type_id in PREDICTOR_TYPES:
        matvec(type_id, N_FF, RANK, team, stream, seconds)


def ffn_table(team: Team, stream: StreamingSum, seconds: float) -> None:
    """A tenth of the neurons, and all."""
    for type_id in (rows.F16_ID, *wanted_types(BLOCK_TYPES)):
        for share in (0.1, 1.0):
            ffn(type_id, share, team, stream, seconds)


def small_table(team: Team, _: StreamingSum, seconds: float) -> None:
    """Few tokens, every type but two floats."""
    for type_id in (rows.F16_ID, *wanted_types(BLOCK_TYPES)):
        small(type_id, N_FF, N_EMBD, team, seconds)


def monotone_table(team: Team, _: StreamingSum, seconds: float) -> None:
    """1 to 18 tokens, likewise; ends with exit code 1 where more cost more than they should."""
    types = (rows.F16_ID, *wanted_types(BLOCK_TYPES))
    failed = [NAMES[t] for t in types if not is_monotone(t, 2048, 2048, team, seconds)]
    if failed:
        sys.exit(f"more tokens cost more than one fewer and one: {', '.join(failed)}")


def prompt_table(team: Team, _: StreamingSum, seconds: float) -> None:
    """Prompts, likewise."""
    for type_id in (rows.F16_ID, *wanted_types(BLOCK_TYPES)):
        prompt(type_id, 256, team, seconds)


TABLES: dict[str, Callable[[Team, StreamingSum, float], None]] = dict(
    zip(
        TABLE_NAMES[:-1],
        (
            matvec_table,
            predictor_table,
            small_table,
            monotone_table,
            ffn_table,
            prompt_table,
            attention_table,
        ),
        strict=True,
    )
)


def main() -> None:
    """Print the tables asked for."""
    wanted = set(ASKED.words) & {*TABLE_NAMES} or {*TABLE_NAMES}
    if "counting" in ASKED.words:
        count_bytes()
        return
    n_threads = 1 if ONE else default_threads()
    print(f"{n_threads} threads, load average {os.getloadavg()[0]:.1f}", flush=True)
    team, stream = Team(n_threads), StreamingSum(n_threads)
    for name, table in TABLES.items():
        if name in wanted:
            table(team, stream, ASKED.seconds)
    team.close()
    stream.close()
    if "bytes" in wanted:
        count_in_portable_build()


if __name__ == "__main__":
    main()
