"""From a model, its statistics and a budget to a plan. Pure: no files, no devices, no clocks.

Order: the dense parts of whole layers (attention, norms, and the predictor where the mode uses one),
each layer's KV cache, the head; only when all of these fit, neurons by firings served per byte,
each placed whole. Within each of these the first that does not fit ends the placing of all that comes
later. Arena, workspace and the index of all layers are taken off the budget first, as large as they
are when everything is on the device, so a larger budget never holds fewer neurons, but where staging buffers begin to
take their part of it, or the caches of several slots: all of a card's are there, or none, and then the rest goes on
without them.

With several cards each has its own layers, and spends its own budget on them in this order (`division.py`).

What the device has no kernel for stays on the CPU and does not stop what comes later.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.passes import run_passes
from hotcold.engine.graph.placed import GPU
from hotcold.engine.model.model import Model
from hotcold.engine.plan.budget import Budget
from hotcold.engine.plan.caches import caches_of, obstacle_to_slots
from hotcold.engine.plan.division import Share, divide
from hotcold.engine.plan.entries import entry, part_entries
from hotcold.engine.plan.footprint import (
    Obstacle,
    dense_part,
    head_part,
)
from hotcold.engine.plan.neurons import (
    check_layers,
    counts_of,
    ffn_entries,
    ffns,
    given_neurons,
    hot_neurons,
    split,
)
from hotcold.engine.plan.plan import (
    CacheEntry,
    CardPlan,
    FfnSplit,
    GraphPlan,
    Ids,
    Plan,
    Totals,
    WeightEntry,
    sides_of,
)
from hotcold.engine.plan.reserve import Reserve, fitting_reserves, nothing_reserved
from hotcold.engine.plan.spending import Left
from hotcold.engine.plan.streaming import (
    buffers_at_most,
    lacks_something,
    streaming_of,
    with_staging,
    without_kernel,
)
from hotcold.engine.plan.wanted import Wanted
from hotcold.errors import DoesNotFitError
from hotcold.gguf_io.firing_counts import Counts

NO_ROOM_BESIDE = "staging buffers would leave no room for the head, nor for neurons"
NO_BUDGET = "the budget is 0: everything stays on the CPU"
UNIFORM = "uniform: no activation counts were found"
WHERE_COUNTS_GO = "put them into activation/ beside the model, or give offload-dump --activation DIR"


def plan(
    model: Model,
    how: Wanted,
    budget: Budget,
    frequencies: Counts | None = None,
    *,
    frequencies_from: str = "",
    hot: Sequence[Ids] | None = None,
) -> Plan:
    """Place a model.

    Args:
        how: its n_batch is lowered only if not one layer fits otherwise.
        budget: of one card, or of several, whose layers are divided by their budgets.
        frequencies: counts of each layer's neurons, [n_ff] each; None makes all neurons alike.
        frequencies_from: where the counts are from, in words.
        hot: the neurons to place, from an index file, in place of the ranking; () for none.

    Raises:
        DoesNotFitError: a budget above 0 into which not even one layer's dense part fits; the text has
            the sum that is needed. Or more hot neurons than there is room for.
        SettingError: counts, or hot neurons, that are not the model's.
    """
    check_layers(model, hot)
    shares = divide(model, how, budget)
    asked = _Asked(
        model,
        how,
        budget,
        shares,
        counts_of(model, frequencies),
        frequencies_from or ("counts" if frequencies else UNIFORM),
        hot,
    )
    reserves = _reserves(asked)
    made = _settled(asked, reserves)
    if how.stream_batch == 0 or not budget.n_bytes:
        return made
    if not lacks_something(made, range(model.n_layer)):
        return _not_streamed(made, how, "; ".join(f"no kernel: {each}" for each in without_kernel(made)))
    most, reason = buffers_at_most(made, how, reserves, shares)
    streamed = _streamed(asked, reserves, most) if any(most) else None
    if streamed is None or (how.stream_batch is None and made.head_side != streamed.head_side):
        if not reason:
            reason = f"{NO_ROOM_BESIDE}: prompts are not streamed"
        elif any(most):
            reason = f"{reason}; on other cards {NO_ROOM_BESIDE}"
        return _not_streamed(made, how, reason)
    return _not_streamed(streamed, how, reason)


def _not_streamed(made: Plan, how: Wanted, reason: str) -> Plan:
    """The plan with why nothing, or not all, is streamed, which is told to who asked for it; "" without need."""
    said = () if how.stream_batch is None or not reason else (reason,)
    return replace(made, not_streamed=reason, notes=(*made.notes, *said))


@dataclass(frozen=True)
class _Asked:
    """What a plan is made for: see `plan`."""

    model: Model
    how: Wanted
    budget: Budget
    shares: tuple[Share, ...]
    counts: list[NDArray[np.generic]]
    origin: str
    hot: Sequence[Ids] | None


def _settled(asked: _Asked, reserves: tuple[Reserve, ...]) -> Plan:
    """The plan with these reserves, or with larger arenas where it needs them."""
    while True:
        made = _placed(asked, reserves)
        if any(reserve.staging for reserve in reserves):
            both = zip(asked.shares, reserves, strict=True)
            layers = [i for share, reserve in both if reserve.staging for i in share.layers]
            batch, least = reserves[0].graphs[1], asked.how.stream_batch
            made = replace(made, streaming=streaming_of(made, batch, least, layers))
        graphs = made.decode, made.batch, *made.all_graphs
        arenas = [max(graph.arenas[card.side].n_bytes for graph in graphs) for card in made.cards]
        if all(arena <= reserve.arena for arena, reserve in zip(arenas, reserves, strict=True)):
            return made
        reserves = tuple(
            _with_arena(reserve, max(arena, reserve.arena), share.budget)
            for reserve, arena, share in zip(reserves, arenas, asked.shares, strict=True)
        )


def _streamed(asked: _Asked, reserves: tuple[Reserve, ...], most: Sequence[int]) -> Plan | None:
    """The plan with two staging buffers a card: first as large as they can ever be, then as it turns out.

    Smaller buffers leave room for more neurons, and then pieces are no larger. None if nothing is to be sent.

    Args:
        most: bytes of a buffer of each card; 0 for one that lacks nothing.
    """
    made = _settled(asked, tuple(map(with_staging, reserves, most)))
    needed = _buffers(made)
    if made.streaming is not None and needed != list(most):
        reserves = tuple(
            replace(reserve, arena=card.totals.arena)
            for reserve, card in zip(reserves, made.cards, strict=True)
        )
        made = _settled(asked, tuple(map(with_staging, reserves, needed)))
    fits = all(2 * n <= card.totals.staging for n, card in zip(_buffers(made), made.cards, strict=True))
    return made if made.streaming is not None and fits else None


def _buffers(made: Plan) -> list[int]:
    """Bytes of each card's staging buffers."""
    streaming = made.streaming
    return [0 if streaming is None else streaming.buffer_bytes(card.layers) for card in made.cards]


