"""The offload dump as data: a plan as one JSON object, and what is selected of it.

Tables and pages are made from this object alone, so they say what programs read. The schema is in
docs/offload-dump.md; `schema_version` changes when a field changes its meaning or goes.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from hotcold.engine.graph.arena import tensor_bytes
from hotcold.engine.graph.copies import read_in_place
from hotcold.engine.graph.graph import Tensor
from hotcold.engine.graph.offsets import placed_lifetimes
from hotcold.engine.graph.placed import GPU, PlacedGraph, PlacedNode, card_side, is_own_array, results
from hotcold.engine.model.sparsity import sparsity_of
from hotcold.engine.plan.budget import Budget
from hotcold.engine.plan.cards import card_named
from hotcold.engine.plan.estimate import estimate
from hotcold.engine.plan.estimate_prompt import PROMPT
from hotcold.engine.plan.plan import (
    USUAL_BUS,
    USUAL_PRODUCTS,
    ExpertsSplit,
    FfnSplit,
    GraphPlan,
    Plan,
    Streaming,
    Totals,
    WeightEntry,
)
from hotcold.engine.plan.traffic import token_traffic
from hotcold.errors import SettingError

SCHEMA_VERSION = 1
GRAPHS = ("decode", "batch")

Report = dict[str, Any]


def as_json(plan: Plan, model_name: str = "") -> Report:
    """The whole plan."""
    model = plan.model
    graphs = {"decode": plan.decode, "batch": plan.batch}
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "name": model_name,
            "architecture": model.architecture,
            "n_layer": model.n_layer,
            "n_embd": model.n_embd,
            "n_ff": model.n_ff,
            "n_vocab": model.n_vocab,
            "unit": model.unit,
            "experts": None if model.experts is None else asdict(model.experts),
            "bytes": sum(entry.n_bytes for entry in plan.weights),
        },
        "settings": {
            "sparsity": plan.sparsity,
            "n_ctx": plan.n_ctx,
            "n_batch": plan.n_batch,
            "kv_type": plan.kv_type,
            "n_slots": plan.n_slots,
        },
        "budget": _budget(plan),
        "weights": [_weight(entry) for entry in plan.weights],
        "kv_cache": [
            {
                "layer": c.layer,
                "positions": c.n_positions,
                "slots": plan.n_slots,
                "bytes": c.n_bytes,
                "device": card_side(c.card) if c.side == GPU else c.side,
                "why": c.why,
            }
            for c in plan.caches
        ],
        "frequencies_from": plan.frequencies_from,
        "layers": [_layer(split, plan) for split in plan.layers],
        "intermediates": {name: list(_intermediates(graph)) for name, graph in graphs.items()},
        "arenas": {name: _arenas(graph) for name, graph in graphs.items()},
        "workspace": plan.workspace,
        "streaming": None if plan.streaming is None else _streaming(plan.streaming),
        "not_streamed": plan.not_streamed,
        "traffic": _traffic(plan),
        "totals": _totals(plan),
        "notes": [*plan.notes, *_exact_layers(plan)],
    }


def _exact_layers(plan: Plan) -> tuple[str, ...]:
    """Which layers have no predictor: the file's own choice, so a line of the dump and no warning of a load."""
    exact = ", ".join(map(str, plan.model.exact_layers)) if plan.sparsity == "predictor" else ""
    return (f"layers without a predictor, which run as exact: {exact}",) if exact else ()


def card_model(plan: Plan, name: str) -> Report:
    """What a card of the table would take for the plan, by arithmetic.

    Raises:
        SettingError: a name that is not in the table.
    """
    card = card_named(name)
    found = estimate(plan, card)
    return {
        "name": name,
        "title": card.title,
        "measured": False,
        "token_seconds": found.token,
        "memory_seconds": found.memory,
        "waits_seconds": found.waits,
        "prompt_tokens": PROMPT,
        "prompt_seconds": found.prompt.seconds,
        "prompt_units": found.prompt.units,
        "prompt_host_seconds": found.prompt.host,
        "prompt_bus_seconds": found.prompt.bus,
        "launches": found.launches,
    }


