"""Where FFNs go: by neurons, or whole where a file has no row a neuron of the down projection."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.model.model import Model, Weight
from hotcold.engine.plan.budget import mib
from hotcold.engine.plan.entries import entry
from hotcold.engine.plan.footprint import Obstacle, WeightGroup, ffn_part, neuron_bytes
from hotcold.engine.plan.plan import ExpertsSplit, FfnSplit, Ids, WeightEntry
from hotcold.engine.plan.ranking import rank
from hotcold.engine.plan.reserve import layer_index_bytes, layer_threshold_bytes
from hotcold.engine.plan.spending import Left
from hotcold.errors import DoesNotFitError, SettingError
from hotcold.gguf_io.firing_counts import Counts

NONE_HOT: Ids = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Ffn:
    """A layer's FFN.

    Attributes:
        unit: "neuron", or "expert".
        by_neuron: whether neurons are placed one by one, else all or none.
        obstacle: what keeps all of it on the CPU; None if nothing does.
    """

    unit: str
    part: WeightGroup
    by_neuron: bool
    neuron_bytes: int
    obstacle: Obstacle | None


@dataclass(frozen=True)
class Hot:
    """Hot neurons of each layer, ascending, int32 [n_hot] each, and why the others are cold."""

    ids: list[Ids]
    why: str


def ffns(model: Model, sparsity: str, layers: range, left: Left) -> tuple[list[Ffn], Left]:
    """The FFNs of a card's layers, those that go whole paid for."""
    found = []
    for i in layers:
        layer = model.layers[i]
        part, by_neuron = ffn_part(layer, sparsity), layer.ffn_down is None
        obstacle = part.obstacle
        if not by_neuron:
            left, obstacle = left.pay_for(part, f"the FFN of layer {i}")
        size = neuron_bytes(layer) if by_neuron and part.obstacle is None else 0
        found.append(Ffn(model.unit, part, by_neuron, size, obstacle))
    return found, left


def counts_of(model: Model, frequencies: Counts | None) -> list[NDArray[np.generic]]:
    """Counts of each layer's neurons, all alike where there are none; an expert's counts for all of its neurons.

    Raises:
        SettingError: counts that are not the model's.
    """
    if frequencies is None:
        return [np.ones(model.n_units)] * model.n_layer
    shapes = {counts.shape for counts in frequencies}
    if len(frequencies) == model.n_layer and shapes == {(model.n_units,)}:
        return list(frequencies)
    experts = model.experts
    if experts is not None and len(frequencies) == model.n_layer and shapes == {(experts.n_expert,)}:
        return [np.repeat(counts, experts.n_ff) for counts in frequencies]
    bound = f"{model.n_layer} layers of {model.n_units} {model.unit}s"
    raise SettingError("activation counts", f"{len(frequencies)} layers", bound)


def check_layers(model: Model, hot: Sequence[Ids] | None) -> None:
    """SettingError for an index file's neurons of another number of layers."""
    if hot and len(hot) != model.n_layer:
        raise SettingError("index", f"{len(hot)} layers", f"the model has {model.n_layer}")


def index_of(model: Model, units: Ids) -> Ids:
    """What kernels find the rows of some neurons or experts by, which lie in this order: int32.

    The neurons' numbers; of experts each one's place among these, or -1; of experts by neuron the first row of each,
    and the end.
    """
    experts = model.experts
    if experts is None:
        return units
    if model.experts_by_neuron:
        ends = np.arange(experts.n_expert + 1) * experts.n_ff
        return np.searchsorted(units, ends).astype(np.int32)
    places = np.full(experts.n_expert, -1, np.int32)
    places[units] = np.arange(units.size)
    return places


def hot_neurons(found: Sequence[Ffn], counts: Sequence[NDArray[np.generic]], left: Left) -> Hot:
    """Neurons by firings served per byte, until one does not fit."""
    if left.ended is not None:
        return Hot([NONE_HOT] * len(found), left.ended.reason)
    candidates = [each if ffn.neuron_bytes else None for ffn, each in zip(found, counts, strict=True)]
    ranking = rank(candidates, [ffn.neuron_bytes for ffn in found])
    n_placed = ranking.prefix(left.n_bytes)
    hot = ranking.hot(n_placed, len(found))
    if n_placed == ranking.ends.size:
        return Hot(hot, "no budget missing")
    return Hot(hot, f"the next {found[0].unit} is {mib(int(ranking.ends[n_placed]) - left.n_bytes)} short")


