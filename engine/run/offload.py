"""From the device and the budget that are asked for to an executor that carries out the plan for them.

Modules of devices are imported only where one is wanted: the CPU alone starts without them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotcold.engine.host import machine
from hotcold.engine.host.stores import HostStore
from hotcold.engine.model.model import Model
from hotcold.engine.plan.footprint import host_layer_kv_bytes, kv_positions
from hotcold.engine.plan.placement import UNIFORM
from hotcold.engine.plan.planning import Source, plan_for_cpu, with_counts
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.prompts import settle_prompts
from hotcold.engine.run.request import Request
from hotcold.errors import DoesNotFitError, FileError
from hotcold.gguf_io import GGUFFile

if TYPE_CHECKING:
    from hotcold.engine.device.store import LoadProgress
    from hotcold.kernels.cuda.device.device import Device

EMULATED = "device emulated runs the CUDA kernels on the CPU: for checking, not for speed"


@dataclass(frozen=True)
class Loaded:
    """An executor, the devices that it runs on, and what a user should know, a line each."""

    executor: Executor
    devices: "tuple[Device, ...]"
    warnings: tuple[str, ...] = ()


def load_executor(
    model: Model,
    file: GGUFFile,
    how: Wanted,
    n_threads: int,
    request: Request,
    progress: "LoadProgress | None" = None,
) -> Loaded:
    """Make a model ready to run.

    Raises:
        DeviceError: a device that cannot be used.
        DoesNotFitError: not enough memory, on either side.
        FileError: with `strict`, an index file that cannot be used.
    """
    _check_cache(model, how)
    if request.is_for_the_cpu or (request.leaves_it_open and not machine.has_cuda_driver()):
        return Loaded(_on_the_cpu(model, file, how, n_threads), ())
    from hotcold.engine.run.device_plan import NoRoomError, close_all, open_wanted

    devices = open_wanted(request)
    if not devices:
        return Loaded(_on_the_cpu(model, file, how, n_threads), ())
    try:
        return _on_devices(devices, model, file, how, n_threads, request, progress)
    except NoRoomError as error:
        close_all(devices)
        if not request.leaves_it_open:
            raise
        said = f"everything runs on the CPU: {error}"
        return Loaded(_on_the_cpu(model, file, how, n_threads), (), (said,))
    except BaseException:
        close_all(devices)
        raise


def _on_devices(
    devices: "tuple[Device, ...]",
    model: Model,
    file: GGUFFile,
    how: Wanted,
    n_threads: int,
    request: Request,
    progress: "LoadProgress | None",
) -> Loaded:
    from hotcold.engine.device.store import load_stores
    from hotcold.engine.run.device_plan import place_on

    source, said = _source(model, file)
    placed = place_on(devices, source, how, request)
    with _host_memory(how):
        load_stores(placed.stores, HostStore(file), progress, n_threads)
        executor = Executor(placed.plan, file, n_threads, placed.stores)
    try:
        executor.prompts = "" if how.stream_batch == 0 else settle_prompts(executor)
    except BaseException:
        executor.close()
        raise
    emulated = (EMULATED,) if devices[0].is_emulated else ()
    return Loaded(executor, devices, (*emulated, *said, *placed.lines))


def _check_cache(model: Model, how: Wanted) -> None:
    held = kv_positions(model, how.n_ctx, how.n_batch)
    wanted = how.n_slots * sum(host_layer_kv_bytes(model, n, how.kv_type) for n in held)
    memory = machine.physical_memory()
    if wanted > memory:
        raise DoesNotFitError(
            f"KV cache of n_ctx {how.n_ctx}",
            f"{wanted / 1e9:.1f} GB",
            f"memory of {memory / 1e9:.1f} GB",
            "lower n_ctx",
        )


def _on_the_cpu(model: Model, file: GGUFFile, how: Wanted, n_threads: int) -> Executor:
    with _host_memory(how):
        return Executor(plan_for_cpu(model, how), file, n_threads)


@contextmanager
def _host_memory(how: Wanted) -> Iterator[None]:
    """Say what takes the host's memory, if there is too little."""
    try:
        yield
    except MemoryError as error:
        thing = f"KV cache of n_ctx {how.n_ctx} and intermediates of n_batch {how.n_batch}"
        raise DoesNotFitError(thing, None, str(error), "lower n_ctx") from error


def _source(model: Model, file: GGUFFile) -> tuple[Source, tuple[str, ...]]:
    """The model with its statistics; those that cannot be read are named."""
    source = Source(model, file.path.name, file.path, file.header_hash(), file.size, None, UNIFORM)
    try:
        return with_counts(source, None, file), ()
    except FileError as error:
        return source, (str(error),)