@dataclass(frozen=True)
class _Placed:
    """What of a card's layers is where, and what its budget is spent on.

    Attributes:
        without_caches: why it has none of several slots' caches; None where it has, or for one slot.
    """

    card: CardPlan
    dense: list[WeightEntry]
    caches: list[CacheEntry]
    head: list[WeightEntry]
    ffns: list[WeightEntry]
    layers: list[FfnSplit]
    without_caches: Obstacle | None


def _placed(asked: _Asked, reserves: tuple[Reserve, ...]) -> Plan:
    """The plan with these reserves."""
    model, how, n_batch = asked.model, asked.how, reserves[0].n_batch
    found = [_of_card(asked, share, each) for share, each in zip(asked.shares, reserves, strict=True)]
    caches = tuple(cache for part in found for cache in part.caches)
    layers = tuple(layer for part in found for layer in part.layers)
    parts = [[e for part in found for e in getattr(part, kind)] for kind in ("dense", "head", "ffns")]
    weights = (*_mapped(model), *(entry for part in parts for entry in part))
    graphs = _graphs(reserves[0], weights, caches)
    notes: list[str] = []
    if n_batch < how.n_batch:
        notes.append(f"n_batch lowered from {how.n_batch} to {n_batch}: not one layer fits otherwise")
    for part in found:
        if part.without_caches is not None:
            less = "with attention they stay on the CPU: take fewer slots, or a smaller n_ctx"
            notes.append(f"{part.without_caches.reason}; {less}")
    if asked.origin == UNIFORM and budget_is_spent(layers):
        notes.append(f"{UNIFORM}; {WHERE_COUNTS_GO}")
    return Plan(
        model=model,
        sparsity=how.sparsity,
        n_ctx=how.n_ctx,
        n_batch=n_batch,
        kv_type=how.kv_type,
        budget=asked.budget,
        frequencies_from=asked.origin,
        weights=weights,
        caches=caches,
        layers=layers,
        peak_count=max(float(each.max()) for each in asked.counts),
        cards=tuple(part.card for part in found),
        decode=graphs[0],
        batch=graphs[1],
        notes=tuple(notes),
        n_slots=how.n_slots,
    )


def _of_card(asked: _Asked, share: Share, reserve: Reserve) -> _Placed:
    """Spend a card's budget on its layers."""
    model, how, here = asked.model, asked.how, slice(share.layers.start, share.layers.stop)
    sparsity, left = how.sparsity, _left(share.budget, reserve)
    dense, left = _dense(model, sparsity, share.layers, left)
    without_caches = obstacle_to_slots(model, how, share, reserve.n_batch, left)
    caches, left = caches_of(model, how, share, reserve.n_batch, left, without_caches)
    head, left = _head(model, left) if share.has_head else ([], left)
    if reserve.n_batch < how.n_batch:
        left = left.end(f"n_batch was lowered to {reserve.n_batch}: no neurons are placed")
    found, left = ffns(model, sparsity, share.layers, left)
    chosen = (
        hot_neurons(found, asked.counts[here], left)
        if asked.hot is None
        else given_neurons(found, asked.hot[here], left)
    )
    layers = [
        split(model, sparsity, i, ffn, ids, chosen.why, asked.counts[i])
        for i, ffn, ids in zip(share.layers, found, chosen.ids, strict=True)
    ]
    if not share.budget.n_bytes:
        layers = [replace(layer, index_bytes=0, threshold_bytes=0) for layer in layers]
    of_ffns = [e for ffn, layer in zip(found, layers, strict=True) for e in ffn_entries(model, ffn, layer)]
    dense, head, of_ffns = ([replace(e, card=share.number) for e in part] for part in (dense, head, of_ffns))
    totals = _totals(share.budget, reserve, [*dense, *head, *of_ffns], caches, layers)
    card = CardPlan(share.number, share.layers, share.budget, reserve.workspace, totals)
    return _Placed(card, dense, caches, head, of_ffns, layers, without_caches)


