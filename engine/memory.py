"""Where every intermediate lies: offsets in one arena, from lifetimes.

A node's result needs its bytes from the node that makes it to the last node that reads it. Results
whose lifetimes do not overlap share bytes. A greedy best fit in the order of the steps is enough: a
transformer's graph has few results alive at once.
"""

from dataclasses import dataclass

from hotcold.engine.graph import Graph, Tensor

ALIGNMENT = 64  # a cache line, so that rows of float32 start on one


@dataclass(frozen=True)
class Entry:
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
        n_bytes: of the arena. peak_step: the step at which most of it is in use.
    """

    entries: tuple[Entry, ...]
    n_bytes: int
    peak_step: int

    def entry(self, name: str) -> Entry:
        """The place of one intermediate."""
        return next(entry for entry in self.entries if entry.name == name)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of all rows; a mask's rows are whole words of 64 bits."""
    n_tokens, n = tensor.shape
    return n_tokens * {"f32": 4 * n, "mask": -(-n // 64) * 8, "none": 0}[tensor.dtype]


def lifetimes(graph: Graph) -> dict[str, tuple[int, int]]:
    """First and last step of every result; the last node's result is the run's own array."""
    spans: dict[str, tuple[int, int]] = {}
    for step, node in enumerate(graph.nodes):
        spans[node.output.name] = (step, step)
        for operand in node.inputs:
            if isinstance(operand, Tensor):
                spans[operand.name] = (spans[operand.name][0], step)
    return spans


def offsets(graph: Graph) -> Arena:
    """Give every intermediate its bytes."""
    spans = lifetimes(graph)
    placed: list[Entry] = []
    for node in graph.nodes:
        n_bytes = -(-tensor_bytes(node.output) // ALIGNMENT) * ALIGNMENT
        if n_bytes and node.op != "logits":
            first, last = spans[node.output.name]
            living = [entry for entry in placed if entry.last_step >= first]
            placed.append(Entry(node.output.name, _best_gap(living, n_bytes), n_bytes, first, last))
    entries = tuple(_with_successors(entry, placed) for entry in placed)
    in_use = [
        sum(entry.n_bytes for entry in entries if entry.first_step <= step <= entry.last_step)
        for step in range(len(graph.nodes))
    ]
    total = max((entry.offset + entry.n_bytes for entry in entries), default=0)
    return Arena(entries, total, in_use.index(max(in_use)) if in_use else 0)


def _best_gap(living: list[Entry], n_bytes: int) -> int:
    """Offset of the smallest gap between living entries that holds n_bytes, else behind them all."""
    best, best_size, end = -1, 0, 0
    for entry in sorted(living, key=lambda entry: entry.offset):
        gap = entry.offset - end
        if gap >= n_bytes and (best < 0 or gap < best_size):
            best, best_size = end, gap
        end = max(end, entry.offset + entry.n_bytes)
    return end if best < 0 else best


def _with_successors(entry: Entry, placed: list[Entry]) -> Entry:
    """The entry with the names of those that take its bytes next."""
    names: list[str] = []
    free = [(entry.offset, entry.offset + entry.n_bytes)]
    for other in placed:
        if other.first_step <= entry.last_step:
            continue
        left = [piece for span in free for piece in _without(span, other)]
        if left != free:
            names.append(other.name)
            free = left
    return Entry(entry.name, entry.offset, entry.n_bytes, entry.first_step, entry.last_step, tuple(names))


def _without(span: tuple[int, int], other: Entry) -> list[tuple[int, int]]:
    """What is left of a span of bytes after `other` has taken its own."""
    begin, end = other.offset, other.offset + other.n_bytes
    pieces = [(span[0], min(span[1], begin)), (max(span[0], end), span[1])]
    return [piece for piece in pieces if piece[0] < piece[1]]
