"""From the device and the budget that are asked for to an executor that carries out the plan for them.

Where the device has less room than a plan takes, because another program has taken it meanwhile, a
smaller plan is made, and said. `strict` makes an error of that, and of every other way to run elsewhere
than was asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from hotcold.engine import settings
from hotcold.engine.budget import Budget, DeviceFacts, resolve_budget
from hotcold.engine.device_store import Progress
from hotcold.engine.devices import open_device
from hotcold.engine.executor import Executor
from hotcold.engine.model import Model
from hotcold.engine.placement import UNIFORM
from hotcold.engine.plan import Plan
from hotcold.engine.planning import Source, Wanted, plan_source, with_counts
from hotcold.engine.reserve import mib
from hotcold.engine.stores import KV_TYPES, kv_cache_bytes
from hotcold.errors import DeviceError, DoesNotFitError, FileError
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.cuda.device import Device

EMULATED = "device emulated runs the CUDA kernels on the CPU: for checking, not for speed"
SMALLER = (0.8, 0.5, 0.25)  # parts of what was planned or is left, to try when it did not fit
MARGIN_BYTES = 64 << 20  # of a card's free memory that `auto` leaves to others


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        device: as in --device. vram_budget: as in --vram-budget. strict: no fallback.
    """

    device: str = "auto"
    vram_budget: float | str = "auto"
    strict: bool = False

    @property
    def budget_text(self) -> str:
        """The budget as it was asked for."""
        return str(self.vram_budget).strip()


@dataclass(frozen=True)
class Loaded:
    """An executor, the device that it runs on, and what a user should know, a line each."""

    executor: Executor
    device: Device | None
    warnings: tuple[str, ...] = ()


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
        SettingError, DeviceError: a device or budget that means nothing, or cannot be used.
        DoesNotFitError: not enough memory, on either side.
    """
    settings.check_device(request.device, request.vram_budget)
    _check_cache(model, how)
    device = _opened(request)
    if device is None:
        return Loaded(_on_the_cpu(model, file, how, n_threads), None)
    try:
        return _on_device(device, _source(model, file), file, how, n_threads, request, progress)
    except BaseException:
        device.close()
        raise


def _opened(request: Request) -> Device | None:
    """The device; None for the CPU alone."""
    if request.device == "cpu" or settings.is_no_budget(request.budget_text):
        return None
    device = open_device(request.device)
    if device is None and (request.strict or request.budget_text != "auto"):
        raise DeviceError(
            "vram_budget" if request.budget_text != "auto" else "device",
            request.budget_text if request.budget_text != "auto" else request.device,
            "no usable GPU",
            "leave it out to run on the CPU; `hotcold devices` says what is missing",
        )
    return device


def _check_cache(model: Model, how: Wanted) -> None:
    wanted, memory = kv_cache_bytes(model, how.n_ctx, KV_TYPES[how.kv_type]), settings.physical_memory()
    if wanted > memory:
        raise DoesNotFitError(
            f"KV cache of n_ctx {how.n_ctx}",
            f"{wanted / 1e9:.1f} GB",
            f"memory of {memory / 1e9:.1f} GB",
            "lower n_ctx (-c)",
        )


def _on_the_cpu(model: Model, file: GGUFFile, how: Wanted, n_threads: int) -> Executor:
    try:
        return Executor(model, file, how.n_ctx, how.n_batch, n_threads, how.kv_type, how.sparsity)
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


def _on_device(
    device: Device,
    found: tuple[Source, tuple[str, ...]],
    file: GGUFFile,
    how: Wanted,
    n_threads: int,
    request: Request,
    progress: Progress | None,
) -> Loaded:
    source, said = found
    first = resolve_budget(request.budget_text, device_facts(device))
    failure: DoesNotFitError | None = None
    for budget in _budgets(first, device):
        try:
            plan, lines = plan_source(source, how, budget, device_facts(device))
        except DoesNotFitError:
            if failure is None:
                raise
            break  # nothing smaller is of use
        try:
            executor = Executor.from_plan(plan, file, n_threads, device, progress)
        except DoesNotFitError as error:
            if request.strict:
                raise
            failure = failure or _with_sum(error, plan.totals.used)
            continue
        if request.strict and plan.n_batch < how.n_batch:
            executor.close()
            raise DoesNotFitError("n_batch", how.n_batch, plan.notes[0], "lower -b, or raise --vram-budget")
        smaller = _smaller(first, budget, failure)
        emulated = (EMULATED,) if device.name == "emulated" else ()
        return Loaded(executor, device, (*emulated, *said, *smaller, *lines, *plan.notes))
    raise failure or DoesNotFitError("vram_budget", request.budget_text, "nothing fits")


@contextmanager
def opened_plan(
    source: Source, how: Wanted, request: Request
) -> Iterator[tuple[Device | None, Plan, tuple[str, ...]]]:
    """The device, the plan for it, and what was decided; the device is closed at the end."""
    settings.check_device(request.device, request.vram_budget)
    device = _opened(request)
    try:
        facts = device_facts(device) if device is not None else None
        budget = resolve_budget("0" if device is None else request.budget_text, facts)
        plan, lines = plan_source(source, how, budget, facts)
        yield device, plan, lines
    finally:
        if device is not None:
            device.close()


def device_facts(device: Device) -> DeviceFacts:
    """What the planner has to know of an opened device: its context is there already."""
    free, _ = device.memory()
    margin = 0 if device.name == "emulated" else min(MARGIN_BYTES, free)
    return DeviceFacts(device.name, free, margin)


def _budgets(first: Budget, device: Device) -> Iterator[Budget]:
    """The budget, and smaller ones, each asked for when the one before did not fit."""
    yield first
    for part in SMALLER:
        free, _ = device.memory()
        n_bytes = int(part * min(first.n_bytes, free))
        yield Budget(first.text, n_bytes, f"{part:.0%} of what is free: {first.text} did not fit")


def _smaller(first: Budget, budget: Budget, failure: DoesNotFitError | None) -> tuple[str, ...]:
    if failure is None:
        return ()
    why = failure.bound or failure.thing
    return (f"{mib(first.n_bytes)} of VRAM did not fit ({why}): the plan is for {mib(budget.n_bytes)}",)


def _with_sum(error: DoesNotFitError, needed: int) -> DoesNotFitError:
    """The error with the sum that the plan takes."""
    with suppress(AttributeError):
        return DoesNotFitError(
            error.thing, error.value, f"{error.bound}; the plan takes {mib(needed)}", "lower --vram-budget"
        )
    return error
