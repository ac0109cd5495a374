"""What is sent to the device for a prompt, in which pieces, and what that takes of a budget.

A prompt's batch reads each weight once for all of its tokens, so from some size on it takes less time to send what the
device lacks than to let the CPU multiply it. Each layer is two pieces: what comes before its FFN, and its FFN; a large
mixture's is cut into several, each of some experts. A piece goes into one of two staging buffers while the device works
on the other one.

What has no kernel, the head, and attention over a KV cache on the CPU stay there.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from math import ceil

import numpy as np

from hotcold.engine.graph.arena import aligned
from hotcold.engine.graph.graph import ALL, COLD, HOT, Graph, Node, is_cold, layer_of, weights_of
from hotcold.engine.graph.ops import FFN_OPS
from hotcold.engine.graph.passes import run_passes
from hotcold.engine.graph.placed import CPU, GPU, SPLIT, PlacedNode, Sides
from hotcold.engine.model.model import Layer, Model, Weight
from hotcold.engine.plan.budget import mib
from hotcold.engine.plan.division import Share
from hotcold.engine.plan.footprint import INDEX_BYTES, dense_part, ffn_part
from hotcold.engine.plan.neurons import index_of
from hotcold.engine.plan.plan import GraphPlan, Ids, Plan, SentPiece, SentRows, Streaming, sides_of
from hotcold.engine.plan.reserve import Reserve, layer_threshold_bytes, smallest_useful
from hotcold.engine.plan.traffic import ffn_traffic
from hotcold.engine.plan.wanted import Wanted
from hotcold.kernels.weight_table import device_row_bytes

QUARTER = 4  # of a budget both buffers take no more than one, unless streaming was asked for
LEAST_TOKENS = 2
PART_BYTES = 256 << 20  # a mixture's layer with more goes in parts of no more; the bus takes 10 ms for it
Key = tuple[str, int]


def obstacle(model: Model, how: Wanted, reserve: Reserve, share: Share) -> str:
    """Of a card, why no prompt is streamed although that may be wanted; "" where nothing is known against it."""
    least = LEAST_TOKENS if how.stream_batch is None else how.stream_batch
    if reserve.n_batch < least:
        return f"no batch has the {least} tokens from which on rows are sent: n_batch is {reserve.n_batch}"
    taken, budget = 2 * largest_piece(model, how.sparsity, share.layers), share.budget
    short = smallest_useful(model, how.sparsity, reserve, share.layers) + taken - budget.n_bytes
    if short > 0:
        return f"two staging buffers of {mib(taken // 2)} do not fit: {mib(short)} short; prompts are not streamed"
    if how.stream_batch is None and QUARTER * taken > budget.n_bytes:
        bound = "are more than a quarter of the budget: prompts are not streamed"
        return f"two staging buffers of {mib(taken // 2)} {bound}"
    return ""


def largest_piece(model: Model, sparsity: str, layers: range | None = None) -> int:
    """Bytes of a staging buffer if nothing of a layer is on the device: an upper bound.

    Args:
        layers: of a card; None for all.
    """
    found = 0
    for layer in (model.layers[i] for i in layers or range(model.n_layer)):
        dense, ffn = dense_part(layer, sparsity), ffn_part(layer, sparsity)
        biases = sum(_bytes(w, w.n_rows) for role, w in dense.weights if role in ("bias", "norm"))
        of_ffn = [w for _, w in ffn.weights] if ffn.obstacle is None else []
        units = ceil(layer.n_units / _n_parts(layer, sparsity))
        largest = sum(_bytes(w, units * w.n_rows // layer.n_units) for w in of_ffn)
        sizes = [sum(_bytes(w, w.n_rows) for _, w in dense.weights), biases + largest]
        numbers = INDEX_BYTES * model.n_units + 64 + layer_threshold_bytes(layer, sparsity)
        found = max(found, *(aligned(size + numbers) for size in sizes))
    return found


def _bytes(weight: Weight, n_rows: int) -> int:
    return aligned(n_rows * device_row_bytes(weight.type, weight.ne[0]))


def _n_parts(layer: Layer, sparsity: str) -> int:
    """How many parts an FFN goes in if nothing of it is on the device."""
    if layer.ffn_gate_inp is None:
        return 1
    return max(1, min(layer.n_units, ceil(ffn_part(layer, sparsity).n_bytes / PART_BYTES)))


def _parts(plan: Plan, layer: int) -> tuple[str, ...]:
    """Which rows the nodes are about that a layer's FFN is divided into where it is sent."""
    split, most = plan.layers[layer], _n_parts(plan.model.layers[layer], plan.sparsity)
    cold = (COLD, *(f"{COLD}{i}" for i in range(1, most)))[: split.n_ff - split.n_hot]
    return (*((HOT,) if split.n_hot else ()), *cold)


