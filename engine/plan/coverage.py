"""The share of the measured firings that the hot neurons of a budget cover."""

import numpy as np

from hotcold.engine.model.model import Model
from hotcold.engine.plan.footprint import (
    dense_part,
    ffn_part,
    head_part,
    kv_positions,
    layer_kv_bytes,
    neuron_bytes,
)
from hotcold.engine.plan.neurons import counts_of
from hotcold.engine.plan.ranking import rank
from hotcold.engine.plan.reserve import reserve_for
from hotcold.engine.plan.wanted import Wanted
from hotcold.gguf_io.firing_counts import Counts


def coverage_curve(
    model: Model, how: Wanted, frequencies: Counts | None, n_points: int = 48
) -> list[tuple[int, float]]:
    """Budgets, ascending, and the share of the measured firings that each covers.

    The first point is the budget at which everything but neurons is on the device; beyond the last one
    there is nothing to gain. A model whose FFN goes by whole layers has no curve.
    """
    parts = [*(dense_part(layer, how.sparsity) for layer in model.layers), head_part(model)]
    base = reserve_for(model, how.sparsity, how.n_ctx, how.n_batch, how.n_slots).n_bytes
    base += sum(part.n_bytes for part in parts)
    held = kv_positions(model, how.n_ctx, how.n_batch)
    base += sum(layer_kv_bytes(model, n, how.kv_type, how.n_slots) for n in held)
    ffns = [(layer, ffn_part(layer, how.sparsity)) for layer in model.layers]
    if any(layer.ffn_down is not None or part.obstacle is not None for layer, part in ffns):
        return []
    counts = counts_of(model, frequencies)
    ranking = rank(list(counts), [neuron_bytes(layer) for layer in model.layers])
    values = np.asarray(np.stack([np.asarray(c, np.float64) for c in counts]))[
        ranking.layers, ranking.neurons
    ]
    covered = np.concatenate([[0.0], np.cumsum(values)]) / (values.sum() or 1.0)
    ends = np.concatenate([[0], ranking.ends])
    chosen = np.linspace(0, ends.size - 1, n_points).astype(int)
    return [(base + int(ends[i]), float(covered[i])) for i in chosen]
