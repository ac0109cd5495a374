"""Decoding and prompts of a mixture of experts, beside llama.cpp on the same file and beside a plain sum.

    python bench/experts.py [--gigabytes 12] [--type q4_0] [--seconds 10] [--threads N] [--no-peer]

Writes a random model whose layers have the shape of Qwen3-30B-A3B's, as many as the gigabytes hold, then runs in
turns: a prompt of 256 and tokens one by one here and in llama.cpp (without it: `--no-peer`), and tokens with a plain
sum over as many bytes of the same file. Routers are random, so every token goes to other experts. Then batches of 1
to 32 tokens beside as many tokens one by one. Last, layers of SmallThinker-21B-A3B's shape with a row a neuron of the
down projection, whose gates are positive by half: the experts' nodes with silent neurons skipped, with all read, and
of a file with a row an output; and tokens of the first model from disk, which stands for one larger than memory.
"""

import argparse
import mmap
import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
from gguf import GGMLQuantizationType
from peer import PROMPT, compare
from random_model import LlamaShape, metadata, norm, tensor

from hotcold.engine.host.machine import default_threads
from hotcold.engine.measure.traffic import token_bytes
from hotcold.engine.model.load import load_model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run import executor as executors
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.trace import Taken, Tracing
from hotcold.gguf_io import blocks, open_gguf
from hotcold.gguf_io.writer import Contents, OutputTensor, uint32, write_gguf
from hotcold.kernels.cpu.stream import StreamingSum

F32 = GGMLQuantizationType.F32
BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class ExpertShape:
    """Hyperparameters; the default has Qwen3-30B-A3B's layers.

    Attributes:
        by_neuron: whether the down projection has a row a neuron.
    """

    n_layer: int
    architecture: str = "qwen3moe"
    by_neuron: bool = False
    n_embd: int = 2048
    n_head: int = 32
    n_head_kv: int = 4
    head_dim: int = 128
    n_expert: int = 128
    n_used: int = 8
    n_ff: int = 768
    n_vocab: int = 32000
    n_ctx: int = 2048


SMALLTHINKER = ExpertShape(6, "smallthinker", True, 2560, 28, 4, n_expert=64, n_used=6, n_ff=768)


def layer_tensors(shape: ExpertShape, kind: GGMLQuantizationType, i: int) -> list[OutputTensor]:
    """One layer."""
    e, f, x, d = shape.n_embd, shape.n_ff, shape.n_expert, shape.head_dim
    q, kv = shape.n_head * d, shape.n_head_kv * d
    sizes: dict[str, tuple[int, ...]] = {"attn_q": (e, q), "attn_k": (e, kv), "attn_v": (e, kv)}
    sizes |= {
        "attn_output": (q, e),
        "ffn_gate_exps": (e, f, x),
        "ffn_up_exps": (e, f, x),
        "ffn_down_exps": (e, f, x) if shape.by_neuron else (f, e, x),
    }
    norms = {"attn_norm": e, "ffn_norm": e}
    norms |= {"attn_q_norm": d, "attn_k_norm": d} if shape.architecture == "qwen3moe" else {}
    return [
        *(norm(f"blk.{i}.{name}.weight", n) for name, n in norms.items()),
        tensor(f"blk.{i}.ffn_gate_inp.weight", F32, e, x),
        *(tensor(f"blk.{i}.{name}.weight", kind, *ne) for name, ne in sizes.items()),
    ]


def write(path: Path, shape: ExpertShape, kind: GGMLQuantizationType) -> int:
    """Write the random model; its size in bytes."""
    out = [
        tensor("token_embd.weight", kind, shape.n_embd, shape.n_vocab),
        norm("output_norm.weight", shape.n_embd),
    ]
    out.append(tensor("output.weight", kind, shape.n_embd, shape.n_vocab))
    for i in range(shape.n_layer):
        out += layer_tensors(shape, kind, i)
    dense = LlamaShape(
        shape.n_embd,
        3 * shape.n_embd,
        shape.n_layer,
        shape.n_head,
        shape.n_head_kv,
        shape.n_vocab,
        shape.n_ctx,
    )
    name = shape.architecture
    values = {
        f"{name}.{key[6:]}" if key.startswith("llama.") else key: value
        for key, value in metadata(dense).items()
    }
    numbers = {
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "rope.dimension_count": shape.head_dim,
        "expert_count": shape.n_expert,
        "expert_used_count": shape.n_used,
        "expert_feed_forward_length": shape.n_ff,
        "expert_gating_func": 1,
    }
    values |= {f"{name}.{key}": uint32(value) for key, value in numbers.items()}
    return write_gguf(path, Contents(name, values, out), force=True)


def layer_bytes(kind: GGMLQuantizationType) -> int:
    """Bytes of a layer."""
    return sum(each.n_bytes for each in layer_tensors(ExpertShape(1), kind, 0))