def _reserves(asked: _Asked) -> tuple[Reserve, ...]:
    """What is taken off each card's budget first."""
    model, how = asked.model, asked.how
    if not asked.budget.n_bytes:
        return (nothing_reserved(model, how.sparsity, how.n_batch),)
    return fitting_reserves(model, asked.shares, how.sparsity, how.n_ctx, how.n_batch, how.n_slots)


def _with_arena(reserve: Reserve, arena: int, budget: Budget) -> Reserve:
    """The reserve for layers on either side that leave other gaps in the arena than was reckoned with."""
    larger = replace(reserve, arena=arena)
    if larger.n_bytes > budget.n_bytes:
        bound = f"arena, work areas and index take {larger.n_bytes}"
        raise DoesNotFitError("vram_budget", f"{budget.n_bytes} bytes", bound, "raise it, or lower n_ctx")
    return larger


def _left(budget: Budget, reserve: Reserve) -> Left:
    """What is left of it."""
    return Left(budget.n_bytes - reserve.n_bytes) if budget.n_bytes else Left(0).end(NO_BUDGET)


def _mapped(model: Model) -> list[WeightEntry]:
    """Weights that no device ever holds: of each token it takes a row, or none."""
    entries = [entry(model, "embedding", model.token_embd, "token embedding stays mapped")]
    for factors in (model.rope_freqs, model.rope_factors_long, model.rope_factors_short):
        if factors is not None:
            why = "its factors are worked into the rotation's table"
            entries.append(entry(model, "rope", factors, why))
    if not model.lists_head_rows:
        entries += [entry(model, "profile", fc, "the whole head is computed") for fc in model.head_profile]
    if model.position_embd is not None:
        entries.append(entry(model, "embedding", model.position_embd, "positions stay mapped"))
    return entries


def _dense(model: Model, sparsity: str, layers: range, left: Left) -> tuple[list[WeightEntry], Left]:
    """Attention, norms and predictors, layer by layer."""
    entries = []
    for i in layers:
        layer = model.layers[i]
        what, part = f"dense part of layer {i}", dense_part(layer, sparsity)
        left, obstacle = left.pay_for(part, what)
        entries += part_entries(model, part, what, obstacle, i)
        if sparsity == "threshold" and layer.ffn_threshold is not None:
            why = "mapped; those of neurons on the device lie there too, behind their index"
            entries.append(entry(model, "threshold", layer.ffn_threshold, why, layer=i))
        if sparsity != "predictor":
            why = f"sparsity {sparsity} uses no predictor"
            unused = filter(None, (layer.fc1, layer.fc2))
            entries += [entry(model, "predictor", weight, why, layer=i) for weight in unused]
    return entries, left


def _head(model: Model, left: Left) -> tuple[list[WeightEntry], Left]:
    part = head_part(model)
    left, obstacle = left.pay_for(part, "the head")
    return part_entries(model, part, "head", obstacle), left


def _graphs(
    reserve: Reserve, weights: tuple[WeightEntry, ...], caches: tuple[CacheEntry, ...]
) -> tuple[GraphPlan, GraphPlan]:
    """Both graphs, placed."""
    sides, (one, many) = sides_of(weights, caches), reserve.graphs
    decode = GraphPlan(one, *run_passes(one, sides))
    batch = decode if many is one else GraphPlan(many, *run_passes(many, sides))
    return decode, batch


def _totals(
    budget: Budget,
    reserve: Reserve,
    weights: Sequence[WeightEntry],
    caches: Sequence[CacheEntry],
    layers: Sequence[FfnSplit],
) -> Totals:
    predictors = sum(e.device_bytes for e in weights if e.role in ("predictor", "profile"))
    ffn = sum(e.device_bytes for e in weights if e.role == "ffn")
    return Totals(
        budget=budget.n_bytes,
        weights=sum(e.device_bytes for e in weights) - predictors - ffn,
        predictors=predictors,
        kv_cache=sum(cache.n_bytes for cache in caches if cache.side == GPU),
        hot_rows=sum(layer.n_bytes for layer in layers),
        index=reserve.index,
        thresholds=reserve.thresholds,
        arena=reserve.arena,
        workspace=sum(reserve.workspace.values()),
        staging=reserve.staging,
    ).padded()


def budget_is_spent(layers: tuple[FfnSplit, ...]) -> bool:
    """Whether a choice among neurons was made, for which counts would have been of use."""
    return any(0 < layer.n_hot < layer.n_ff for layer in layers)
