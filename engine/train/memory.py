"""What training takes of a process's memory, and what is chosen to stay below a bound on it.

Counted are what a process has before, what it allocates, and the pages of mapped files that it has at a time. With a
bound those pages are given back as soon as they are read: they stay in the system's own memory while there is room.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from hotcold.engine.host.resident import host_memory
from hotcold.engine.host.side import host_arena_bytes
from hotcold.engine.model.model import Layer, Model, Weight
from hotcold.engine.plan.plan import Plan
from hotcold.engine.train import descent, gate, samples, starts
from hotcold.engine.train.settings import BATCH, STEP_OF_RANK, Settings
from hotcold.errors import DoesNotFitError

PAGES_OF_A_FAULT = 16  # that the system maps at once
STATM = Path("/proc/self/statm")
FIRST_STEPS = 48 << 20  # BLAS's own buffers, Python's objects, the allocator's gaps
MB = 1e6


@dataclass(frozen=True)
class Bound:
    """On the memory of one process, in bytes.

    Attributes:
        own: that it has before anything is collected or trained.
    """

    n_bytes: int
    own: int

    @property
    def left(self) -> int:
        """For collecting and training."""
        return self.n_bytes - self.own


def own_bytes() -> int:
    """Of this process now, pages of files with them."""
    try:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 256 << 20  # what it is about, where nothing tells


def collecting_bytes(plan: Plan, n_ctx: int) -> int:
    """Of letting a run of ids pass: caches, intermediates, one layer's weights at a time, and what is heard of it."""
    model = plan.model
    heard = 2 * (4 + 2) * plan.n_batch * max(model.n_ff, model.n_embd)
    layer = max(sum(weight.n_bytes for weight in _weights(each)) for each in model.layers)
    row = model.token_embd.row_bytes * n_ctx
    return host_memory(plan).kv_cache + host_arena_bytes(plan.graphs) + heard + layer + row + FIRST_STEPS


def chunk_bytes(model: Model, n_ctx: int) -> int:
    """Of what a worker hands over of a run of ids."""
    return model.n_layer * n_ctx * (2 * model.n_embd + -(-model.n_ff // 8))


def training_bytes(model: Model, rank: int, n_starts: int, n_threads: int) -> int:
    """Of training one layer's predictor."""
    n_embd, n_ff = model.n_embd, model.n_ff
    matrices = 4 * rank * (n_embd + n_ff)
    batch = BATCH * (4 * n_ff + n_ff + n_ff // 8 + 2 * 4 * rank + 10 * n_embd)
    in_work = n_threads * descent.TOKENS * n_ff * (4 + 4 + 2)
    steps = n_starts * 3 * matrices + matrices + batch + in_work
    searched = rank // 2 + starts.MORE
    rows = 4 * gate.ROWS * 3 * n_embd  # of the gate, out of blocks
    search = (
        4 * n_embd**2
        + 4 * searched * (3 * n_ff + 3 * n_embd)
        + rows
        + 3 * starts.TOKENS * 4 * n_embd
        + matrices
    )
    signs = 2 * rows + BATCH * (n_ff + 8 * n_embd) + n_threads * 20 * descent.TOKENS * gate.ROWS
    pages = 2 * samples.AT_ONCE * PAGES_OF_A_FAULT * os.sysconf("SC_PAGE_SIZE")
    return max(steps, search + (n_starts - 1) * 3 * matrices, signs) + pages + FIRST_STEPS


def within(
    bound: Bound, plan: Plan, settings: Settings, n_threads: int, n_workers: int
) -> tuple[Settings, str]:
    """The settings that stay below a bound, and what was chosen, in words.

    Args:
        n_workers: other processes that hand over what they collect, two runs of ids at a time each; 0 for none.

    Raises:
        DoesNotFitError: none do.
    """
    model = plan.model
    collecting = collecting_bytes(plan, plan.n_ctx) + (
        2 * n_workers * chunk_bytes(model, plan.n_ctx) if n_workers else 0
    )
    if collecting > bound.left:
        raise _too_little(bound, collecting, f"runs of {plan.n_ctx} ids pass", "raise it, or lower -c or -b")
    ranks = range(STEP_OF_RANK, model.n_embd + 1, STEP_OF_RANK) if settings.rank is None else [settings.rank]
    least = settings.rank or STEP_OF_RANK

    def fits(rank: int, n_starts: int) -> bool:
        return training_bytes(model, rank, n_starts, n_threads) <= bound.left

    if not fits(least, 1):
        needed = training_bytes(model, least, 1, n_threads)
        step = "raise it, or lower --rank or --threads"
        raise _too_little(bound, needed, f"a layer's predictor of rank {least} is trained", step)
    # a large rank is worth more than a random start, which has not won so far
    largest = max((rank for rank in ranks if fits(rank, 1)), default=least)
    both = fits(largest, 2)
    chosen = replace(settings, both_starts=both, largest_rank=None if settings.rank else largest)
    said = ["both starts are tried" if both else "only the gate's directions are tried as a start"]
    if settings.rank is None:
        said.append(
            f"ranks up to {largest}" if largest < model.n_embd // STEP_OF_RANK * STEP_OF_RANK else "all ranks"
        )
    needed = max(collecting, training_bytes(model, largest, 1 + both, n_threads))
    return (
        chosen,
        f"{', '.join(said)}; at most {(bound.own + needed) / MB:.0f} MB of {bound.n_bytes / MB:.0f} MB",
    )


def _weights(layer: Layer) -> list[Weight]:
    return [weight for weight in vars(layer).values() if weight is not None]


def _too_little(bound: Bound, needed: int, when: str, next_step: str) -> DoesNotFitError:
    asked = f"{bound.n_bytes / MB:.0f} MB"
    why = f"{(bound.own + needed) / MB:.0f} MB are taken when {when}, {bound.own / MB:.0f} of them by the program"
    return DoesNotFitError("--memory", asked, why, next_step)
