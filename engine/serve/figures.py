"""What the page shows of a running engine: memory by kind, tokens so far, neurons that fired, and a look at a run."""

import time
from dataclasses import asdict
from typing import Any

from hotcold.engine.generation.generation import Engine
from hotcold.engine.plan.plan import FfnSplit, Plan, Totals
from hotcold.engine.run.look import PARTS, Look
from hotcold.engine.serve.worker import Worker

ON_DEVICE = {
    "weights": "dense weights",
    "predictors": "predictors",
    "kv_cache": "KV cache",
    "hot_rows": "hot rows",
    "index": "index",
    "thresholds": "thresholds",
    "arena": "intermediates",
    "workspace": "work areas",
    "staging": "staging buffers",
    "padding": "padding",
}


def figures(engine: Engine, worker: Worker, prompt_tokens_run: int, generated_tokens: int) -> dict[str, Any]:
    """All of it as it is at this moment; counts only grow, so that what changed says what happens.

    Neurons are counted where rows are on the CPU and sparse; a layer's `fired` stays 0 elsewhere. `look` is of the
    first step after the last question, see `Looks`.
    """
    executor = engine.executor
    plan, counts = executor.plan, executor.counts.sum(axis=1)
    return {
        "time": time.time(),
        "device": ",".join(device.name for device in executor.devices) or "cpu",
        "budget": plan.totals.budget,
        "memory": memory(plan),
        "cards": [
            {
                "device": device.name,
                "budget": card.totals.budget,
                "used": device.tally.live_bytes,
                "memory": _by_kind(card.totals),
            }
            for device, card in zip(executor.devices, plan.cards, strict=False)
        ],
        "slots": executor.n_slots,
        "running": worker.n_running,
        "waiting": worker.n_waiting,
        "tokens": executor.n_tokens,
        "prompt_tokens_run": prompt_tokens_run,
        "generated_tokens": generated_tokens,
        "layers": [
            {
                "layer": split.layer,
                "n_ff": split.n_ff,
                "hot_share": split.n_hot / split.n_ff,
                **_hot_experts(split),
                "listed": int(listed),
                "fired": int(fired),
            }
            for split, (listed, fired) in zip(plan.layers, counts, strict=True)
        ],
        "n_expert": plan.model.experts.n_expert if plan.model.experts else 0,
        "look": None if worker.looks.last is None else _told(worker.looks.number, worker.looks.last),
    }


def _hot_experts(split: FfnSplit) -> dict[str, Any]:
    """The share of each expert that is on the device."""
    experts = split.experts
    return {} if experts is None else {"hot_experts": (experts.hot / experts.n_each).tolist()}


def _told(number: int, look: Look) -> dict[str, Any]:
    return {
        "number": number,
        "tokens": look.n_tokens,
        "tokens_before": look.n_before,
        "seconds": {part: look.seconds[part] for part in PARTS if part in look.seconds},
        "chosen": look.chosen.tolist(),
        "device_listed": look.device_listed.tolist(),
    }


def memory(plan: Plan) -> list[dict[str, Any]]:
    """Bytes by kind: of the budget where there is one, else of the CPU."""
    if plan.totals.budget:
        return _by_kind(plan.totals)
    arena = max(plan.decode.arenas["cpu"].n_bytes, plan.batch.arenas["cpu"].n_bytes)
    return [
        {"name": "weights in the file", "bytes": sum(entry.host_bytes for entry in plan.weights)},
        {"name": "KV cache", "bytes": sum(cache.n_bytes for cache in plan.caches)},
        {"name": "intermediates", "bytes": arena},
    ]


def _by_kind(totals: Totals) -> list[dict[str, Any]]:
    """Bytes of a card, or of all together."""
    found = asdict(totals)
    return [{"name": words, "bytes": int(found[name])} for name, words in ON_DEVICE.items()]
