"""A random model on a device: speed by budget, planned and allocated bytes, loading, split layers."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from planned import LoadRate, bytes_of_budget, plan_for, whole_plan
from sparse import with_threshold
from split_layer import Times, measure, split_layers

from hotcold.engine.device.store import loaded_stores
from hotcold.engine.model.model import Model
from hotcold.engine.plan.cards import card_like
from hotcold.engine.plan.estimate import estimate
from hotcold.engine.plan.estimate_prompt import PROMPT
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.errors import DoesNotFitError, HotcoldError
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.cuda.device.calls import Counters
from hotcold.kernels.cuda.device.device import Device

WARM_TOKENS = 4


@dataclass(frozen=True)
class Limits:
    """Of time: the deadline of all (of time.perf_counter), and seconds a figure."""

    deadline: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """One budget.

    Attributes:
        planned, allocated: bytes on the device.
        load_rate: GB/s.
        decode, prompt: tokens a second.
        modelled: tokens a second that the card's published figures promise; 0 for a card that is in no table.
        modelled_prompt: likewise for prompts in as large batches.
        launches, copies, copied: a decoded token's, and the bytes of its copies.
        n_split: layers that are split, and their times; None without any.
        error: why there are no figures.
        failed: whether that is the device's fault.
    """

    budget: str
    planned: int = 0
    allocated: int = 0
    load_rate: float = 0.0
    hot_share: float = 0.0
    decode: float = 0.0
    prompt: float = 0.0
    launches: float = 0.0
    copies: float = 0.0
    copied: float = 0.0
    n_split: int = 0
    split: Times | None = None
    modelled: float = 0.0
    modelled_prompt: float = 0.0
    error: str = ""
    failed: bool = False


def listed_model(model: Model, file: GGUFFile, share: float, n_threads: int) -> Model:
    """The model with the threshold at which predictors list about this share of the neurons."""
    ids = np.random.default_rng(0).integers(3, model.n_vocab, 2).astype(np.int32)
    return with_threshold(model, file, share, ids, n_threads)


def sweep(
    model: Model,
    file: GGUFFile,
    device: Device,
    how: Wanted,
    budgets: Sequence[str],
    n_threads: int,
    limits: Limits,
) -> Iterator[Row]:
    """A row for each budget, sharing out the time until the deadline."""
    whole = whole_plan(model, device, how)
    for i, text in enumerate(budgets):
        left = limits.deadline - time.perf_counter()
        if left <= 0:
            yield Row(text, error="left out for want of time")
            continue
        try:
            plan = plan_for(model, device, how, bytes_of_budget(text, whole))
            yield _row(text, plan, file, device, n_threads, left / (len(budgets) - i), limits.seconds)
        except HotcoldError as error:
            yield Row(text, error=str(error), failed=not isinstance(error, DoesNotFitError))


def _row(
    text: str, plan: Plan, file: GGUFFile, device: Device, n_threads: int, seconds: float, at_most: float
) -> Row:
    loaded, started = LoadRate(), time.perf_counter()
    with Executor(plan, file, n_threads, loaded_stores((device,), plan, file, loaded)) as executor:
        allocated = device.counters.live_bytes
        left = max(0.0, seconds - (time.perf_counter() - started))
        each = min(left / 4, at_most)
        decode, used = _decode(executor, device, each)
        prompt = _prompt(executor, each)
        n_split = split_layers(executor)
        split = measure(executor, each) if n_split else None
    card = card_like(device.facts.description)
    model = estimate(plan, card) if card is not None else None
    return Row(
        text,
        plan.totals.used,
        allocated,
        loaded.gb_a_second,
        plan.hot_share,
        decode,
        prompt,
        sum(used.launches.values()),
        used.h2d_calls + used.d2h_calls,
        used.h2d_bytes + used.d2h_bytes,
        n_split,
        split,
        modelled=1 / model.token if model is not None else 0.0,
        modelled_prompt=PROMPT / model.prompt.seconds if model is not None else 0.0,
    )


def _decode(executor: Executor, device: Device, seconds: float) -> tuple[float, Counters]:
    """Tokens a second, each with its logits; and what the device did for the last of them."""
    logits = np.empty((1, executor.model.n_vocab), np.float32)
    times: list[float] = []
    end, i, before = time.perf_counter() + seconds, 0, device.counters
    while i <= WARM_TOKENS or (time.perf_counter() < end and i < 10000):
        before = dataclasses.replace(device.counters, launches=device.counters.launches.copy())
        started = time.perf_counter()
        executor.run(np.array([3 + i % 200], np.int32), i % executor.n_ctx, logits)
        times.append(time.perf_counter() - started)
        i += 1
    return 1 / float(np.median(times[WARM_TOKENS:])), _since(device.counters, before)


def _since(now: Counters, before: Counters) -> Counters:
    copies = {
        name: getattr(now, name) - getattr(before, name)
        for name in ("h2d_calls", "h2d_bytes", "d2h_calls", "d2h_bytes")
    }
    return Counters(launches=now.launches - before.launches, **copies)


def _prompt(executor: Executor, seconds: float) -> float:
    """Tokens a second of whole batches."""
    n, logits = executor.n_batch, np.empty((1, executor.model.n_vocab), np.float32)
    ids = np.arange(3, 3 + n, dtype=np.int32) % executor.model.n_vocab
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        started = time.perf_counter()
        executor.run(ids, 0, logits)
        times.append(time.perf_counter() - started)
    return n / min(times)
