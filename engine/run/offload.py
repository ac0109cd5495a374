"""From the device and the budget that are asked for to an executor that carries out the plan for them.

Where the device has less room than a plan takes, because another program has taken it meanwhile, a
smaller plan is made, and said. `strict` makes an error of that, and of every other way to run elsewhere
or with less than was asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hotcold.engine.device.choice import DeviceChoice, parse_device
from hotcold.engine.device.devices import open_device
from hotcold.engine.device.store import DeviceStore, Progress
from hotcold.engine.host import machine
from hotcold.engine.model.model import Model
from hotcold.engine.plan.budget import Budget, BudgetSetting, DeviceFacts, parse_budget, resolve_budget
from hotcold.engine.plan.footprint import host_layer_kv_bytes
from hotcold.engine.plan.placement import UNIFORM
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.planning import Source, Wanted, make_plan, plan_source, with_counts
from hotcold.engine.plan.reserve import mib, reserve_for, smallest_useful
from hotcold.engine.run.executor import Executor
from hotcold.errors import DeviceError, DoesNotFitError, FileError
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.cuda.device.device import Device

EMULATED = "device emulated runs the CUDA kernels on the CPU: for checking, not for speed"
MARGIN_BYTES = 64 << 20  # of a card's free memory that `auto` leaves to others
SMALLER = 0.9, 0.5  # most of a plan's bytes to try next: where less is free, and where as much was free


@dataclass(frozen=True)
class Request:
    """The device and the budget that are asked for; `strict`: no fallback."""

    device: DeviceChoice
    budget: BudgetSetting
    strict: bool = False

    @property
    def leaves_it_open(self) -> bool:
        """Whether the CPU alone is as good an answer as any."""
        return self.device.kind == "auto" and self.budget.is_auto and not self.strict


def parse_request(device: str, vram_budget: float | str, strict: bool = False) -> Request:
    """What --device, --vram-budget and --strict mean together.

    Raises:
        SettingError: a value that means nothing.
        DeviceError: a budget for the CPU.
    """
    request = Request(parse_device(device), parse_budget(vram_budget), strict)
    if request.device.kind == "cpu" and not (request.budget.is_none or request.budget.is_auto):
        raise DeviceError("vram_budget", vram_budget, "device cpu has no VRAM", "leave one of them out")
    return request


@dataclass(frozen=True)
class Loaded:
    """An executor, the device that it runs on, and what a user should know, a line each."""

    executor: Executor
    device: Device | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placed:
    """A plan with its memory on the device, if it takes any, and what was decided on the way, a line each."""

    plan: Plan
    store: DeviceStore | None
    lines: tuple[str, ...]


def load_executor(
    model: Model,
    file: GGUFFile,
    how: Wanted,
    n_threads: int,
    request: Request,
    progress: Progress | None = None,
) -> Loaded:
    """Make a model ready to run.

    Raises:
        DeviceError: a device that cannot be used.
        DoesNotFitError: not enough memory, on either side.
        FileError: with `strict`, an index file that cannot be used.
    """
    _check_cache(model, how)
    device = _opened(request)
    if device is None:
        return Loaded(_on_the_cpu(model, file, how, n_threads), None)
    try:
        source, said = _source(model, file)
        placed = _placed(device, source, how, request)
        with _host_memory(how):
            executor = Executor.from_store(placed.plan, file, n_threads, placed.store, progress)
    except _NoRoomError as error:
        device.close()
        if not request.leaves_it_open:
            raise
        return Loaded(
            _on_the_cpu(model, file, how, n_threads), None, (f"everything runs on the CPU: {error}",)
        )
    except BaseException:
        device.close()
        raise
    emulated = (EMULATED,) if device.name == "emulated" else ()
    return Loaded(executor, device, (*emulated, *said, *placed.lines))


def _opened(request: Request) -> Device | None:
    """The device; None for the CPU alone."""
    if request.device.kind == "cpu" or request.budget.is_none:
        return None
    device = open_device(request.device)
    if device is None and not request.leaves_it_open:
        is_auto = request.budget.is_auto
        asked = ("device", "auto") if is_auto else ("vram_budget", request.budget.text)
        remedy = "leave out --strict" if is_auto else "leave it out"
        raise DeviceError(
            *asked, "no usable GPU", f"{remedy} to run on the CPU; `hotcold devices` says what is missing"
        )
    return device


def _check_cache(model: Model, how: Wanted) -> None:
    wanted = model.n_layer * host_layer_kv_bytes(model, how.n_ctx, how.kv_type)
    memory = machine.physical_memory()
    if wanted > memory:
        raise DoesNotFitError(
            f"KV cache of n_ctx {how.n_ctx}",
            f"{wanted / 1e9:.1f} GB",
            f"memory of {memory / 1e9:.1f} GB",
            "lower n_ctx (-c)",
        )


def _on_the_cpu(model: Model, file: GGUFFile, how: Wanted, n_threads: int) -> Executor:
    with _host_memory(how):
        return Executor(model, file, how.n_ctx, how.n_batch, n_threads, how.kv_type, how.sparsity)


@contextmanager
def _host_memory(how: Wanted) -> Iterator[None]:
    """Say what takes the host's memory, if there is too little."""
    try:
        yield
    except MemoryError as error:
        thing = f"KV cache of n_ctx {how.n_ctx} and intermediates of n_batch {how.n_batch}"
        raise DoesNotFitError(thing, None, str(error), "lower n_ctx (-c)") from error


