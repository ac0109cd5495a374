"""From a model, its statistics and a budget to a plan. Pure: no files, no devices, no clocks.

Order: the dense parts of whole layers (attention, norms, and the predictor where the mode uses one),
each layer's KV cache, the head; only when all of these fit, neurons by activations served per byte,
each placed whole. Within each of these the first that does not fit ends the placing of all that comes
later. Arena, workspace and the index of all layers are taken off the budget first, as large as they
are when everything is on the device, so a larger budget never holds fewer neurons.

What the device has no kernel for stays on the CPU and does not stop what comes later.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph import passes
from hotcold.engine.graph.placed import CPU, GPU, SPLIT
from hotcold.engine.model.model import Layer, Model, Weight
from hotcold.engine.plan.budget import Budget, DeviceFacts
from hotcold.engine.plan.footprint import (
    Part,
    dense_part,
    device_bytes,
    ffn_part,
    head_part,
    host_layer_kv_bytes,
    kv_obstacle,
    layer_kv_bytes,
    neuron_bytes,
)
from hotcold.engine.plan.plan import CacheEntry, FfnSplit, GraphPlan, Ids, Plan, Totals, WeightEntry, homes_of
from hotcold.engine.plan.ranking import rank
from hotcold.engine.plan.reserve import (
    Reserve,
    fitting_reserve,
    layer_index_bytes,
    mib,
    nothing_reserved,
    reserve_for,
)
from hotcold.errors import DoesNotFitError, SettingError
from hotcold.gguf_io.firing_counts import Counts

NO_BUDGET = "the budget is 0: everything stays on the CPU"
UNIFORM = "uniform: no activation counts were found"
WHERE_COUNTS_GO = "put them into activation/ beside the model, or give offload-dump --activation DIR"


class _Purse:
    """A budget that is spent in order; the first that does not fit ends the spending."""

    def __init__(self, n_bytes: int) -> None:
        self.left = n_bytes
        self.ended = ""

    def pay(self, n_bytes: int, what: str) -> str:
        """Pay, or say why not."""
        if self.ended:
            return self.ended
        if n_bytes > self.left:
            short = f"no budget left: {mib(n_bytes - self.left)} short"
            self.ended = f"no budget left after {what} did not fit"
            return short
        self.left -= n_bytes
        return ""

    def end(self, why: str) -> None:
        """Spend no more."""
        self.ended = self.ended or why


def plan(
    model: Model,
    frequencies: Counts | None,
    budget: Budget,
    sparsity: str,
    n_ctx: int,
    n_batch: int,
    device_facts: DeviceFacts | None = None,
    *,
    kv_type: str = "f16",
    frequencies_from: str = "",
    hot: Sequence[Ids] | None = None,
) -> Plan:
    """Place a model.

    Args:
        frequencies: counts of each layer's neurons, [n_ff] each; None makes all neurons alike.
        sparsity: "off", "exact" or "predictor".
        n_batch: most tokens of one run; lowered only if not one layer fits otherwise.
        frequencies_from: where the counts are from, in words.
        hot: the neurons to place, from an index file, in place of the ranking.

    Raises:
        DoesNotFitError: a budget above 0 into which not even one layer's dense part fits; the text has
            the sum that is needed.
        SettingError: counts, or hot neurons, that are not the model's.
    """
    _check_counts(model, frequencies)
    if not budget.n_bytes:
        reserve = nothing_reserved(model, sparsity, n_batch)
    else:
        reserve = fitting_reserve(model, budget, sparsity, n_ctx, n_batch)
    placing = _Placing(model, sparsity, reserve, budget, n_ctx, kv_type, frequencies, hot)
    return placing.plan(device_facts, frequencies_from or ("counts" if frequencies else UNIFORM), n_batch)


def _check_counts(model: Model, frequencies: Counts | None) -> None:
    if frequencies is None:
        return
    shapes = [np.shape(counts) for counts in frequencies]
    if shapes != [(model.n_ff,)] * model.n_layer:
        raise SettingError(
            "activation counts", f"{len(shapes)} layers", f"{model.n_layer} layers of {model.n_ff} neurons"
        )


def coverage_curve(
    model: Model,
    frequencies: Counts | None,
    sparsity: str,
    n_ctx: int,
    n_batch: int,
    kv_type: str = "f16",
    n_points: int = 48,
) -> list[tuple[int, float]]:
    """Budgets, ascending, and the share of the measured activations that each covers.

    The first point is the budget at which everything but neurons is on the device; beyond the last one
    there is nothing to gain. A model whose FFN goes by whole layers has no curve.
    """
    parts = [*(dense_part(layer, sparsity) for layer in model.layers), head_part(model)]
    base = reserve_for(model, sparsity, n_ctx, n_batch).n_bytes + sum(part.n_bytes for part in parts)
    base += model.n_layer * layer_kv_bytes(model, n_ctx, kv_type)
    apart = [layer.ffn_down is None and not ffn_part(layer, sparsity).obstacle for layer in model.layers]
    if not all(apart):
        return []
    counts = [np.ones(model.n_ff) if frequencies is None else frequencies[i] for i in range(model.n_layer)]
    ranking = rank(list(counts), [neuron_bytes(layer) for layer in model.layers])
    values = np.asarray(np.stack([np.asarray(c, np.float64) for c in counts]))[
        ranking.layers, ranking.neurons
    ]
    covered = np.concatenate([[0.0], np.cumsum(values)]) / (values.sum() or 1.0)
    ends = np.concatenate([[0], ranking.ends])
    chosen = np.linspace(0, ends.size - 1, n_points).astype(int)
    return [(base + int(ends[i]), float(covered[i])) for i in chosen]


class _Placing:
    """One run of the planner: what is spent, and the entries so far."""

    def __init__(
        self,
        model: Model,
        sparsity: str,
        reserve: Reserve,
        budget: Budget,
        n_ctx: int,
        kv_type: str,
        frequencies: Counts | None,
        hot: Sequence[Ids] | None,
    ) -> None:
        self.model, self.sparsity, self.reserve, self.budget = model, sparsity, reserve, budget
        self.n_ctx, self.kv_type, self.frequencies, self.given_hot = n_ctx, kv_type, frequencies, hot
        self.purse = _Purse(budget.n_bytes - reserve.n_bytes)
        if not budget.n_bytes:
            self.purse.end(NO_BUDGET)
        self.weights: list[WeightEntry] = []
        self.notes: list[str] = []

    def plan(self, facts: DeviceFacts | None, frequencies_from: str, n_batch: int) -> Plan:
        model, reserve = self.model, self.reserve
        self._stay(model.token_embd, "embedding", "token embedding stays mapped")
        if model.rope_freqs is not None:
            self._stay(model.rope_freqs, "rope", "its factors are worked into the rotation's table")
        if model.position_embd is not None:
            self._stay(model.position_embd, "embedding", "positions stay mapped")
        for i, layer in enumerate(model.layers):
            self._place_part(dense_part(layer, self.sparsity), f"dense part of layer {i}", i)
            if self.sparsity != "predictor":
                for weight in filter(None, (layer.fc1, layer.fc2)):
                    self._stay(weight, "predictor", f"sparsity {self.sparsity} uses no predictor", i)
        caches = self._place_caches()
        self._place_head()
        if reserve.n_batch < n_batch:
            self.notes.append(
                f"n_batch lowered from {n_batch} to {reserve.n_batch}: not one layer fits otherwise"
            )
            self.purse.end(f"n_batch was lowered to {reserve.n_batch}: no neurons are placed")
        layers = self._place_neurons()
        weights = tuple(self.weights)
        homes = homes_of(weights, caches)
        graphs = [GraphPlan(graph, *passes.run_passes(graph, homes)) for graph in reserve.graphs]
        arena = max(graph.arenas[GPU].n_bytes for graph in graphs)
        if arena > reserve.arena:  # never seen; a plan must not pass its cap in silence
            raise DoesNotFitError("arena", f"{arena} bytes", f"{reserve.arena} were reserved", "report this")
        if frequencies_from == UNIFORM and budget_is_spent(layers):
            self.notes.append(f"{UNIFORM}; {WHERE_COUNTS_GO}")
        return Plan(
            model=model,
            sparsity=self.sparsity,
            n_ctx=self.n_ctx,
            n_batch=reserve.n_batch,
            kv_type=self.kv_type,
            budget=self.budget,
            device=facts,
            frequencies_from=frequencies_from,
            weights=weights,
            caches=caches,
            layers=layers,
            peak_count=max(float(np.max(self._counts(i))) for i in range(model.n_layer)),
            workspace=reserve.workspace,
            totals=self._totals(weights, caches, layers),
            decode=graphs[0],
            batch=graphs[1],
            notes=tuple(self.notes),
        )

    def _totals(
        self, weights: tuple[WeightEntry, ...], caches: tuple[CacheEntry, ...], layers: tuple[FfnSplit, ...]
    ) -> Totals:
        def taken(wanted: Callable[[str], bool]) -> int:
            return sum(entry.device_bytes for entry in weights if wanted(entry.role))

        return Totals(
            budget=self.budget.n_bytes,
            weights=taken(lambda role: role not in ("predictor", "ffn")),
            predictors=taken(lambda role: role == "predictor"),
            kv_cache=sum(cache.n_bytes for cache in caches if cache.home == GPU),
            hot_rows=sum(layer.n_bytes for layer in layers),
            index=self.reserve.index,
            arena=self.reserve.arena,
            workspace=sum(self.reserve.workspace.values()),
        )

    def _place_part(self, part: Part, what: str, layer: int | None = None) -> None:
        reason = part.obstacle or self.purse.pay(part.n_bytes, what)
        for role, weight in part.weights:
            if reason:
                self._stay(weight, role, f"{what}: {reason}", layer)
            else:
                self._entry(weight, role, weight.n_rows, what, layer)

    def _place_caches(self) -> tuple[CacheEntry, ...]:
        sizes = self.model, self.n_ctx, self.kv_type
        n_bytes, on_host = layer_kv_bytes(*sizes), host_layer_kv_bytes(*sizes)
        caches = []
        for i, layer in enumerate(self.model.layers):
            # the cache is of use beside its layer alone
            obstacle = dense_part(layer, self.sparsity).obstacle or kv_obstacle(self.kv_type)
            reason = obstacle or self.purse.pay(n_bytes, f"the KV cache of layer {i}")
            home, why = (CPU, reason) if reason else (GPU, f"{self.n_ctx} positions of layer {i}")
            caches.append(CacheEntry(i, on_host if home == CPU else n_bytes, home, why))
        return tuple(caches)

    def _place_head(self) -> None:
        part = head_part(self.model)
        reason = part.obstacle or self.purse.pay(part.n_bytes, "the head")
        tied = self.model.output is self.model.token_embd
        for role, weight in part.weights:
            name = f"output.weight (tied to {weight.name})" if tied and role == "head" else weight.name
            if reason:
                self._stay(weight, role, f"head: {reason}", name=name)
            else:
                self._entry(weight, role, weight.n_rows, "head", None, name=name)

    def _place_neurons(self) -> tuple[FfnSplit, ...]:
        """Neurons, or whole FFNs where a file has no row a neuron of the down projection."""
        model = self.model
        wholes = [self._pay_whole(i, layer) for i, layer in enumerate(model.layers)]
        hot, reason = self._hot_neurons()
        return tuple(self._split(i, wholes[i], hot[i], reason) for i in range(model.n_layer))

    def _pay_whole(self, i: int, layer: Layer) -> str | None:
        """None for an FFN that goes by neurons; else why it stays, empty if it does not."""
        if layer.ffn_down is None:
            return None
        part = ffn_part(layer, self.sparsity)
        return part.obstacle or self.purse.pay(part.n_bytes, f"the FFN of layer {i}")

    def _hot_neurons(self) -> tuple[list[Ids], str]:
        """Hot neurons of each layer, and why the others are cold."""
        model = self.model
        none = [np.zeros(0, np.int32)] * model.n_layer
        if self.purse.ended:
            return none, self.purse.ended
        costs = [
            neuron_bytes(layer) if not ffn_part(layer, self.sparsity).obstacle else 0
            for layer in model.layers
        ]
        if self.given_hot is not None:
            return self._given(self.given_hot, costs), "as the index file says"
        counts: list[NDArray[np.generic] | None] = []
        for i, layer in enumerate(model.layers):
            apart = layer.ffn_down is None and not ffn_part(layer, self.sparsity).obstacle
            counts.append(self._counts(i) if apart else None)
        ranking = rank(counts, costs)
        n_placed = ranking.prefix(self.purse.left)
        if n_placed == ranking.ends.size:
            return ranking.hot(n_placed, model.n_layer), "no budget missing"
        spent = int(ranking.ends[n_placed - 1]) if n_placed else 0
        short = int(ranking.ends[n_placed]) - self.purse.left
        self.purse.left -= spent
        return ranking.hot(n_placed, model.n_layer), f"the next neuron is {mib(short)} short"

    def _given(self, hot: Sequence[Ids], costs: list[int]) -> list[Ids]:
        if len(hot) != self.model.n_layer:
            raise SettingError("index", f"{len(hot)} layers", f"the model has {self.model.n_layer}")
        needed = sum(ids.size * cost for ids, cost in zip(hot, costs, strict=True))
        if needed > self.purse.left:
            raise DoesNotFitError(
                "hot rows of the index", f"{needed} bytes", f"{self.purse.left} are left", "--reset-gpu-index"
            )
        self.purse.left -= needed
        return [
            np.asarray(ids, np.int32) if cost else np.zeros(0, np.int32)
            for ids, cost in zip(hot, costs, strict=True)
        ]

    def _counts(self, i: int) -> NDArray[np.generic]:
        return np.ones(self.model.n_ff) if self.frequencies is None else self.frequencies[i]

    def _split(self, i: int, whole: str | None, hot: Ids, reason: str) -> FfnSplit:
        model, layer = self.model, self.model.layers[i]
        part = ffn_part(layer, self.sparsity)
        if whole is not None:
            hot = np.zeros(0, np.int32) if whole else np.arange(model.n_ff, dtype=np.int32)
            reason = whole or f"whole FFN of layer {i}"
        if part.obstacle:
            reason = part.obstacle
        why = _split_reason(hot.size, model.n_ff, reason, whole is None and not part.obstacle)
        for role, weight in part.weights:
            rows = weight.n_rows if hot.size == model.n_ff else int(hot.size)
            self._entry(weight, role, rows, f"FFN of layer {i}: {why}", i)
        counts = np.asarray(self._counts(i), np.float64)
        cost = 0 if part.obstacle else neuron_bytes(layer) if whole is None else 0
        n_bytes = hot.size * cost if whole is None else 0 if whole else part.n_bytes
        return FfnSplit(
            layer=i,
            n_ff=model.n_ff,
            hot=hot,
            neuron_bytes=cost,
            covered=float(counts[hot].sum()),
            measured=float(counts.sum()),
            n_bytes=int(n_bytes),
            index_bytes=layer_index_bytes(layer, model.n_ff, self.sparsity) if self.budget.n_bytes else 0,
            why=why,
        )

    def _stay(self, weight: Weight, role: str, why: str, layer: int | None = None, name: str = "") -> None:
        self._entry(weight, role, 0, why, layer, name)

    def _entry(
        self, weight: Weight, role: str, rows: int, why: str, layer: int | None, name: str = ""
    ) -> None:
        all_rows = weight.n_rows
        n_bytes = 0 if role == "head" and weight is self.model.token_embd else weight.n_bytes
        home = CPU if not rows else GPU if rows == all_rows else SPLIT
        self.weights.append(
            WeightEntry(
                name=name or _listed_name(weight, self.model.layers[layer] if layer is not None else None),
                tensor=weight.name,
                role=role,
                layer=layer,
                type=weight.type.name,
                ne=weight.ne,
                n_bytes=n_bytes,
                n_rows=all_rows,
                device_rows=rows,
                host_bytes=n_bytes // all_rows * (all_rows - rows),
                device_bytes=device_bytes(weight) // all_rows * rows if rows else 0,
                home=home,
                why=why,
                weight=weight,
            )
        )


def _listed_name(weight: Weight, layer: Layer | None) -> str:
    """The tensor's name, with the rows where several weights are stacked in it."""
    if layer is None or layer.attn_q.name != layer.attn_k.name or weight.name != layer.attn_q.name:
        return weight.name
    return f"{weight.name}[{weight.first_row}:{weight.first_row + weight.n_rows}]"


def _split_reason(n_hot: int, n_ff: int, reason: str, by_neuron: bool) -> str:
    if not by_neuron:
        return reason
    if n_hot == n_ff:
        return "all neurons fit"
    return f"{n_hot} of {n_ff} neurons on the device; {reason}" if n_hot else reason


def budget_is_spent(layers: tuple[FfnSplit, ...]) -> bool:
    """Whether a choice among neurons was made, for which counts would have been of use."""
    return any(0 < layer.n_hot < layer.n_ff for layer in layers)
