"""The three blocks of device memory that an engine takes, once, before it runs."""

from dataclasses import dataclass

from hotcold.errors import HotcoldError
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Device


@dataclass(frozen=True)
class Slabs:
    """Each one allocation of bytes, or None where the plan puts nothing.

    All that the engine uses are typed views into them.
    """

    weights: Buffer | None
    kv_cache: Buffer | None
    arena: Buffer | None

    def free(self) -> None:
        """Free all three."""
        for slab in (self.weights, self.kv_cache, self.arena):
            if slab is not None:
                slab.free()


def allocate_slabs(device: Device, weights: int, kv_cache: int, arena: int) -> Slabs:
    """Allocate the planned bytes, all or nothing.

    Raises:
        DoesNotFitError: one of them does not fit; what was allocated before is freed.
    """
    done: list[Buffer | None] = []
    try:
        for n_bytes in (weights, kv_cache, arena):
            done.append(device.empty(n_bytes, "u1") if n_bytes else None)
    except HotcoldError:
        for slab in done:
            if slab is not None:
                slab.free()
        raise
    return Slabs(*done)