def given_neurons(found: Sequence[Ffn], hot: Sequence[Ids], left: Left) -> Hot:
    """Those of an index file; none at all where `hot` is empty, as no index file's is.

    Raises:
        DoesNotFitError: more than there is room for.
    """
    if left.ended is not None:
        return Hot([NONE_HOT] * len(found), left.ended.reason)
    if not hot:
        return Hot([NONE_HOT] * len(found), "no neurons on the device, as --disable-gpu-index asks")
    needed = sum(ids.size * ffn.neuron_bytes for ids, ffn in zip(hot, found, strict=True))
    if needed > left.n_bytes:
        raise DoesNotFitError(
            "hot rows of the index", f"{needed} bytes", f"{left.n_bytes} are left", "--reset-gpu-index"
        )
    chosen = [
        np.asarray(ids, np.int32) if ffn.neuron_bytes else NONE_HOT
        for ids, ffn in zip(hot, found, strict=True)
    ]
    return Hot(chosen, "as the index file says")


def split(
    model: Model, sparsity: str, i: int, ffn: Ffn, hot: Ids, why: str, counts: NDArray[np.generic]
) -> FfnSplit:
    """Which neurons of layer i are on the device, and why the others are not."""
    ids, n_ff = _hot_ids(ffn, hot, model.n_units), model.n_units
    counted = np.asarray(counts, np.float64)
    whole_bytes = ffn.part.n_bytes if ids.size else 0
    return FfnSplit(
        layer=i,
        n_ff=n_ff,
        hot=ids,
        neuron_bytes=ffn.neuron_bytes,
        covered=float(counted[ids].sum()),
        measured=float(counted.sum()),
        n_bytes=int(ids.size) * ffn.neuron_bytes if ffn.by_neuron else whole_bytes,
        index_bytes=layer_index_bytes(model.layers[i], n_ff, sparsity),
        threshold_bytes=layer_threshold_bytes(model.layers[i], sparsity),
        why=_why(i, ffn, why, int(ids.size), n_ff),
        experts=None if model.experts is None else _of_experts(model.experts.n_expert, ids, counted),
    )


def _of_experts(n_expert: int, hot: Ids, counted: NDArray[np.float64]) -> ExpertsSplit:
    n_each = counted.size // n_expert
    return ExpertsSplit(
        n_each, np.bincount(hot // n_each, minlength=n_expert), counted.reshape(n_expert, n_each).sum(1)
    )


def _hot_ids(ffn: Ffn, ids: Ids, n_ff: int) -> Ids:
    if ffn.by_neuron:
        return ids
    return np.arange(n_ff, dtype=np.int32) if ffn.obstacle is None else NONE_HOT


def _why(i: int, ffn: Ffn, why_cold: str, n_hot: int, n_ff: int) -> str:
    if ffn.obstacle is not None:
        return ffn.obstacle.reason
    if not ffn.by_neuron:
        return f"whole FFN of layer {i}"
    if n_hot == n_ff:
        return f"all {ffn.unit}s fit"
    return f"{n_hot} of {n_ff} {ffn.unit}s on the device; {why_cold}" if n_hot else why_cold


def ffn_entries(model: Model, ffn: Ffn, placed: FfnSplit) -> list[WeightEntry]:
    """The weights of one FFN."""
    why = f"FFN of layer {placed.layer}: {placed.why}"
    return [
        entry(model, role, weight, why, _rows(weight, placed), placed.layer)
        for role, weight in ffn.part.weights
    ]


def _rows(weight: Weight, placed: FfnSplit) -> int:
    """Rows on the device: all of them, or those of the hot neurons, or experts."""
    return weight.n_rows if placed.n_hot == placed.n_ff else weight.n_rows // placed.n_ff * placed.n_hot
