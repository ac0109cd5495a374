"""What a plan says, beside what a run of it did: `hotcold offload-dump --run`."""

import time
from typing import Any

import numpy as np

from hotcold.engine.device.store import loaded_store
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.traffic import token_traffic
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.side_times import SideTimes
from hotcold.engine.run.use import DeviceMeter
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.cuda.device.calls import Counters
from hotcold.kernels.cuda.device.device import Device

PROMPT, DECODED = 8, 16  # tokens

Row = dict[str, Any]


def run(plan: Plan, file: GGUFFile, n_threads: int, device: Device | None) -> list[Row]:
    """Load, run a few tokens, and compare: a row a figure, with `name`, `unit`, `planned`, `measured`.

    A figure that the plan does not have, or nobody measures, is None. The tokens are the likeliest after
    the file's first tokens; averages are over those that ran alone.

    Raises:
        DoesNotFitError, DeviceError: see `loaded_store` and `Executor`.
    """
    started = time.perf_counter()
    store = loaded_store(device, plan, file, n_threads=n_threads)
    with Executor(plan, file, n_threads, store) as executor:
        load_seconds = time.perf_counter() - started
        meter, logits = DeviceMeter(executor), np.empty((1, plan.model.n_vocab), np.float32)
        n_prompt = min(PROMPT, plan.n_batch, plan.n_ctx - 1)
        executor.run(np.arange(n_prompt, dtype=np.int32) % plan.model.n_vocab, 0, logits)
        before, counted, times = meter.read(), _copies(device), SideTimes()
        executor.taking = times
        n_tokens = min(DECODED, plan.n_ctx - n_prompt)
        started = time.perf_counter()
        for i in range(n_tokens):
            token = np.array([logits.argmax()], np.int32)
            executor.run(token, n_prompt + i, logits)
        seconds = (time.perf_counter() - started) / n_tokens
        counted = [(now - then) / n_tokens for now, then in zip(_copies(device), counted, strict=True)]
        use = meter.read().since(before)
        load = store.loaded_bytes / load_seconds if store is not None else 0.0
    return _rows(plan, use.numbers(), (counted, times.walks / n_tokens), n_tokens, seconds, load)


def _copies(device: Device | None) -> list[float]:
    """Copies and bytes up, copies and bytes down, waits of the host and their seconds."""
    c = device.counters if device is not None else Counters()
    return [c.h2d_calls, c.h2d_bytes, c.d2h_calls, c.d2h_bytes, c.host_waits, c.waiting]


def _rows(
    plan: Plan,
    use: dict[str, Any],
    host: tuple[list[float], float],
    n_tokens: int,
    seconds: float,
    load: float,
) -> list[Row]:
    traffic = token_traffic(plan)
    (up, up_bytes, down, down_bytes, waits, waiting), walks = host
    positions = 4 * bool(plan.totals.used)
    served = f"{'chosen' if plan.model.experts else 'active'} {plan.model.unit}s served there"
    figures: list[tuple[str, str, float | None, float | None]] = [
        ("device memory", "bytes", plan.totals.used, use["vram_used"]),
        ("copied up, a token", "bytes", traffic.to_device + positions, up_bytes),
        ("copied down, a token", "bytes", traffic.to_host, down_bytes),
        ("copies, a token", "", traffic.copies + bool(positions), up + down),
        ("waits of the host, a token", "", None, waits),
        ("launches, a token", "", None, use["kernel_launches"] / n_tokens),
        ("of graphs, a token", "", None, use["graph_launches"] / n_tokens),
        (f"{plan.model.unit}s on the device", "share", plan.hot_share, use["ffn_device_share"]),
        (served, "share", plan.coverage, use["active_device_share"]),
        ("loading to the device", "bytes/s", None, load or None),
        ("a token", "s", None, seconds),
        ("  the CPU's part", "s", None, walks),
        ("  waiting for the device", "s", None, waiting),
        ("  enqueueing, and the rest", "s", None, seconds - walks - waiting),
    ]
    return [
        {"name": name, "unit": unit, "planned": planned, "measured": measured}
        for name, unit, planned, measured in figures
    ]
