"""Which neurons are hot: from an index file that fits, else from the ranking.

An index lies beside its model. A file that hotcold did not write is used if it is the model's and fits,
and is never overwritten: ours then goes to the cache folder, as it does if the model's folder cannot be
written. Every decision is a line of text.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hotcold.cache_folder import temporary_root, user_caches
from hotcold.engine.model.model import Layer, Model
from hotcold.engine.plan.plan import Ids, Plan
from hotcold.errors import DoesNotFitError, FileError
from hotcold.gguf_io.firing_counts import Counts, LayerCounts
from hotcold.gguf_io.gpuidx import GpuIndex, Identity, index_path, is_foreign, read_index, write_index

POWERINFER_GROUP = 256  # neurons; PowerInfer's kernels drop the remainder
ANEW = "hotcold offload-dump --gpu-index-for hotcold makes it anew"
Planner = Callable[[Sequence[Ids] | None], Plan]


@dataclass(frozen=True)
class Indexed:
    """A plan, and what was decided about its index, a line each."""

    plan: Plan
    lines: tuple[str, ...]


def cache_path(model_path: Path, identity: Identity) -> Path:
    """Where an index goes that cannot lie beside its model."""
    parent = next(iter((*user_caches(), *filter(None, [temporary_root()]))), Path())
    place = hashlib.sha256(identity.header.encode()).hexdigest()[:12]
    return parent / "hotcold" / "gpuidx" / f"{place}-{index_path(model_path).name}"


def plan_with_index(
    model: Model,
    model_path: Path | None,
    identity: Identity,
    make_plan: Planner,
    *,
    reset: bool = False,
    disable: bool = False,
    strict: bool = False,
) -> Indexed:
    """Plan with the neurons of an index file, if there is one that is good.

    Args:
        model_path: None for a shape without a file.
        make_plan: plans for given hot neurons, for () with none, or for None by the ranking.
        reset: use no existing file.
        disable: no neurons on the GPU.
        strict: refuse a file that is no good, and write none.

    Raises:
        FileError: with `strict`, a file that cannot be used.
        DoesNotFitError: see `placement.plan`.
    """
    if disable:
        return Indexed(make_plan(()), ("--disable-gpu-index: no neurons on the GPU",))
    if reset or model_path is None or not identity.budget:
        return Indexed(make_plan(None), ())
    lines, stale = list[str](), False
    for path in (index_path(model_path), cache_path(model_path, identity)):
        if not os.path.lexists(path):
            continue
        found = _from_file(path, model, identity, make_plan)
        stale = stale or found.stale
        if strict and found.unused:
            make_plan(None)  # a budget that is too small for any plan is the first thing to say
            raise FileError("index", path, found.unused, "delete it, or leave out --strict")
        lines.append(f"index {path} is not used: {found.unused}" if found.unused else found.used)
        if found.plan is not None:
            return Indexed(found.plan, tuple(lines))
    plan = make_plan(None)
    if stale:
        lines.append(_stored(plan, model_path, identity))
    return Indexed(plan, tuple(lines))


def _stored(plan: Plan, model_path: Path, identity: Identity) -> str:
    """The line of `store`; one that could not be written is no reason not to run."""
    try:
        return store(plan, model_path, identity)
    except (FileError, DoesNotFitError) as error:
        return f"no index is written: {error}"


@dataclass(frozen=True)
class _Found:
    """What an index file is good for.

    Attributes:
        plan: None if it cannot be made of the file.
        unused: why the file's neurons are not used.
        used: what to say if they are.
        stale: whether hotcold wrote it, for something else.
    """

    plan: Plan | None
    unused: str = ""
    used: str = ""
    stale: bool = False


def _from_file(path: Path, model: Model, identity: Identity, make_plan: Planner) -> _Found:
    """The plan with the neurons of one file."""
    try:
        index = read_index(path, model.n_layer, model.n_units)
        if index.identity and (reason := index.identity.stale(identity)):
            return _Found(None, reason, stale=True)
        plan = make_plan(index.hot)
    except (FileError, DoesNotFitError) as error:
        return _Found(None, error.bound if error.value == path else str(error))
    if sum(split.n_hot for split in plan.layers) < sum(ids.size for ids in index.hot):
        return _Found(plan, plan.layers[0].why)
    wrote = "" if index.identity else ", which hotcold did not write"
    if index.identity and index.identity.is_ranked_by_others(identity):
        wrote = f", ranked by other counts than those of {plan.frequencies_from}; {ANEW}"
    return _Found(plan, used=f"hot neurons from {path}{wrote}")


def store(plan: Plan, model_path: Path, identity: Identity) -> str:
    """Write our index, beside the model if that can be; the line that says where it is."""
    index = GpuIndex(tuple(layer.hot for layer in plan.layers), capacity(plan.model, plan), identity)
    beside, cached = index_path(model_path), cache_path(model_path, identity)
    if is_foreign(beside):
        reason = f"{beside} stays: hotcold did not write it"
    else:
        try:
            write_index(beside, index, plan.model.n_units)
        except (FileError, DoesNotFitError) as error:
            reason = str(error)
        else:
            return f"index written to {beside}"
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError("cache folder", cached.parent, error.strerror or "cannot be made") from error
    write_index(cached, index, plan.model.n_units)
    return f"index written to {cached} ({reason})"


def capacity(model: Model, plan: Plan) -> int:
    """Bytes of the hot rows as the file holds them, which PowerInfer wants free."""
    neurons = map(_neuron_bytes, model.layers)
    return sum(split.n_hot * n_bytes for split, n_bytes in zip(plan.layers, neurons, strict=True))


def _neuron_bytes(layer: Layer) -> int:
    """Bytes of one neuron as the file holds it: its part of gate, up and down."""
    return sum(weight.n_bytes // layer.n_units for weight in layer.ffn_matrices)


def hottest(counts: LayerCounts, n: int) -> Ids:
    """The n neurons with the largest counts, ascending; of equal counts the lower numbers."""
    order = np.argsort(-np.asarray(counts, np.float64), kind="stable")
    return np.sort(order[:n]).astype(np.int32)


def for_powerinfer(model: Model, hot: Sequence[Ids], counts: Counts | None) -> GpuIndex:
    """An index that PowerInfer runs well: each layer's hottest, their number a multiple of 256."""
    kept = []
    for i, ids in enumerate(hot):
        n = ids.size // POWERINFER_GROUP * POWERINFER_GROUP
        of_hot = np.zeros(ids.size) if counts is None else np.asarray(counts[i])[ids]
        kept.append(ids[hottest(of_hot, n)])
    needed = sum(ids.size * _neuron_bytes(layer) for ids, layer in zip(kept, model.layers, strict=True))
    return GpuIndex(tuple(kept), needed)