def buffers_at_most(
    plan: Plan, how: Wanted, reserves: Sequence[Reserve], shares: Sequence[Share]
) -> tuple[list[int], str]:
    """Bytes of each card's staging buffers if nothing of a layer is there, and why some cards have none, in words.

    Args:
        plan: without any. 0 for a card that lacks nothing, which needs no reason.
    """
    most, reasons = [], list[str]()
    for share, reserve in zip(shares, reserves, strict=True):
        lacks = lacks_something(plan, share.layers)
        reason = obstacle(plan.model, how, reserve, share) if lacks else ""
        most.append(largest_piece(plan.model, how.sparsity, share.layers) if lacks and not reason else 0)
        here = f"layers {share.layers.start} to {share.layers.stop - 1}: " if len(shares) > 1 else ""
        reasons += [here + reason] if reason else []
    return most, "; ".join(reasons)


def streaming_of(
    plan: Plan, graph: Graph, asked: int | None, layers: Collection[int] | None = None
) -> Streaming | None:
    """How batches run for which rows are sent; None if everything that could be is there already.

    Args:
        graph: of a batch.
        layers: of cards that have staging buffers; None for all.
    """
    layers = range(plan.model.n_layer) if layers is None else layers
    if not lacks_something(plan, layers):
        return None
    wanted, sides = _sendable(plan, layers), sides_of(plan.weights, plan.caches)
    parts = {i: _parts(plan, i) for i in layers}
    ffns = (ffn_part(plan.model.layers[i], plan.sparsity) for i in layers if len(parts[i]) > 1)
    divided = {weight.name: SPLIT for each in ffns if each.obstacle is None for _, weight in each.weights}
    every = {**{name: GPU for name in wanted}, **sides.weights, **divided}
    placed, arenas = run_passes(graph, Sides(every, sides.kv, sides.head, sides.cards), parts)
    pieces = tuple(_pieces(plan, placed.nodes, wanted))
    if not pieces:
        return None
    stays = (*without_kernel(plan), *_cached_on_the_cpu(plan))
    return Streaming(GraphPlan(graph, placed, arenas), pieces, asked, _work(plan, pieces), stays)


def without_kernel(plan: Plan) -> tuple[str, ...]:
    """What no batch has sent, since the device has no kernels for it, and why, in words."""
    found = Counter[tuple[str, str]]()
    for layer in plan.model.layers:
        parts = ("dense part", dense_part(layer, plan.sparsity)), ("FFN", ffn_part(layer, plan.sparsity))
        found.update((what, part.obstacle.reason) for what, part in parts if part.obstacle is not None)
    return tuple(f"{what} of {_layers(n)} ({reason})" for (what, reason), n in found.items())


def _cached_on_the_cpu(plan: Plan) -> tuple[str, ...]:
    n = sum(cache.side == CPU for cache in plan.caches)
    return (f"attention of {_layers(n)} (KV cache on the CPU)",) if n else ()


def _layers(n: int) -> str:
    return f"{n} layer{'s' * (n > 1)}"


def lacks_something(plan: Plan, layers: Collection[int]) -> bool:
    """Whether the device lacks rows of some layers that it could multiply."""
    sides = sides_of(plan.weights, plan.caches)
    return any(sides.weights.get(name) != GPU for name in _sendable(plan, layers))


def _sendable(plan: Plan, layers: Collection[int]) -> set[str]:
    """Names of the tensors of some layers that the device could hold."""
    names = set[str]()
    for layer in (plan.model.layers[i] for i in layers):
        for part in (dense_part(layer, plan.sparsity), ffn_part(layer, plan.sparsity)):
            if part.obstacle is None:
                names |= {weight.name for _, weight in part.weights}
    return names


