"""Where intermediates lie: offsets in one arena, from lifetimes.

A node's result needs its bytes from the node that makes it to the last node that reads it. Results
whose lifetimes do not overlap share bytes. A greedy best fit in the order of the steps is enough: a
transformer's graph has few results alive at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from hotcold.engine.graph.graph import Tensor
from hotcold.kernels.formats import chosen_bytes, mask_bytes, quantised_bytes

ALIGNMENT = 64  # a cache line, so that rows of float32 start on one
PART_ALIGNMENT = 16  # of what lies side by side, so that kernels can read vectors of four


@dataclass(frozen=True)
class ArenaSlot:
    """One intermediate's place.

    Attributes:
        offset, n_bytes: in the arena; n_bytes is a multiple of ALIGNMENT.
        first_step, last_step: numbers of the node that makes it and of the last that reads it.
        reused_by: intermediates that take some of its bytes next.
    """

    name: str
    offset: int
    n_bytes: int
    first_step: int
    last_step: int
    reused_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arena:
    """All intermediates of a graph that need memory, in the order of their steps.

    Attributes:
        n_bytes: of the arena.
        peak_step: the step at which most of it is in use.
    """

    slots: tuple[ArenaSlot, ...]
    n_bytes: int
    peak_step: int

    def slot(self, name: str) -> ArenaSlot:
        """The place of one intermediate."""
        return next(slot for slot in self.slots if slot.name == name)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of all rows."""
    n_tokens, n = tensor.shape
    row_bytes = {"f32": 4 * n, "mask": mask_bytes(n), "q8": quantised_bytes(1, n), "none": 0}
    row_bytes["chosen"] = chosen_bytes(1, n)
    return n_tokens * row_bytes[tensor.dtype]


def bytes_together(tensors: tuple[Tensor, ...]) -> int:
    """Bytes of intermediates that lie side by side, each but the last padded to 16."""
    return places_together(tensors)[-1] + tensor_bytes(tensors[-1])


def places_together(tensors: tuple[Tensor, ...]) -> list[int]:
    """Where each of them begins."""
    padded = [-(-tensor_bytes(tensor) // PART_ALIGNMENT) * PART_ALIGNMENT for tensor in tensors[:-1]]
    return list(accumulate(padded, initial=0))


def aligned(n_bytes: int) -> int:
    """Whole cache lines."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Span:
    """One intermediate that wants bytes, from the step that makes it to the last that reads it."""

    name: str
    n_bytes: int
    first_step: int
    last_step: int


def arrange(spans: Sequence[Span], n_steps: int) -> Arena:
    """An arena for spans in the order of their first steps; those without bytes get no slot."""
    living: list[ArenaSlot] = []
    placed: list[ArenaSlot] = []
    for span in spans:
        if not span.n_bytes:
            continue
        living = [slot for slot in living if slot.last_step >= span.first_step]
        offset = _best_gap(living, span.n_bytes)
        slot = ArenaSlot(span.name, offset, span.n_bytes, span.first_step, span.last_step)
        living.append(slot)
        placed.append(slot)
    successors = _successors(placed)
    slots = tuple(
        ArenaSlot(e.name, e.offset, e.n_bytes, e.first_step, e.last_step, tuple(names))
        for e, names in zip(placed, successors, strict=True)
    )
    total = max((slot.offset + slot.n_bytes for slot in slots), default=0)
    return Arena(slots, total, _peak_step(slots, n_steps))


def _peak_step(slots: tuple[ArenaSlot, ...], n_steps: int) -> int:
    """The first step at which most bytes are in use."""
    changes = [0] * (n_steps + 1)
    for slot in slots:
        changes[slot.first_step] += slot.n_bytes
        changes[slot.last_step + 1] -= slot.n_bytes
    in_use = list(accumulate(changes[:n_steps]))
    return in_use.index(max(in_use)) if in_use else 0


def _best_gap(living: list[ArenaSlot], n_bytes: int) -> int:
    """Offset of the smallest gap between living slots that holds n_bytes, else behind them all."""
    best, best_size, end = -1, 0, 0
    for slot in sorted(living, key=lambda slot: slot.offset):
        gap = slot.offset - end
        if gap >= n_bytes and (best < 0 or gap < best_size):
            best, best_size = end, gap
        end = max(end, slot.offset + slot.n_bytes)
    return end if best < 0 else best


def _successors(placed: list[ArenaSlot]) -> list[list[str]]:
    """For each slot the names of those that take its bytes next.

    Each byte of the arena belongs to the last slot that took it, so a slot succeeds those whose
    pieces it takes.
    """
    names: list[list[str]] = [[] for _ in placed]
    owned: list[tuple[int, int, int]] = []  # begin, end, number of the owner
    for i, slot in enumerate(placed):
        begin, end = slot.offset, slot.offset + slot.n_bytes
        left = []
        for piece_begin, piece_end, owner in owned:
            if piece_begin < end and begin < piece_end and names[owner][-1:] != [slot.name]:
                names[owner].append(slot.name)
            left.append((piece_begin, min(piece_end, begin), owner))
            left.append((max(piece_begin, end), piece_end, owner))
        owned = [*(piece for piece in left if piece[0] < piece[1]), (begin, end, i)]
    return names
