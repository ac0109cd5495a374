"""From a model with its statistics, and a budget, to a plan: with an index file's neurons if there is one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hotcold.engine.model.context import batch_length, context_length
from hotcold.engine.model.model import Model
from hotcold.engine.model.sparsity import resolve_sparsity
from hotcold.engine.plan import placement
from hotcold.engine.plan.budget import Budget
from hotcold.engine.plan.footprint import check_kv_type
from hotcold.engine.plan.gpu_index import plan_with_index
from hotcold.engine.plan.plan import Ids, Plan
from hotcold.engine.plan.wanted import MAX_SLOTS, Wanted
from hotcold.engine.settings import whole_number
from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile
from hotcold.gguf_io.firing_counts import Counts, counts_in_metadata, digest, read_counts
from hotcold.gguf_io.gpuidx import NO_COUNTS, Identity


@dataclass(frozen=True)
class Source:
    """A model to plan for, of a file or of a shape.

    Attributes:
        path: of the file; None for a shape.
        header: SHA-256 of its header, and size: its bytes.
        frequencies: firing counts, or None.
        frequencies_from: where they are from.
    """

    model: Model
    name: str
    path: Path | None
    header: str
    size: int
    frequencies: Counts | None
    frequencies_from: str


def with_counts(source: Source, folder: Path | None, file: GGUFFile | None) -> Source:
    """Counts of --activation, else beside the model, else in the file."""
    model = source.model
    size = (model.n_layer, model.n_units, *(() if model.experts is None else (model.experts.n_expert,)))
    if folder is not None:
        counts = read_counts(folder, *size)
        if counts is None:
            raise FileError("--activation", folder, "no activation_0.npy or .pt there", "name another folder")
        return replace(source, frequencies=counts, frequencies_from=str(folder))
    if file is None:
        return replace(source, frequencies_from=placement.UNIFORM)
    beside = file.path.parent / "activation"
    if (counts := read_counts(beside, *size)) is not None:
        return replace(source, frequencies=counts, frequencies_from=f"{beside.name}/ beside the model")
    if (counts := counts_in_metadata(file.metadata, *size)) is not None:
        return replace(source, frequencies=counts, frequencies_from="the model's file")
    return replace(source, frequencies_from=placement.UNIFORM)


def wanted(
    source: Source,
    sparsity: str,
    n_ctx: int | None,
    n_batch: int,
    kv_type: str,
    n_slots: int = 1,
    stream_batch: int | None = 0,
) -> Wanted:
    """The settings, each checked and worked out for the model."""
    check_kv_type(kv_type, source.model)
    mode, _ = resolve_sparsity(source.model, sparsity)
    length = context_length(n_ctx, source.model.n_ctx_train).n_ctx
    slots = whole_number("n_slots", n_slots, 1, MAX_SLOTS, such_as="--slots 4")
    least = checked_stream_batch(stream_batch)
    return Wanted(mode, length, max(batch_length(n_batch, length), slots), kv_type, slots, least)


def checked_stream_batch(value: int | None) -> int | None:
    """--stream-batch as it is; SettingError for one that means nothing."""
    if value == 0 or value is None:
        return value
    return whole_number("stream_batch", value, 2, 1 << 20, such_as="--stream-batch 32, or 0 for never")


CPU_ALONE = Budget("0", 0, "the CPU alone")


def plan_for_cpu(model: Model, how: Wanted) -> Plan:
    """The plan of a model that runs on the CPU alone, made without statistics: no choice depends on them."""
    return placement.plan(model, how, CPU_ALONE)


def make_plan(source: Source, how: Wanted, budget: Budget, hot: Sequence[Ids] | None = None) -> Plan:
    """The plan of a model for a budget."""
    return placement.plan(
        source.model,
        how,
        budget,
        source.frequencies,
        frequencies_from=source.frequencies_from,
        hot=hot,
    )


def plan_source(
    source: Source,
    how: Wanted,
    budget: Budget,
    *,
    reset: bool = False,
    disable: bool = False,
    strict: bool = False,
) -> tuple[Plan, tuple[str, ...]]:
    """The plan, with the neurons of an index file if there is a good one, and what was decided about it.

    Args:
        reset, disable, strict: see `plan_with_index`.
    """
    indexed = plan_with_index(
        source.model,
        source.path,
        identity(source, how, budget),
        lambda hot: make_plan(source, how, budget, hot),
        reset=reset,
        disable=disable,
        strict=strict,
    )
    return indexed.plan, indexed.lines


def identity(source: Source, how: Wanted, budget: Budget) -> Identity:
    """What an index of this plan is for."""
    return Identity(
        source.header,
        source.size,
        budget.n_bytes,
        how.n_ctx,
        kv_type=how.kv_type,
        n_slots=how.n_slots,
        counts=NO_COUNTS if source.frequencies is None else digest(source.frequencies),
    )