def _source(model: Model, file: GGUFFile) -> tuple[Source, tuple[str, ...]]:
    """The model with its statistics; those that cannot be read are named."""
    source = Source(model, file.path.name, file.path, file.header_hash(), file.size, None, UNIFORM)
    try:
        return with_counts(source, None, file), ()
    except FileError as error:
        return source, (str(error),)


class _NoRoomError(DoesNotFitError):
    """A device without room for a plan."""


def _placed(device: Device, source: Source, how: Wanted, request: Request) -> Placed:
    """The plan that was asked for, or the largest that the device has room for.

    Raises:
        DoesNotFitError: none is; the text has the sum that is needed. With `strict` also a plan with less
            than was asked for.
    """
    facts, budget = device_facts(device), _budget(device, request)
    try:
        plan, lines = plan_source(source, how, budget, facts, strict=request.strict)
    except DoesNotFitError as error:
        raise _NoRoomError(error.thing, error.value, error.bound, error.next_step) from error
    if request.strict and plan.n_batch < how.n_batch:
        raise _batch_lowered(source, plan, how)
    try:
        return Placed(plan, _store(device, plan), (*lines, *plan.notes))
    except DoesNotFitError as error:
        if request.strict:
            sum_needed = f"the plan takes {plan.totals.used} bytes, {mib(plan.totals.used)}"
            raise _NoRoomError(
                f"memory of {device.name}", sum_needed, _reason(error), "lower --vram-budget"
            ) from error
        return _smaller(device, source, how, plan, error)


def _store(device: Device, plan: Plan) -> DeviceStore | None:
    return DeviceStore(device, plan) if plan.totals.used else None


def _reason(error: DoesNotFitError) -> str:
    """What an allocator says: CuPy's whole text, or how much was left."""
    return error.bound or str(error.value)


def _batch_lowered(source: Source, plan: Plan, how: Wanted) -> DoesNotFitError:
    reserve = reserve_for(source.model, how.sparsity, how.n_ctx, how.n_batch)
    needed = smallest_useful(source.model, how.sparsity, reserve)
    bound = f"it needs a budget of {needed} bytes, {mib(needed)}; this one is for {plan.n_batch}"
    return DoesNotFitError(
        "n_batch", how.n_batch, bound, "lower -b, raise --vram-budget, or leave out --strict"
    )


def _smaller(device: Device, source: Source, how: Wanted, wanted: Plan, lack: DoesNotFitError) -> Placed:
    """The largest plan that the device has room for, by the ranking: an index file was for another."""
    plan = wanted
    while True:
        budget = _less(device, plan)
        try:
            plan = make_plan(source, how, budget, device_facts(device))
        except DoesNotFitError as error:
            thing, remedy = f"memory of {device.name}", "lower n_ctx (-c) or -b, or take --device cpu"
            raise _NoRoomError(thing, _reason(lack), error.bound, remedy) from lack
        try:
            store = _store(device, plan)
        except DoesNotFitError:
            continue
        said = (
            f"a plan of {mib(wanted.totals.used)} did not fit the memory of {device.name} ({_reason(lack)}): "
            f"one of {mib(plan.totals.used)} runs"
        )
        return Placed(plan, store, ("; ".join((said, *plan.notes)),))


def _less(device: Device, plan: Plan) -> Budget:
    """A budget below what a plan takes, which did not fit: what is free, if that is less."""
    used, free = plan.totals.used, _free(device)
    n_bytes = min(free, int(SMALLER[0] * used)) if free < used else int(SMALLER[1] * used)
    return Budget(plan.budget.text, max(n_bytes, 1), "what the device has room for")


@contextmanager
def opened_plan(
    source: Source, how: Wanted, request: Request
) -> Iterator[tuple[Device | None, Plan, tuple[str, ...]]]:
    """The device, the plan for it, and what was decided; the device is closed at the end."""
    device = _opened(request)
    try:
        facts = device_facts(device) if device is not None else None
        budget = Budget("0", 0, "as asked for") if device is None else _budget(device, request)
        plan, lines = plan_source(source, how, budget, facts)
        yield device, plan, lines
    finally:
        if device is not None:
            device.close()


def device_facts(device: Device) -> DeviceFacts:
    """What the planner has to know of an opened device."""
    _, total = device.memory()
    return DeviceFacts(device.name, total, _margin(device))


def _margin(device: Device) -> int:
    """Bytes for others; a card's context is there already and counts as taken."""
    return 0 if device.name == "emulated" else MARGIN_BYTES


def _free(device: Device) -> int:
    free, _ = device.memory()
    return max(free - _margin(device), 0)


def _budget(device: Device, request: Request) -> Budget:
    """The budget in bytes: `auto` is what is free at this moment; the others may be more than that."""
    if request.budget.is_auto:
        return Budget("auto", max(_free(device), 1), f"free memory of {device.name}")
    return resolve_budget(request.budget, device_facts(device))
