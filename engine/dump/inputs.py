"""From the options of `hotcold offload-dump` to a plan and what is printed of it.

Only headers and statistics are read, and no device is needed.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotcold.engine.dump.report import as_json
from hotcold.engine.dump.text import host_lines, short_form, traffic_lines
from hotcold.engine.model.ffn_activation import with_activation
from hotcold.engine.model.load import load_model
from hotcold.engine.model.model_path import model_path
from hotcold.engine.model.shapes import like
from hotcold.engine.plan import placement
from hotcold.engine.plan.budget import (
    Budget,
    DeviceFacts,
    facts_of_card,
    of_cards,
    parse_budget,
    parse_budgets,
    parse_size,
    resolve_budget,
)
from hotcold.engine.plan.cards import card_named
from hotcold.engine.plan.gpu_index import capacity, for_powerinfer, store
from hotcold.engine.plan.graph_memory import graph_bytes
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.planning import CPU_ALONE, Source, identity, make_plan, with_counts
from hotcold.engine.plan.traffic import token_traffic
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.settings import number_within, one_of
from hotcold.errors import DeviceError, DoesNotFitError, FileError, SettingError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.gpuidx import index_path, write_index

if TYPE_CHECKING:
    from hotcold.engine.generation.generation import Engine

INDEX_KINDS = ("hotcold", "powerinfer")
GBPS_BOUNDS = (1e-9, 1e9)  # from a byte a second: with less the seconds of a token might be no finite number


def open_source(
    path: Path | None,
    shape: str | None = None,
    predictor_rank: int | None = None,
    activation: Path | None = None,
    ffn_activation: str | None = None,
) -> Source:
    """The model of -m or --like, with its statistics.

    Args:
        activation: the folder of --activation.
        ffn_activation: its FFN's function, where the file is wrong about it.

    Raises:
        SettingError: both, a rank for a file, or a function that the architecture has not.
        FileError: what cannot be read.
    """
    if shape is not None:
        if path is not None:
            raise SettingError("model", "both -m and --like", "one of them", "leave out -m or --like")
        model = like(shape, predictor_rank)
        return with_counts(Source(model, shape, None, "", 0, None, ""), activation, None)
    if predictor_rank is not None:
        raise SettingError("--predictor-rank", predictor_rank, "a file has its own predictors", "use --like")
    with open_gguf(model_path(path)) as file:
        model = with_activation(load_model(file), file, ffn_activation)
        source = Source(model, file.path.name, file.path, file.header_hash(), file.size, None, "")
        return with_counts(source, activation, file)


def facts_for(device_memory: str | None, budget: str | None, card: str | None = None) -> DeviceFacts | None:
    """The device that --device-memory or --card stands in for, else the first card if a budget needs to know.

    Of several budgets each is for such a device.

    Args:
        budget: one, or several, of cards or of a sweep.
    """
    if card is not None and device_memory is None:
        return DeviceFacts(card, card_named(card).memory)
    if device_memory is not None:
        if "," in device_memory:
            raise SettingError(
                "--device-memory",
                device_memory,
                "the memory of each card, all alike",
                "name one size, and the cards by their budgets, such as --vram-budget 8GB,6GB",
            )
        memory = parse_size(device_memory, "--device-memory")
        if not memory:
            raise SettingError("--device-memory", device_memory, "above 0")
        return DeviceFacts("--device-memory", memory)
    if budget is not None and "auto" not in budget and "%" not in budget:
        return None
    from hotcold.engine.device.devices import first_card

    found = first_card()
    return facts_of_card(found.name, found.memory_free, found.memory_total) if found else None


def with_graphs(facts: DeviceFacts | None, source: Source, how: Wanted) -> DeviceFacts | None:
    """The device with what its driver is assumed to take for graphs of the model."""
    return facts and replace(
        facts, graph_bytes=graph_bytes(source.model, how.sparsity, how.kv_type, how.n_slots)
    )


def budget_of(text: str | None, facts: DeviceFacts | None) -> Budget:
    """The budget of one card or of several alike; auto where none was given, or the CPU alone without a device."""
    if text is None and facts is None:
        return Budget("0", 0, "no GPU, and no --vram-budget")
    settings = parse_budgets("auto" if text is None else text)
    named = [
        facts if facts is None or len(settings) == 1 else replace(facts, name=f"{facts.name}, card {i}")
        for i in range(len(settings))
    ]
    return of_cards([resolve_budget(*pair) for pair in zip(settings, named, strict=True)])


def write_index_for(kind: str, plan: Plan, source: Source, how: Wanted) -> str:
    """Write the index that hotcold or PowerInfer reads; the line that says where it is."""
    one_of("--gpu-index-for", kind, INDEX_KINDS)
    if source.path is None:
        raise SettingError("--gpu-index-for", kind, "an index belongs to a file", "name it with -m")
    if kind == "hotcold":
        return store(plan, source.path, identity(source, how, plan.budget))
    index = for_powerinfer(plan.model, [split.hot for split in plan.layers], source.frequencies)
    path = index_path(source.path)
    write_index(path, replace(index, identity=None), plan.model.n_units)
    n_hot = sum(ids.size for ids in index.hot)
    return f"index for PowerInfer written to {path}: {n_hot} neurons, of {capacity(plan.model, plan)} bytes planned"


def sweep(
    source: Source, how: Wanted, budgets: str, facts: DeviceFacts | None, gbps: Sequence[float]
) -> list[dict[str, Any]]:
    """A row a budget of a list such as 0,2GiB,4GiB: what is where, what a token moves, and its time.

    Args:
        gbps: bandwidth of host, device and bus, in 10^9 bytes a second.
    """
    for name, value, usual in zip(
        ("--host-gbps", "--device-gbps", "--bus-gbps"), gbps, (40, 900, 25), strict=True
    ):
        number_within(name, value, *GBPS_BOUNDS, "a number from 1e-9 to 1e9", such_as=f"{name} {usual}")
    return [_sweep_row(source, how, text.strip(), facts, gbps) for text in budgets.split(",")]


def _sweep_row(
    source: Source, how: Wanted, text: str, facts: DeviceFacts | None, gbps: Sequence[float]
) -> dict[str, Any]:
    try:
        budget = resolve_budget(parse_budget(text), facts)
    except (SettingError, DeviceError) as error:  # of one in the list
        step = error.next_step if isinstance(error, DeviceError) else "such as --sweep 0,8GiB,80%"
        raise type(error)("--sweep", error.value, error.bound, step) from error
    try:
        plan = make_plan(source, how, budget)
    except DoesNotFitError as error:
        return {"budget": text, "bytes": budget.n_bytes, "error": str(error)}
    traffic = token_traffic(plan)
    return {
        "budget": text,
        "bytes": budget.n_bytes,
        "dense_layers": plan.n_dense_layers,
        "n_layer": source.model.n_layer,
        "hot_share": plan.hot_share,
        "coverage": plan.coverage,
        "host_bytes": round(traffic.host_bytes),
        "device_bytes": round(traffic.device_bytes),
        "bus_bytes": traffic.bus_bytes,
        "seconds": traffic.seconds(*gbps),
    }


def short_lines(engine: "Engine") -> list[str]:
    """Where everything of a loaded model is, in a few lines; statistics that cannot be read are named."""
    said, plan = _plan_of_the_cpu(engine) if not engine.executor.devices else ([], engine.executor.plan)
    report = as_json(plan)
    is_mapped = all(part.is_mapped for part in engine.file.parts)
    return [*said, *short_form(report), *host_lines(report, is_mapped), *traffic_lines(report)]


def _plan_of_the_cpu(engine: "Engine") -> tuple[list[str], Plan]:
    """Of an engine without a device, which runs without a plan; in front, why its traffic lacks statistics."""
    source = Source(engine.model, engine.file.path.name, engine.file.path, "", 0, None, placement.UNIFORM)
    said: list[str] = []
    try:
        source = with_counts(source, None, engine.file)
    except FileError as error:
        said.append(str(error))
    plan = engine.executor.plan
    how = Wanted(engine.sparsity, engine.n_ctx, engine.n_batch, plan.kv_type, plan.n_slots)
    return said, make_plan(source, how, CPU_ALONE)
