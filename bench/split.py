"""What a split layer costs the host, and what is gained when both sides work at once; no card is needed.

    python bench/split.py [python] [threads] [together] [loading]

`python`: the device is a stub whose copies and kernels are nothing, and the model is so small that its
cold rows are next to nothing; so what a token takes is what Python takes. `threads`: the same for teams of
1 to 16 threads, in turns: what it costs to wake them. `together`: the stub's FFN
kernel sleeps, in a thread of its own, as long as the cold rows take. `loading`: rows are gathered and
repacked by all threads for a stub that copies nothing, beside a plain copy of as many bytes.
"""

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from planned import LoadRate, everyone_listed, half_the_neurons, plan_for, random_relu_model, whole_plan
from random_model import LlamaShape
from split_layer import measure, split_layers
from stub_driver import SleepingDriver, StubDriver

from hotcold.engine.device.steps import Launches
from hotcold.engine.device.store import loaded_stores
from hotcold.engine.host.machine import default_threads
from hotcold.engine.host.steps import Walk
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.kernels.cuda.device.device import Device

Type = GGMLQuantizationType
SMALL = LlamaShape(n_embd=64, n_ff=256, n_layer=32, n_head=2, n_head_kv=2, n_vocab=512, n_ctx=256)
MIDDLE = LlamaShape(n_embd=2048, n_ff=5632, n_layer=4, n_head=16, n_head_kv=16, n_vocab=512, n_ctx=256)
WIDE = LlamaShape(n_embd=4096, n_ff=11008, n_layer=2, n_head=32, n_head_kv=32, n_vocab=512, n_ctx=256)
GOAL_MICROSECONDS = 8
GOAL_OF_MEMCPY = 0.7


def python_time(kind: Type, folder: Path, n_tokens: int = 200) -> float:
    """Microseconds of Python per split layer and token, in graphs; printed beside those of single launches."""
    how, times = Wanted("predictor", SMALL.n_ctx, 8), (list[float](), list[float]())
    with random_relu_model(folder, SMALL, kind, 32) as (file, model), ExitStack() as stack:
        executors = []
        for has_graphs in (False, True):
            device = stack.enter_context(Device(StubDriver()))
            device.has_graphs = has_graphs
            plan = plan_for(model, device, how, half_the_neurons(whole_plan(model, device, how)))
            stores = loaded_stores((device,), plan, file)
            executors.append(stack.enter_context(Executor(plan, file, 1, stores)))
        logits = np.empty((1, model.n_vocab), np.float32)
        for i in range(n_tokens):
            for executor, of in zip(executors, times, strict=True):
                started = time.perf_counter()
                executor.run(np.array([5], np.int32), i, logits)
                of.append(time.perf_counter() - started)
        layers, steps = split_layers(executors[0]), executors[0].run_steps.of(1)
        launches = sum(len(step.launches) for step in steps if isinstance(step, Launches))
        walks = sum(isinstance(step, Walk) for step in steps)
    alone, together = (float(np.median(of)) / layers * 1e6 for of in times)
    per_layer = f"{launches / layers:.1f} | {walks / layers:.1f}"
    print(f"| {kind.name} | {per_layer} | {alone:.1f} | {together:.1f} |", flush=True)
    return together


def python_table(folder: Path) -> bool:
    """Whether the goal is met."""
    print("| type | launches a layer | walks a layer | Python, us a layer and token | in graphs |")
    print("| --- | ---: | ---: | ---: | ---: |")
    return max([python_time(kind, folder) for kind in (Type.F16, Type.Q4_0)]) < GOAL_MICROSECONDS


