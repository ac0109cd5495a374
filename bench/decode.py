"""How near decoding comes to the machine's memory: tokens per second beside a streaming sum.

    python bench/decode.py [--type q4_0] [--n-embd 2048 --n-ff 5632 --n-layer 22 --n-head 32 --n-head-kv 4]

Writes a random model of that shape, then alternates decoding steps with a streaming sum over as many
bytes of the same mapped file, in one run, and prints both and their ratio. A prompt of 256 tokens is
timed beside the bare prompt tile on one of the model's matrices.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from random_model import LlamaShape, write

from hotcold.engine.host.machine import default_threads
from hotcold.engine.measure.traffic import token_bytes
from hotcold.engine.model.load import load_model
from hotcold.engine.model.model import Layer, Model, Weight
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cpu import program, sizes
from hotcold.kernels.cpu.stream import StreamingSum
from hotcold.kernels.cpu.team import Program, Team

PROMPT = 256


def tile_gflops(executor: Executor, kind: int, n_rows: int, k: int, weight: int, seconds: float) -> float:
    """The bare tile op on one matrix: best GFLOP/s."""
    stride = sizes.packed_bytes(k) if sizes.is_quantised(kind) else 4 * k
    x = program.aligned(PROMPT * stride)
    x_plain = np.random.default_rng(0).standard_normal((PROMPT, k), np.float32)
    y = program.aligned(4 * PROMPT * n_rows)
    plain = {"x": x_plain.ctypes.data, "x_stride": 4 * k, "k": k, "y": x.ctypes.data, "y_stride": stride}
    fill = [{"code": program.PACK, "chunks": PROMPT, **plain}] if sizes.is_quantised(kind) else []
    if not fill:
        x.view(np.float32)[:] = x_plain.reshape(-1)
    at = {"x": x.ctypes.data, "x_stride": stride, "y": y.ctypes.data, "y_stride": 4 * n_rows}
    w = {"w": weight, "w_type": kind, "w_stride": sizes.row_bytes(kind, k)}
    chunks = program.panel_chunks(n_rows)
    tile = {"code": program.MUL_MAT, "chunks": chunks, **w, **at, "n_rows": n_rows, "k": k}
    team = Team(executor.n_threads)
    prepare, job = Program(fill or [tile]), Program([tile])
    for one in (prepare, job):
        one.run[program.N_TOKENS] = PROMPT
    team.walk(prepare)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        team.walk(job)
        best = min(best, time.perf_counter() - start)
    team.close()
    return 2 * n_rows * k * PROMPT / best / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = LlamaShape()
    for name in ("n_embd", "n_ff", "n_layer", "n_head", "n_head_kv", "n_vocab"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    parser.add_argument("--type", default="q4_0")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    shape = LlamaShape(
        *(getattr(arguments, n) for n in ("n_embd", "n_ff", "n_layer", "n_head", "n_head_kv", "n_vocab"))
    )
    kind = GGMLQuantizationType[arguments.type.upper()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        write(path, shape, kind)
        with open_gguf(path) as file:
            measure(file, shape, kind, arguments.threads, arguments.seconds)


def measure(
    file: GGUFFile, shape: LlamaShape, kind: GGMLQuantizationType, n_threads: int, seconds: float
) -> None:
    """Alternate decode steps and sums; then the prompt and its tile."""
    model = load_model(file)
    n_bytes, view = token_bytes(model), file.parts[0].all_data()
    stream = StreamingSum(n_threads)
    with Executor(plan_for_cpu(model, Wanted("off", 1024, PROMPT)), file, n_threads) as executor:
        ids = np.random.default_rng(0).integers(3, shape.n_vocab, PROMPT).astype(np.int32)
        logits = np.zeros((1, shape.n_vocab), np.float32)
        times: dict[str, list[float]] = {"decode": [], "sum": [], "prompt": []}
        executor.run(ids, 0)
        n_past, end = 32, time.perf_counter() + seconds
        while time.perf_counter() < end or len(times["sum"]) < 5:
            start = time.perf_counter()
            executor.run(ids[:1], n_past, logits)
            middle = time.perf_counter()
            read = stream.sum(view[: n_bytes // 512 * 512])
            times["decode"].append(middle - start)
            times["sum"].append((time.perf_counter() - middle) * n_bytes / read)
            n_past = 32 + (n_past - 31) % 512
        for _ in range(3):
            start = time.perf_counter()
            executor.run(ids, 0, logits)
            times["prompt"].append(time.perf_counter() - start)
        up = model.layers[0].up
        tile = tile_gflops(executor, int(kind), up.ne[1], up.ne[0], executor.host.store.address(up), 2)
    report(times, n_bytes, model, tile, n_threads)
    stream.close()


def report(times: dict[str, list[float]], n_bytes: int, model: Model, tile: float, n_threads: int) -> None:
    """Print medians and bests, and the ratio of both."""
    flops = 2 * PROMPT * sum(w.ne[0] * w.ne[1] for layer in model.layers for w in _matrices(layer))
    prompt = min(times["prompt"])
    print(f"{n_threads} threads, {n_bytes / 1e6:.0f} MB a token")
    for name, pick in (("median", np.median), ("best", np.min)):
        decode, total = float(pick(times["decode"])), float(pick(times["sum"]))
        print(
            f"{name:>7}: decode {1 / decode:6.1f} tokens/s {n_bytes / decode / 1e9:5.1f} GB/s | "
            f"sum {n_bytes / total / 1e9:5.1f} GB/s | share {total / decode:.2f}"
        )
    print(
        f" prompt: {PROMPT / prompt:6.1f} tokens/s {flops / prompt / 1e9:5.0f} GFLOP/s | "
        f"bare tile {tile:5.0f} GFLOP/s | share {flops / prompt / 1e9 / tile:.2f}"
    )


def _matrices(layer: Layer) -> list[Weight]:
    attention = [layer.attn_q, layer.attn_k, layer.attn_v, layer.attn_output]
    gate = [layer.ffn_gate] if layer.ffn_gate is not None else []
    return [*attention, *gate, layer.up, layer.down]


if __name__ == "__main__":
    main()
