"""From the device and the budget that are asked for to a plan with its memory on the device.

Where the device has less room than a plan takes, because another program has taken it meanwhile, a
smaller plan is made, and said. `strict` makes an error of that, and of every other way to run elsewhere
or with less than was asked for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from hotcold.engine.device.devices import open_devices
from hotcold.engine.device.store import DeviceStore, allocated_stores
from hotcold.engine.plan.budget import (
    Budget,
    BudgetSetting,
    DeviceFacts,
    facts_of_card,
    mib,
    of_cards,
    resolve_budget,
)
from hotcold.engine.plan.footprint import types_there
from hotcold.engine.plan.graph_memory import graph_bytes
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.planning import Source, make_plan, plan_source
from hotcold.engine.plan.reserve import reserve_for, smallest_useful
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.request import Request
from hotcold.errors import DeviceError, DoesNotFitError
from hotcold.kernels.cuda.device.device import Device

SMALLER = 0.9, 0.5  # most of a plan's bytes to try next: where less is free, and where as much was free


@dataclass(frozen=True)
class Placed:
    """A plan with its memory on the devices, if it takes any, and what was decided on the way, a line each."""

    plan: Plan
    stores: tuple[DeviceStore, ...]
    lines: tuple[str, ...]


def open_wanted(request: Request) -> tuple[Device, ...]:
    """The devices; none for the CPU alone."""
    if request.is_for_the_cpu:
        return ()
    devices = open_devices(request.devices)
    for device in devices:
        device.has_graphs = request.graphs
    if not devices and not request.leaves_it_open:
        (budget,) = request.budgets
        is_auto = budget.is_auto
        asked = ("device", "auto") if is_auto else ("vram_budget", budget.text)
        remedy = "leave out --strict" if is_auto else "leave it out"
        raise DeviceError(
            *asked, "no usable GPU", f"{remedy} to run on the CPU; `hotcold devices` says what is missing"
        )
    return devices


def close_all(devices: Sequence[Device]) -> None:
    """Close them all."""
    for device in devices:
        device.close()


class NoRoomError(DoesNotFitError):
    """A device without room for a plan."""


def place_on(devices: Sequence[Device], source: Source, how: Wanted, request: Request) -> Placed:
    """The plan that was asked for, or the largest that the devices have room for.

    Raises:
        DoesNotFitError: none is; the text has the sum that is needed. With `strict` also a plan with less
            than was asked for.
    """
    how = how_on(devices, how)
    budget = budget_for(devices, source, how, request)
    try:
        plan, lines = plan_source(source, how, budget, strict=request.strict)
    except DoesNotFitError as error:
        raise NoRoomError(error.thing, error.value, error.bound, error.next_step) from error
    if request.strict and plan.n_batch < how.n_batch:
        raise _batch_lowered(source, plan, how)
    if request.strict and how.stream_batch and plan.not_streamed:
        raise DoesNotFitError("stream_batch", how.stream_batch, plan.not_streamed, "leave out --strict")
    try:
        return Placed(plan, allocated_stores(devices, plan), (*_unlike(devices), *lines, *plan.notes))
    except DoesNotFitError as error:
        if request.strict:
            sum_needed = f"the plan takes {plan.totals.used} bytes, {mib(plan.totals.used)}"
            raise NoRoomError(
                f"memory of {names(devices)}", sum_needed, _reason(error), "lower --vram-budget"
            ) from error
        return _smaller(devices, source, how, plan, error)


def names(devices: Sequence[Device]) -> str:
    """Of all of them, as in --device."""
    return ",".join(device.name for device in devices)


def _unlike(devices: Sequence[Device]) -> tuple[str, ...]:
    """What to say of cards that are not of one kind."""
    kinds = dict.fromkeys(device.facts.description for device in devices)
    said = ", ".join(f"{device.name} is a {device.facts.description}" for device in devices)
    return (f"{said}: a token takes as long as its layers take on each",) if len(kinds) > 1 else ()


def how_on(devices: Sequence[Device], how: Wanted) -> Wanted:
    """The settings, with what depends on the device: the emulated one never gains by rows that are sent to it."""
    emulated = devices[0].is_emulated and how.stream_batch is None
    return replace(how, stream_batch=0) if emulated else how


def _reason(error: DoesNotFitError) -> str:
    """What an allocator says: CuPy's whole text, or how much was left."""
    return error.bound or str(error.value)


