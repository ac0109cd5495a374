"""What the pieces of a token take on this machine: rows of matrices, neurons of an FFN, vectors, a walk, a run.

Each figure comes from records over a ring of memory, which they walk through from end to end again and again: as many
bytes as the weights that a token may touch, so that they come from the cache or the memory that these would
come from. Rows of matrices lie anywhere in the model's file, whatever its bytes mean there, since one file's
pages lie otherwise in memory than another's. Neurons need numbers that are finite, and lie in a file of the
probes' own. Rows are timed at lengths that are powers of two, and others lie between their neighbours; the
rest is a start and a number of rows.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.host.records import Record
from hotcold.errors import FileError
from hotcold.kernels.cpu import pack, program, rows, sizes
from hotcold.kernels.cpu.team import Program, Team

Pieces = ParamSpec("Pieces")
Figure = TypeVar("Figure")
LEAST_BYTES, MOST_BYTES = 1 << 20, 256 << 20  # of the ring
OWN_BYTES = 16 << 20  # of tables and caches, at least
BETWEEN_BYTES = 64 << 10, 1 << 20  # of weights between two vectors' records, at least and at most
ROUNDS, SECONDS = 5, 0.1  # at least, and then on until a probe has had so long
N_PAST = 64  # where the tokens stand
ADDRESSES = ("x", "z", "y", "w", "w1", "scratch", "listed", "n_listed", "counts")
LISTED = 8  # one neuron in eight, where few are listed
FEWEST, PARTS = 16, 16  # records of a walk at least; walks that the records of a ring are cut into at most
NONE, HALF, EVERY = "none", "half", "every"
RELU = program.RELU_ACTIVATION
WITH_CACHE = program.KV_STORE, program.ATTENTION, program.ATTENTION_JOIN
VECTORS = (
    *(program.EMBED, program.POSITIONS, program.RMS_NORM, program.LAYER_NORM, program.PACK, program.ROPE),
    *(program.ADD, program.ACT_MUL, program.REDUCE, program.MASK, program.RELU, program.GELU, program.SCALE),
    *(program.MUL_SIGMOID, *WITH_CACHE),
)
"""Ops that read vectors of fixed sizes, tables and caches, which can lie anywhere."""


@dataclass(frozen=True)
class Rows:
    """Products of one vector with rows of a length: seconds of a matrix to start and of a row.

    Attributes:
        of_one: of a matrix that one thread takes alone. of_all: of one that all share.
    """

    of_one: tuple[float, float]
    of_all: tuple[float, float]


@dataclass(frozen=True)
class Neurons:
    """An FFN by neurons, in seconds.

    Attributes:
        starts: without any row; and of the first that fires.
        gate, listed_gate: of a gate row in order, and of one of a list.
        others: of a neuron's up and down rows, where one in four at most is computed, one in two, and all.
    """

    starts: tuple[float, float]
    gate: float
    listed_gate: float
    others: tuple[float, float, float]


def _once(
    probe: Callable[Concatenate["Probes", Pieces], Figure],
) -> Callable[Concatenate["Probes", Pieces], Figure]:
    """Have a figure of some pieces measured once.

    The probes keep it: a cache around a bound method keeps the probes in turn, and their rings, until garbage
    is collected.
    """

    @wraps(probe)
    def known(probes: "Probes", /, *pieces: Pieces.args, **named: Pieces.kwargs) -> Figure:
        place = (probe.__name__, *pieces, *named.items())
        if place not in probes._known:
            probes._known[place] = probe(probes, *pieces, **named)
        found: Figure = probes._known[place]
        return found

    return known


class Probes:
    """Times pieces, each once.

    Args:
        team: that walks them.
        n_bytes: of weights that a token may touch.
        weights: the model's file in memory, in its parts.
    """

    def __init__(self, team: Team, n_bytes: int, weights: Sequence[NDArray[np.uint8]]) -> None:
        self._team = team
        self._n_ring = max(LEAST_BYTES, min(n_bytes, MOST_BYTES))
        self._ring, self._own = _mapped(self._n_ring), program.aligned(OWN_BYTES)
        largest = max(weights, key=len)
        self._weights = self._ring if len(largest) < self._n_ring else largest[: self._n_ring]
        self._zeros = np.zeros(8, np.int64)
        self._vectors = {name: program.aligned(4 << 20) for name in ADDRESSES}
        for each in self._vectors.values():  # one number in eight is above zero
            each.view(np.float32)[:] = np.where(np.arange(each.size // 4) % LISTED == 0, 1, -1)
        self._known = dict[object, Any]()
        self.n_threads, self.clock = team.n, clock_of(team.n)

    def seconds(self, *programs: Sequence[Record]) -> list[float]:
        """The least that a walk through each program's records takes, one token; all in turns."""
        jobs = [Program([*records]) for records in programs]
        for job in jobs:
            job.run[program.N_TOKENS], job.run[program.N_PAST] = 1, N_PAST
            job.run[program.TOKEN_IDS] = self._zeros.ctypes.data
        found, until = [list[float]() for _ in jobs], time.perf_counter() + SECONDS * min(len(jobs), 4)
        while len(found[0]) <= ROUNDS or time.perf_counter() < until:
            for job, times in zip(jobs, found, strict=True):
                started = self.clock()
                self._team.walk(job)
                times.append(self.clock() - started)
        return [min(times[1:]) for times in found]

    def _each(self, records: Sequence[Record]) -> float:
        """Seconds of one of the records, without the walk's own; a few go round several times.

        Many are walked part by part, each of which is so short that it comes through undisturbed now and then.
        """
        often = [*records] * max(1, FEWEST // len(records))
        parts = max(1, min(PARTS, len(often) // FEWEST))
        walks = [often[len(often) * i // parts : len(often) * (i + 1) // parts] for i in range(parts)]
        return max(0.0, sum(self.seconds(*walks)) - parts * self.walk()) / len(often)

    def vectors(self, groups: Sequence[Sequence[Record]]) -> float:
        """Seconds of the records that read vectors and caches alone, in their order, on vectors of their sizes.

        Between two groups weights pass, as many as do in the model on the average, since they drive vectors and caches
        out of the caches of the machine.
        """
        records = [record for group in groups for record in group]
        if not records:
            return 0.0
        caches: dict[int, int] = {}
        of_caches = {each["w"]: _cache_bytes(each) for each in records if each["code"] in WITH_CACHE}
        if 2 * sum(of_caches.values()) > self._own.size:
            self._own = program.aligned(2 * sum(of_caches.values()))
        self._n_caches = 0  # bytes of those that have a place
        between = min(max(BETWEEN_BYTES[0], self._n_ring // len(groups)), BETWEEN_BYTES[1])
        n_rows = max(32, between // sizes.row_bytes(rows.Q8_0_ID, 1024))
        weights = self._matrix_records(rows.Q8_0_ID, 1024, n_rows, 1)
        together, alone = list[Record](), list[Record]()
        for i, group in enumerate(groups):
            passing = weights[i % len(weights)]
            alone.append(passing)
            together += [passing, *(self._on_own_memory(record, caches) for record in group)]
        both, weights_alone = self.seconds(together, alone)
        return max(0.0, both - weights_alone)

    def _on_own_memory(self, record: Record, caches: dict[int, int]) -> Record:
        """The record with vectors, tables and caches of the probes' own in place of a model's.

        Args:
            caches: where each cache of the model lies, so far.
        """
        moved = dict(record)
        for name in ADDRESSES:
            if record.get(name):
                moved[name] = self._vectors[name].ctypes.data
        if record["code"] in (program.EMBED, program.POSITIONS, program.ROPE):
            moved["w"] = _address(self._own)
        if record["code"] in WITH_CACHE:
            for name in ("w", "w1"):
                moved[name] = _address(self._own) + caches.setdefault(record[name], self._n_caches)
                self._n_caches = max(self._n_caches, caches[record[name]] + _cache_bytes(record))
        return moved

    @_once
    def walk(self) -> float:
        """Seconds of a walk, without what it does."""
        record = {"code": program.ADD, "chunks": 1, "k": 16, "x_stride": 64, "y_stride": 64, "z_stride": 64}
        at = {name: self._vectors[name].ctypes.data for name in ("x", "y", "z")}
        return self.seconds([record | at])[0]

    @_once
    def rows(self, type_id: int, k: int) -> Rows:
        """Of the type and the length of a matrix's rows."""
        stride = sizes.row_bytes(type_id, k)
        few = 32, 128
        of_one = _line(few, [self._matrices(type_id, k, n, 1) for n in few])
        large = min(4 << 20, self._n_ring // 2) // stride // 32 * 32
        counts = max(64, large // 4), max(128, large)
        times = [self._matrices(type_id, k, n, program.row_chunks(n, stride)) for n in counts]
        return Rows(of_one, _line(counts, times))

    def _matrices(self, type_id: int, k: int, n_rows: int, chunks: int) -> float:
        """Seconds of one of the matrices that the ring has room for."""
        records = self._matrix_records(type_id, k, n_rows, chunks)
        return self._each(records)

    def _matrix_records(self, type_id: int, k: int, n_rows: int, chunks: int) -> list[Record]:
        stride = sizes.row_bytes(type_id, k)
        shape = {"chunks": chunks, "n_rows": n_rows, "k": k, "x": self._input(type_id, k), "w_stride": stride}
        shape |= {"code": program.MAT_VEC, "w_type": type_id, "y": self._vectors["y"].ctypes.data}
        return [{**shape, "w": base} for base in _places(self._weights, n_rows * stride)]

    @_once
    def down(self, type_id: int, k: int) -> tuple[float, float]:
        """Seconds of a hidden vector times rows of down, to start and of a row; one number in eight is zero."""
        stride, hidden = sizes.row_bytes(type_id, k), self._vectors["z"].ctypes.data
        shape = {"code": program.DOWN_ROWS, "chunks": max(1, k // 256), "k": k, "n_parts": program.PIECES}
        shape |= {"w_type": type_id, "w_stride": stride, "y": self._vectors["y"].ctypes.data, "x": hidden}
        counts = 128, 512
        times = []
        for n in counts:
            bases = _places(self._weights, n * stride)
            times.append(self._each([{**shape, "w": base, "n_rows": n} for base in bases]))
        return _line(counts, times)

    @_once
    def neurons(self, types: tuple[int, ...], k: int, activation: int, pieces: int) -> Neurons:
        """By the types of gate (if there is one), up and down, the length of their rows, and the rest."""
        strides = [sizes.row_bytes(each, k) for each in types]
        n = max(64, min(2048, self._n_ring // sum(strides) // 2))
        drawn = np.random.default_rng(0).permutation(n)
        lists = [np.sort(drawn[:count]) for count in (n // LISTED, n // 2, n)]
        timed = partial(self._ffns, types, k, activation, pieces, n)
        idle = [timed(which, NONE)[0] for which in lists]
        (some, n_some), (more, n_more), (most, n_most) = (timed(which, HALF) for which in lists)
        every = timed(lists[2], EVERY)[0]
        start, listed = _line((lists[0].size, lists[1].size), idle[:2])
        of_firing, other = _line((n_some, n_more), (max(0.0, some - idle[0]), max(0.0, more - idle[1])))
        half, whole = (max(0.0, t - idle[2] - of_firing) / m for t, m in ((most, n_most), (every, n)))
        return Neurons((start, of_firing), max(0.0, idle[2] - start) / n, listed, (other, half, whole))

    def _ffns(
        self,
        types: tuple[int, ...],
        k: int,
        activation: int,
        pieces: int,
        n: int,
        which: NDArray[np.int64],
        firing: str,
    ) -> tuple[float, int]:
        """Seconds of one FFN of n neurons, of which these are listed, and how many fire: by chance about half."""
        strides = [sizes.row_bytes(each, k) for each in types]
        names = ("w", "w1", "w2") if len(types) == 3 else ("w", "w2")
        listed, counts = which.astype(np.int64), np.zeros((program.MAX_CHUNKS, 2), np.int64)
        least = np.full(n, np.inf, np.float32)
        least[np.random.default_rng(2).random(n) < {NONE: 0.0, HALF: 0.5, EVERY: 1.0}[firing]] = 0
        length, partial_sums = np.array([listed.size], np.int64), program.aligned(4 * program.MAX_PIECES * k)
        shape: Record = {"code": program.SPARSE_FFN, "chunks": pieces, "n_rows": n, "k": k}
        shape["activation"] = activation
        shape |= {"scratch": partial_sums.ctypes.data, "scratch_stride": 4 * k, "counts": counts.ctypes.data}
        if listed.size < n:  # all are read in order
            shape |= {"listed": listed.ctypes.data, "n_listed": length.ctypes.data}
        shape |= {"skip": int(firing != EVERY), "x": self._input(types[0], k, int(firing != NONE))}
        if len(types) == 3:
            shape["z"] = self._input(types[1], k)
        if activation in (program.SILU_ACTIVATION, program.GELU_ACTIVATION):
            shape["least"] = least.ctypes.data
        for name, each, stride in zip(names, types, strides, strict=True):
            shape |= {f"{name}_type": each, f"{name}_stride": stride}
        records = []
        for base in _places(self._ring, n * sum(strides)):
            at = dict(zip(names, (base + n * sum(strides[:i]) for i in range(3)), strict=False))
            records.append({**shape, **at})
        seconds = self._each(records)
        n_fired = counts[:, 1].sum() / max(1, counts[:, 0].sum()) * listed.size
        return seconds, max(1, round(n_fired))

    def _input(self, type_id: int, k: int, number: int = 1) -> int:
        """The address of a vector of a number, as a matrix of the type wants it."""
        return _address(_inputs(sizes.is_quantised(type_id), k, number))


def _places(ring: NDArray[np.uint8], n_bytes: int) -> list[int]:
    """Where things of so many bytes lie in a ring."""
    each = -(-n_bytes // 64) * 64
    # the next is not where the last one ended
    places = np.random.default_rng(1).permutation(len(ring) // each)
    return [_address(ring) + int(i) * each for i in places]


@lru_cache(maxsize=64)
def _inputs(is_packed: bool, k: int, number: int) -> NDArray[np.uint8]:
    plain = program.aligned(4 * k)
    plain.view(np.float32)[:] = number
    if not is_packed:
        return plain
    out = program.aligned(sizes.packed_bytes(k))
    pack.pack_row(plain.ctypes.data, k, out.ctypes.data)
    return out


def clock_of(n_threads: int) -> Callable[[], float]:
    """What times are read from: of one thread its own, which other programs' turns do not count in."""
    return time.thread_time if n_threads == 1 else time.perf_counter


def at_length(k: int, of: Callable[[int], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Figures for rows of k numbers, from those of the powers of two around it."""
    low = 1 << (k.bit_length() - 1)
    if low == k:
        return of(k)
    share = (k - low) / low
    return (1 - share) * of(low) + share * of(2 * low)


def _line(counts: tuple[int, int], seconds: Sequence[float]) -> tuple[float, float]:
    """The start and the slope of the line through two points, neither below zero."""
    slope = float(seconds[1] - seconds[0]) / (counts[1] - counts[0])
    start = float(seconds[0]) - slope * counts[0]
    return (start, slope) if slope > 0 and start >= 0 else (0.0, float(seconds[1]) / counts[1])


def _cache_bytes(record: Record) -> int:
    """Of a layer's keys, or of its values."""
    return int(record["n_head_kv"] * record["w1_stride"])


def _mapped(n_bytes: int) -> NDArray[np.uint8]:
    """Random bytes of a mapped file, as weights lie: pages of anonymous memory are slower or faster than a file's.

    As halves and as floats they are finite, of either sign.

    Raises:
        FileError: no room for a temporary file.
    """
    # 0xBF: the exponent's first bit is 0
    drawn = np.random.default_rng(3).integers(0, 256, 1 << 20, np.uint8) & 0xBF
    try:
        with tempfile.TemporaryFile() as file:
            for first in range(0, n_bytes, drawn.size):
                file.write(drawn[: n_bytes - first].tobytes())
            file.flush()
            return np.memmap(file, np.uint8, "r")
    except OSError as error:
        found = f"{n_bytes} bytes cannot be written: {error.strerror}"
        raise FileError("temporary file", tempfile.gettempdir(), found, "make room, or set TMPDIR") from error


def _address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)
