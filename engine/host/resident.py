"""Memory before the first token: whether what the CPU reads fits it, and bringing it there."""

import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hotcold.engine.graph.placed import GPU
from hotcold.engine.host import machine
from hotcold.engine.plan.footprint import host_layer_kv_bytes
from hotcold.engine.plan.plan import Plan
from hotcold.errors import DoesNotFitError
from hotcold.gguf_io import GGUFFile
from hotcold.gguf_io.residency import Range, ReadProgress, advise, lock, populate, ranges_of

ROOT = Path("/")


@dataclass(frozen=True)
class HostMemory:
    """Bytes that the CPU's side reads for every token, of weights and of a full KV cache."""

    weights: int
    kv_cache: int

    @property
    def n_bytes(self) -> int:
        """Both."""
        return self.weights + self.kv_cache


def host_memory(plan: Plan) -> HostMemory:
    """What a plan leaves to the CPU. Of an embedding that is no head, a row is read."""
    head_here = any(
        entry.role == "head" and not entry.n_bytes and entry.side != GPU for entry in plan.weights
    )
    weights = sum(entry.host_bytes for entry in plan.weights if entry.role != "embedding" or head_here)
    here = (cache for cache in plan.caches if cache.side != GPU)
    return HostMemory(
        weights, sum(host_layer_kv_bytes(plan.model, c.n_positions, plan.kv_type) for c in here)
    )


def memory_note(plan: Plan, root: Path = ROOT) -> str:
    """That what the CPU reads does not fit this machine's memory, as a line; "" where it does."""
    wanted, memory = host_memory(plan), machine.physical_memory(root)
    if wanted.n_bytes <= memory:
        return ""
    cache = f" and up to {_gib(wanted.kv_cache)} of KV cache" if wanted.kv_cache else ""
    return (
        f"the CPU reads {_gib(wanted.weights)} of weights{cache}, and this machine has {_gib(memory)} of memory "
        "for it: every token will wait for the disk; take a smaller type or context (-c), or put more on a device"
    )


def make_resident(
    plan: Plan, file: GGUFFile, keep: bool = False, progress: ReadProgress | None = None, root: Path = ROOT
) -> tuple[str, ...]:
    """Bring what the CPU reads into memory at once, where it fits; else tell the system how it is read.

    Args:
        keep: lock it there.
        progress: hears of bytes that are there, bytes in all, seconds.

    Returns:
        What a user should know, a line each.
    """
    said = [note] if (note := memory_note(plan, root)) else []
    everything = _ranges_here(plan, file)
    if fits_memory(plan, file, root):
        populate(everything, progress)
    else:
        _advise(plan, file)
    if keep and (problem := lock(everything)):
        said.append(f"--mlock: the weights are not locked in memory: {problem}; see `ulimit -l`")
    return tuple(said)


def fits_memory(plan: Plan, file: GGUFFile, root: Path = ROOT) -> bool:
    """Whether all that the CPU reads of the file fits the memory that is free, pages of files among it."""
    return sum(each.n_bytes for each in _ranges_here(plan, file)) <= machine.available_memory(root)


def _ranges_here(plan: Plan, file: GGUFFile) -> list[Range]:
    """The pages that the CPU reads."""
    here = [entry for entry in plan.weights if entry.host_bytes]
    return ranges_of(file, {name for entry in here for name in entry.weight.names})


def _advise(plan: Plan, file: GGUFFile) -> None:
    """Say how the file is read: all from end to end, but of a sparse FFN single rows.

    There reading ahead would bring what nobody wants.
    """
    sparse = plan.sparsity != "off"
    mixture = plan.model.experts is not None
    ffn = {name for entry in plan.weights if entry.role == "ffn" for name in entry.weight.names}
    single = ffn if sparse else set[str]()
    rest = {name for entry in plan.weights if entry.host_bytes for name in entry.weight.names} - single
    rest -= ffn if mixture else set()  # of experts runs of rows here and there: as the system reads by itself
    advise(ranges_of(file, single), mmap.MADV_RANDOM)
    advise(ranges_of(file, rest), mmap.MADV_SEQUENTIAL)


def read_into_memory(file: GGUFFile, progress: ReadProgress | None = None, root: Path = ROOT) -> None:
    """Read the files whole into memory of this process, instead of their maps.

    Raises:
        DoesNotFitError: there is too little.
    """
    available = machine.available_memory(root)
    if file.size > available:
        raise DoesNotFitError(
            "--no-mmap",
            f"{file.size} bytes of {file.path.name}",
            f"{available} bytes of memory are free",
            "leave it out",
        )
    hear = _counted(file.size, progress)
    try:
        for part in file.parts:
            part.copy_to_memory(hear)
    except MemoryError as error:
        raise DoesNotFitError(
            "--no-mmap", str(error), "there is not that much memory", "leave it out"
        ) from error


def _counted(total: int, progress: ReadProgress | None) -> Callable[[int], None]:
    """Pieces, as a progress of all of them."""
    started, done = time.perf_counter(), 0

    def hear(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress(done, total, time.perf_counter() - started)

    return hear


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 30):.1f} GiB"