def _batch_lowered(source: Source, plan: Plan, how: Wanted) -> DoesNotFitError:
    reserve = reserve_for(source.model, how.sparsity, how.n_ctx, how.n_batch, how.n_slots)
    needed = smallest_useful(source.model, how.sparsity, reserve)
    bound = f"it needs a budget of {needed} bytes, {mib(needed)}; this one is for {plan.n_batch}"
    return DoesNotFitError(
        "n_batch", how.n_batch, bound, "lower -b, raise --vram-budget, or leave out --strict"
    )


def _smaller(
    devices: Sequence[Device], source: Source, how: Wanted, wanted: Plan, lack: DoesNotFitError
) -> Placed:
    """The largest plan that the devices have room for, by the ranking: an index file was for another."""
    plan = wanted
    while True:
        budget = _less(devices, plan)
        try:
            plan = make_plan(source, how, budget)
        except DoesNotFitError as error:
            thing, remedy = f"memory of {names(devices)}", "lower n_ctx or n_batch, or take --device cpu"
            raise NoRoomError(thing, _reason(lack), error.bound, remedy) from lack
        try:
            stores = allocated_stores(devices, plan)
        except DoesNotFitError:
            continue
        said = (
            f"a plan of {mib(wanted.totals.used)} did not fit the memory of {names(devices)} ({_reason(lack)}): "
            f"one of {mib(plan.totals.used)} runs"
        )
        return Placed(plan, stores, (*_unlike(devices), "; ".join((said, *plan.notes))))


def _less(devices: Sequence[Device], plan: Plan) -> Budget:
    """Budgets below what a plan takes, which did not fit: what is free on each card, if that is less."""
    found = []
    for device, card in zip(devices, plan.cards, strict=True):
        used, facts = card.totals.used, _again(device, card.budget)
        free = max((facts.free or 0) - facts.graph_bytes, 0)
        n_bytes = min(free, int(SMALLER[0] * used)) if free < used else int(SMALLER[1] * used)
        found.append(Budget(card.budget.text, max(n_bytes, 1), "what the device has room for", facts))
    return of_cards(found)


def _again(device: Device, budget: Budget) -> DeviceFacts:
    """What is known of a device by now."""
    return replace(facts_of(device), graph_bytes=budget.device.graph_bytes if budget.device else 0)


@contextmanager
def opened_plan(
    source: Source, how: Wanted, request: Request
) -> Iterator[tuple[tuple[Device, ...], Plan, tuple[str, ...]]]:
    """The devices, the plan for them, and what was decided; the devices are closed at the end."""
    devices = open_wanted(request)
    try:
        budget = budget_for(devices, source, how, request) if devices else Budget("0", 0, "as asked for")
        how = how_on(devices, how) if devices else how
        plan, lines = plan_source(source, how, budget)
        yield devices, plan, lines
    finally:
        close_all(devices)


def budget_for(devices: Sequence[Device], source: Source, how: Wanted, request: Request) -> Budget:
    """Each device's budget in bytes, together."""
    pairs = zip(request.budgets, devices, strict=True)
    return of_cards([resolve_budget(each, facts_for(device, source, how, each)) for each, device in pairs])


def facts_for(device: Device, source: Source, how: Wanted, budget: BudgetSetting) -> DeviceFacts:
    """What the planner has to know; where all that is free may be taken, the model's kernels are there before.

    What they have taken, as much again stays free, at least the margin: for others, and kernels of several types.
    """
    taken = device.load_kernels(types_there(source.model, how.sparsity)) if budget.is_auto else 0
    takes_none = device.is_emulated or not device.has_graphs
    of_graphs = 0 if takes_none else graph_bytes(source.model, how.sparsity, how.kv_type, how.n_slots)
    return replace(facts_of(device, taken), graph_bytes=of_graphs)


def facts_of(device: Device, taken: int = 0) -> DeviceFacts:
    """What the planner has to know of an opened device.

    Args:
        taken: bytes that kernels have taken there.
    """
    free, total = device.memory()
    facts = facts_of_card(device.name, free, total, taken)
    if device.is_emulated:  # nobody else needs its memory
        facts = DeviceFacts(device.name, total, 0, free)
    return facts