def _budget(plan: Plan) -> Report:
    return {**_cap(plan.budget), "cards": [_cap(card.budget) for card in plan.cards]}


def _cap(budget: Budget) -> Report:
    facts = budget.device
    names = "name", "memory", "context_bytes", "graph_bytes"
    device = {name: getattr(facts, name) for name in names} if facts else None
    return {"text": budget.text, "bytes": budget.n_bytes, "why": budget.why, "device": device}


def _weight(entry: WeightEntry) -> Report:
    return {
        "name": entry.name,
        "tensor": entry.tensor,
        "role": entry.role,
        "layer": entry.layer,
        "type": entry.type,
        "shape": list(reversed(entry.ne)),
        "ne": list(entry.ne),
        "bytes": entry.n_bytes,
        "device": card_side(entry.card) if entry.side == GPU else entry.side,
        "card": entry.card if entry.device_rows else None,
        "rows": entry.n_rows,
        "device_rows": entry.device_rows,
        "host_bytes": entry.host_bytes,
        "device_bytes": entry.device_bytes,
        "why": entry.why,
    }


def _layer(split: FfnSplit, plan: Plan) -> Report:
    return {
        "layer": split.layer,
        "card": plan.caches[split.layer].card,
        "sparsity": sparsity_of(plan.model.layers[split.layer], plan.sparsity),
        "gpu_idx": [split.n_ff, 1, 1, 1],
        "gpu_bucket": [split.n_hot, 1, 1, 1],
        "hot_share": split.n_hot / split.n_ff,
        "coverage": split.covered / split.measured if split.measured else 0.0,
        "bytes": split.n_bytes,
        "neuron_bytes": split.neuron_bytes,
        "index_bytes": split.index_bytes,
        "threshold_bytes": split.threshold_bytes,
        "why": split.why,
        "experts": None if split.experts is None else _experts(split.experts),
    }


def _experts(split: ExpertsSplit) -> Report:
    return {
        "rows": split.n_each,
        "hot": split.hot.tolist(),
        "counted": split.counted.tolist(),
        **split.n_by_side,
    }


def _intermediates(graph: GraphPlan) -> Iterator[Report]:
    spans = placed_lifetimes(graph.placed)
    entries = {(side, e.name): e for side, arena in graph.arenas.items() for e in arena.slots}
    in_place: dict[int, list[str]] = {}
    for step, tensor in read_in_place(graph.placed):
        in_place.setdefault(step, []).append(tensor.name)
    for step, p, output, operands in _results(graph.placed):
        entry = entries.get((p.side, output.name))
        first, last = spans[output.name]
        yield {
            "step": step,
            "name": output.name,
            "layer": output.layer,
            "op": p.node.op,
            "operands": operands,
            "shape": list(output.shape),
            "type": output.dtype,
            "bytes": tensor_bytes(output),
            "device": p.side,
            "rule": p.rule,
            "first_step": first,
            "last_step": last,
            "offset": entry.offset if entry else None,
            "arena_bytes": entry.n_bytes if entry else 0,
            "reused_by": list(entry.reused_by) if entry else [],
            "crosses_bus": p.node.op == "copy",
            "reads_over_bus": in_place.get(step, []),
            "own_array": is_own_array(p),
        }


def _results(placed: PlacedGraph) -> Iterator[tuple[int, PlacedNode, Tensor, list[str]]]:
    """Step, node, result and names of its operands; each part of a copy has its own."""
    for step, p in enumerate(placed.nodes):
        operands = [operand.name for operand in p.node.inputs]
        parts = results(p.node)
        for i, output in enumerate(parts):
            yield step, p, output, operands if len(parts) == 1 else operands[i : i + 1]