def _pieces(plan: Plan, nodes: tuple[PlacedNode, ...], wanted: set[str]) -> Iterator[SentPiece]:
    """Nodes of the device that lack something, in runs: a layer's up to its FFN, from it, and from later parts."""
    there = {_key(entry.weight) for entry in plan.weights if entry.device_rows and entry.role != "head"}
    lacking = [
        (p.node, sent) for p in nodes if p.side != CPU and (sent := _sent(plan, p.node, wanted, there))
    ]
    ops = FFN_OPS if plan.model.experts is None else ("expert_ffn",)
    ffns = {layer_of(p.node): i for i, p in reversed(list(enumerate(nodes))) if p.node.op in ops}
    order = {p.node.name: i for i, p in enumerate(nodes)}

    runs, place = list[list[tuple[Node, tuple[SentRows, ...]]]](), None
    for node, each in lacking:
        here = layer_of(node), order[node.name] >= ffns.get(layer_of(node), len(nodes))
        if here != place or node.rows not in (ALL, HOT, COLD):
            runs.append([])
        runs[-1].append((node, each))
        place = here
    for found in runs:
        sent = tuple(each for _, some in found for each in some)
        ffn = next((node for node, _ in found if node.op in ops), None)
        units = None if ffn is None else _units(plan, ffn)
        index = None if units is None else index_of(plan.model, units)
        n_least = 0 if ffn is None or units is None else _n_thresholds(plan, ffn, units)
        rows = ALL if ffn is None else ffn.rows
        yield SentPiece(layer_of(found[0][0]), sent, units, index, n_least, rows)


def _sent(plan: Plan, node: Node, wanted: set[str], there: set[Key]) -> tuple[SentRows, ...]:
    """What a node lacks."""
    found = []
    for weight in weights_of(node):
        if weight.name not in wanted:
            continue
        if is_cold(node.rows) and _is_matrix(node, weight):
            units = _units(plan, node)
            n_units = 0 if units is None else int(units.size)
            found.append(
                _rows(weight, node.rows, weight.n_rows // plan.layers[layer_of(node)].n_ff * n_units)
            )
        elif _key(weight) not in there:
            found.append(_rows(weight, node.rows if is_cold(node.rows) else ALL, weight.n_rows))
    return tuple(found)


def _is_matrix(node: Node, weight: Weight) -> bool:
    return any(node.find_weight(role) is weight for role in ("gate", "up", "down"))


def _rows(weight: Weight, rows: str, n_rows: int) -> SentRows:
    return SentRows(weight, rows, n_rows, _bytes(weight, n_rows))


def _units(plan: Plan, node: Node) -> Ids | None:
    """Which neurons or experts an FFN's node lacks; None where down has a row an output."""
    if node.op in FFN_OPS and not node.attributes.get("transposed", True):
        return None
    split = plan.layers[layer_of(node)]
    lacking = np.ones(split.n_ff, bool)
    lacking[split.hot] = False
    units = np.flatnonzero(lacking).astype(np.int32)
    if not is_cold(node.rows):
        return units
    cold = [rows for rows in _parts(plan, layer_of(node)) if is_cold(rows)]
    part: Ids = np.array_split(units, len(cold))[cold.index(node.rows)]
    return part


def _n_thresholds(plan: Plan, node: Node, units: Ids) -> int:
    """How many the lacking part of an FFN has: one of each neuron, and all of each expert."""
    weight, n_ff = node.find_weight("threshold"), plan.layers[layer_of(node)].n_ff
    return 0 if weight is None else weight.n_rows * weight.ne[0] // n_ff * int(units.size)


def _key(weight: Weight) -> Key:
    return weight.name, weight.first_row


def _work(plan: Plan, pieces: tuple[SentPiece, ...]) -> float:
    """Products that the CPU does for a token in place of what is sent: of FFNs as many as their counts let expect."""
    found = 0.0
    for piece in pieces:
        numbers = sum(float(each.n_rows) * each.weight.ne[0] for each in piece.sent)
        if piece.units is not None:
            split, layer = plan.layers[piece.layer], plan.model.layers[piece.layer]
            of_unit = sum(weight.n_bytes for weight in layer.ffn_matrices) / layer.n_units
            all_bytes = of_unit * (split.n_ff - split.n_hot)
            numbers *= min(1.0, ffn_traffic(split, plan)[0] / all_bytes) if all_bytes else 1.0
        found += numbers
    return found


def with_staging(reserve: Reserve, buffer_bytes: int) -> Reserve:
    """The reserve with two buffers of so many bytes."""
    return replace(reserve, staging=2 * buffer_bytes)