def share_of_sum(path: Path, n_threads: int, seconds: float) -> None:
    """Tokens in turns with a plain sum over as many bytes; then batches beside their tokens one by one."""
    with open_gguf(path) as file:
        model, view = load_model(file), file.parts[0].all_data()
        n_bytes, stream = token_bytes(model), StreamingSum(n_threads)
        with Executor(plan_for_cpu(model, Wanted("off", 1024, PROMPT)), file, n_threads) as executor:
            ids = np.random.default_rng(0).integers(3, model.n_vocab, 512).astype(np.int32)
            logits = np.zeros((1, model.n_vocab), np.float32)
            decode, total, end, i = [], [], time.perf_counter() + seconds, 0
            while time.perf_counter() < end or i < 5:
                start = time.perf_counter()
                executor.run(ids[i % 512 : i % 512 + 1], i % 512, logits)
                middle = time.perf_counter()
                first = 4096 * (i * 7919 % max(1, (view.size - n_bytes) // 4096))  # other bytes each time
                read = stream.sum(view[first : first + n_bytes // 512 * 512])
                decode.append(middle - start)
                total.append((time.perf_counter() - middle) * n_bytes / read)
                i += 1
            token, plain = float(np.median(decode)), float(np.median(total))
            print(
                f"{n_bytes / 1e6:.0f} MB a token: decode {1 / token:.1f}/s, {n_bytes / token / 1e9:.1f} GB/s | "
                f"sum {n_bytes / plain / 1e9:.1f} GB/s | share {plain / token:.2f}",
                flush=True,
            )
            for n in BATCHES:
                alone, together = _batch(executor, ids, n)
                print(f"{n:3} at once: {n / together:7.1f}/s, one by one {n / alone:7.1f}/s", flush=True)
        stream.close()


def _batch(executor: Executor, ids: np.ndarray, n: int) -> tuple[float, float]:
    """Median seconds of n tokens one by one, and together; other tokens each time."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(5):
        some = np.roll(ids, 37 * turn)[:n].copy()
        start = time.perf_counter()
        for i in range(n):
            executor.run(some[i : i + 1], i)
        middle = time.perf_counter()
        executor.run(some, 0)
        times[0].append(middle - start)
        times[1].append(time.perf_counter() - middle)
    return float(np.median(times[0])), float(np.median(times[1]))


def skipping(path: Path, kind: GGMLQuantizationType, n_threads: int, seconds: float) -> None:
    """The time that experts' nodes of one token take, with rows of silent neurons skipped and with all read.

    The last of the three is a file whose down projections have a row an output, all of it read.
    """
    times: dict[str, list[float]] = {"off": [], "exact": [], "other": []}
    with ExitStack() as stack:
        files = []
        for by_neuron in (True, False):
            each = path.with_name(f"{by_neuron}.gguf")
            write(each, replace(SMALLTHINKER, by_neuron=by_neuron), kind)
            files.append(stack.enter_context(open_gguf(each)))
        both = {}
        for mode, file in zip(times, (files[0], files[0], files[1]), strict=True):
            model = load_model(file)
            plan = plan_for_cpu(model, Wanted("exact" if mode == "exact" else "off", 64, 1))
            both[mode] = stack.enter_context(Executor(plan, file, n_threads))
        ids = np.random.default_rng(0).integers(3, model.n_vocab, 64).astype(np.int32)
        heard: list[float] = []

        def hear(taken: Taken) -> None:
            if taken.node.op == "expert_ffn":
                heard.append(taken.seconds)

        for executor in both.values():
            executor.taking = Tracing(executor, hear)
        end, i = time.perf_counter() + seconds, 0
        while time.perf_counter() < end or i < 5:
            for mode, executor in both.items():
                heard.clear()
                executor.run(ids[i % 64 : i % 64 + 1], i % 64)
                times[mode].append(sum(heard))
            i += 1
        listed, firing = both["exact"].counts.sum((0, 1))
    dense, sparse, other = (float(np.median(times[mode])) for mode in ("off", "exact", "other"))
    share = firing / listed
    print(
        f"experts of SmallThinker's shape, {share:.0%} of the gates positive: all rows {dense * 1e3:.2f} ms a token, "
        f"skipping {sparse * 1e3:.2f} ms, {dense / sparse:.2f} times | down with a row an output, all rows "
        f"{other * 1e3:.2f} ms, {other / sparse:.2f} times",
        flush=True,
    )


def from_disk(path: Path, n_threads: int) -> None:
    """Tokens whose pages are dropped before each run, with and without word to the system of the chosen experts."""
    with ExitStack() as stack:
        file, raw = stack.enter_context(open_gguf(path)), stack.enter_context(path.open("rb"))
        model, both = load_model(file), {}
        for fits in (True, False):
            with mock.patch.object(executors, "fits_memory", return_value=fits):
                executor = Executor(plan_for_cpu(model, Wanted("off", 64, 8)), file, n_threads)
            both[fits] = stack.enter_context(executor)
        os.fsync(raw.fileno())
        ids = np.random.default_rng(0).integers(3, model.n_vocab, 64).astype(np.int32)
        for n in (1, 8):
            times: dict[bool, list[float]] = {True: [], False: []}
            for i in range(8):
                for fits, executor in both.items():
                    for part in file.parts:
                        part.mapping.madvise(mmap.MADV_DONTNEED)
                    os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    start = time.perf_counter()
                    executor.run(np.roll(ids, i)[:n].copy(), 0)
                    times[fits].append(time.perf_counter() - start)
            silent, told = (1e3 * float(np.median(times[fits])) for fits in (True, False))
            print(f"{n} at once from disk: {silent:.0f} ms, told which experts {told:.0f} ms", flush=True)


def main() -> None:
    """Write a model and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=12)
    parser.add_argument("--type", default="q4_0")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--no-peer", action="store_true")
    arguments = parser.parse_args()
    kind = GGMLQuantizationType[arguments.type.upper()]
    head = 2 * 32000 * blocks.row_bytes(kind, 2048)
    n_layer = max(1, int((arguments.gigabytes * 1e9 - head) // layer_bytes(kind)))
    print(f"{n_layer} layers, {arguments.threads} threads, load average {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experts.gguf"
        write(path, ExpertShape(n_layer), kind)
        share_of_sum(path, arguments.threads, arguments.seconds)
        if not arguments.no_peer:
            compare(path, arguments.type, arguments.threads, arguments.seconds, None)
        skipping(path, kind, arguments.threads, arguments.seconds)
        from_disk(path, arguments.threads)


if __name__ == "__main__":
    main()