def threads_table(folder: Path, n_rounds: int = 12, n_tokens: int = 20) -> None:
    """Microseconds per split layer and token, in graphs, by threads of the team."""
    how = Wanted("predictor", SMALL.n_ctx, 8)
    times: dict[int, list[float]] = {n: [] for n in (1, 2, 4, 8, 16)}
    with (
        random_relu_model(folder, SMALL, Type.F16, 32) as (file, model),
        Device(StubDriver()) as device,
        ExitStack() as stack,
    ):
        plan = plan_for(model, device, how, half_the_neurons(whole_plan(model, device, how)))
        logits = np.empty((1, model.n_vocab), np.float32)
        executors = {
            n: stack.enter_context(Executor(plan, file, n, loaded_stores((device,), plan, file)))
            for n in times
        }
        for _ in range(n_rounds):
            for n, executor in executors.items():
                for i in range(n_tokens):
                    started = time.perf_counter()
                    executor.run(np.array([5], np.int32), i, logits)
                    times[n].append((time.perf_counter() - started) / split_layers(executor) * 1e6)
    print("| threads | least, us a layer and token | median |")
    print("| ---: | ---: | ---: |")
    for n, of in times.items():
        print(f"| {n} | {min(of):.1f} | {np.median(of):.1f} |", flush=True)


def together_table(folder: Path, seconds: float, n_threads: int) -> bool:
    """Both sides alone and at once; whether the whole takes less than the sum."""
    print("| type | device alone, ms | cold rows alone, ms | sum, ms | split layer, ms | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    shorter = True
    how = Wanted("predictor", MIDDLE.n_ctx, 8)
    for kind in (Type.F16, Type.Q4_0):
        driver = SleepingDriver()
        with random_relu_model(folder, MIDDLE, kind, 256) as (file, model), Device(driver) as device:
            model = everyone_listed(model)
            budget = half_the_neurons(whole_plan(model, device, how))
            plan = plan_for(model, device, how, budget)
            with Executor(plan, file, n_threads, loaded_stores((device,), plan, file)) as executor:
                driver.seconds["sparse_gated_ffn"] = measure(executor, seconds / 4).host
                times = measure(executor, seconds)
        both = times.device + times.host
        figures = [1e3 * value for value in (times.device, times.host, both, times.together)]
        cells = " | ".join(f"{value:.2f}" for value in (*figures, times.ratio))
        print(f"| {kind.name} | {cells} |", flush=True)
        shorter &= times.ratio < 1
    return shorter


def loading_table(folder: Path, n_threads: int) -> bool:
    """GB/s of loading all rows, and half of each layer's neurons, beside a copy; whether the goal is met."""
    print("| type | rows | loading, GB/s | memcpy, GB/s | share |")
    print("| --- | --- | ---: | ---: | ---: |")
    shares = []
    how = Wanted("predictor", WIDE.n_ctx, 8)
    for kind in (Type.F16, Type.Q8_0, Type.Q4_0):
        with random_relu_model(folder, WIDE, kind, 1024) as (file, model):
            source = np.array(file.parts[0].all_data())
            for text in ("all", "half of the neurons"):
                rates = []
                for _ in range(4):
                    with Device(StubDriver()) as device:
                        whole = whole_plan(model, device, how)
                        n_bytes = whole.totals.used if text == "all" else half_the_neurons(whole)
                        plan, loaded = plan_for(model, device, how, n_bytes), LoadRate()
                        Executor(
                            plan, file, 1, loaded_stores((device,), plan, file, loaded, n_threads)
                        ).close()
                        rates.append(loaded.gb_a_second)
                copied = memcpy_rate(source)
                shares.append(max(rates) / copied)
                figures = f"{max(rates):.2f} | {copied:.2f} | {shares[-1]:.2f}"
                print(f"| {kind.name} | {text} | {figures} |", flush=True)
    return min(shares) >= GOAL_OF_MEMCPY


def memcpy_rate(source: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> float:
    """GB/s of a plain copy, best of four."""
    target, times = np.empty_like(source), []
    for _ in range(4):
        started = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - started)
    return float(source.nbytes / min(times) / 1e9)


def main() -> None:
    """Print the tables asked for; exit 1 where a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", default=["python", "threads", "together", "loading"])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--threads", type=int, default=default_threads())
    arguments, met = parser.parse_args(), True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "python" in arguments.tables:
            met &= python_table(folder)
        if "threads" in arguments.tables:
            threads_table(folder)
        if "together" in arguments.tables:
            met &= together_table(folder, arguments.seconds, arguments.threads)
        if "loading" in arguments.tables:
            met &= loading_table(folder, arguments.threads)
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