def _arenas(graph: GraphPlan) -> Report:
    nodes = graph.placed.nodes
    return {
        side: {
            "bytes": arena.n_bytes,
            "peak_step": arena.peak_step,
            "peak_node": nodes[arena.peak_step].node.name if arena.slots else None,
            "peak_bytes": sum(
                e.n_bytes for e in arena.slots if e.first_step <= arena.peak_step <= e.last_step
            ),
        }
        for side, arena in graph.arenas.items()
    }


def _traffic(plan: Plan) -> Report:
    traffic = token_traffic(plan)
    return {
        "host_bytes": round(traffic.host_bytes),
        "device_bytes": round(traffic.device_bytes),
        "to_device_bytes": traffic.to_device,
        "to_host_bytes": traffic.to_host,
        "in_place_bytes": traffic.in_place,
        "copies": traffic.copies,
    }


def _streaming(streaming: Streaming) -> Report:
    return {
        "least_tokens": streaming.least,
        "asked": streaming.asked,
        "buffer_bytes": max(piece.n_bytes for piece in streaming.pieces),
        "sent_bytes": streaming.sent_bytes,
        "cpu_products": round(streaming.work),
        "stays": list(streaming.stays),
        "usual_bus_bytes": USUAL_BUS,
        "usual_cpu_products": USUAL_PRODUCTS,
        "pieces": [
            {
                "layer": piece.layer,
                "bytes": piece.n_bytes,
                "weights": {each.weight.name: each.n_rows for each in piece.sent},
            }
            for piece in streaming.pieces
        ],
    }


def _totals(plan: Plan) -> Report:
    cards = [
        {"name": card.name, "layers": [card.layers.start, card.layers.stop - 1], **_spent(card.totals)}
        for card in plan.cards
    ]
    return {
        "gpu": _spent(plan.totals),
        "cards": cards,
        "cpu": {
            "weights": sum(entry.host_bytes for entry in plan.weights),
            "kv_cache": sum(cache.n_bytes for cache in plan.caches if cache.side == "cpu"),
            "arena": max(
                graph.arenas["cpu"].n_bytes for graph in (plan.decode, plan.batch, *plan.all_graphs)
            ),
        },
        "dense_layers": plan.n_dense_layers,
        "hot_share": plan.hot_share,
        "coverage": plan.coverage,
    }


def _spent(totals: Totals) -> Report:
    """What a budget goes into."""
    return {**asdict(totals), "left_over": totals.left_over}


def select(report: Report, tensors: str | None = None, layer: int | None = None) -> Report:
    """The report with those weights, intermediates, KV caches and layers alone; sums stay the whole plan's.

    Args:
        tensors: a regular expression that is searched for in names.

    Raises:
        SettingError: an expression that does not compile or matches nothing, or a layer out of range.
    """
    n_layer = report["model"]["n_layer"]
    if layer is not None and not 0 <= layer < n_layer:
        raise SettingError("--layer", layer, f"0 to {n_layer - 1}", "such as --layer 0")
    pattern = _compiled(tensors)

    def wanted(row: Report) -> bool:
        return (layer is None or row["layer"] == layer) and (not pattern or bool(pattern.search(row["name"])))

    weights = [row for row in report["weights"] if wanted(row)]
    inner = {name: [row for row in rows if wanted(row)] for name, rows in report["intermediates"].items()}
    if pattern and not weights and not any(inner.values()):
        raise SettingError(
            "--tensors", tensors, "no weight or intermediate has such a name", "try 'ffn|attn'"
        )
    whole = {
        key: [row for row in report[key] if layer is None or row["layer"] == layer]
        for key in ("layers", "kv_cache")
    }
    return {**report, "weights": weights, "intermediates": inner, **whole}


def _compiled(tensors: str | None) -> re.Pattern[str] | None:
    if tensors is None:
        return None
    try:
        return re.compile(tensors)
    except (re.error, OverflowError, RecursionError) as error:
        raise SettingError("--tensors", tensors, f"no regular expression: {error}", "try 'ffn_.*'") from error
