"""The time of a token in each mode that a model can run in: predicted from statistics and speeds, beside a measured one.

Speeds are this machine's on this model: the nodes of some tokens are timed one by one, and a line through the FFNs of a
mode tells what one takes to start and what a byte takes. The dense mode's whole token says by what factor its nodes
take longer, or less, in one walk. A sparse mode's token is then

    dense token - its FFNs + sum over layers (start + bytes / speed)

with the bytes of predictors, and of the neurons that a prompt of other tokens lists and fires. All times are the least of some rounds over
the same tokens, so that another program's turn does not count.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.measure.activity import Activity, ActivityMeter
from hotcold.engine.measure.traffic import sparse_token_bytes
from hotcold.engine.run.trace import Taken, Tracing, weight_bytes

SEED, FIRST_ID = 0, 3
N_PROMPT, N_TOKENS = 64, 8
ROUNDS, SECONDS = 6, 2.0  # at least, and then on until a mode has had so long
N_CTX = N_PROMPT + N_TOKENS
FFN_NODES = "ffn_out-", "ffn_moe_out-"
Times = dict[tuple[str, int], float]
"""The least seconds of a node at a position."""


@dataclass(frozen=True)
class ModeTime:
    """One mode.

    Attributes:
        computed: part of the neurons, by the prompt.
        n_bytes: of weights a token.
        predicted, measured: seconds of a token.
    """

    mode: str
    computed: float
    n_bytes: float
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Of the prediction, as a part of the measured time."""
        return self.predicted / self.measured - 1

    def numbers(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        return asdict(self) | {"error": self.error}


def tune(engines: Mapping[str, Engine]) -> list[ModeTime]:
    """Predict and measure all modes; "off" has to be among them.

    Args:
        engines: on the CPU, of N_CTX positions at least, by mode.
    """
    random = np.random.default_rng(SEED)
    n_vocab = engines["off"].model.n_vocab
    ids = random.integers(min(FIRST_ID, n_vocab - 1), n_vocab, N_CTX).astype(np.int32)
    stats = {mode: _prompt(engine, ids[:N_PROMPT]) for mode, engine in engines.items()}
    measured = _measured(engines, ids)
    dense = _means(_traced(engines["off"], ids)[0])
    whole = measured["off"] / sum(dense.values())  # of the nodes' times, what they take in one walk
    ffns = [dense[name] for name in dense if name.startswith(FFN_NODES)]
    rest = measured["off"] - whole * sum(ffns)
    found = []
    for mode, engine in engines.items():
        predicted = measured["off"] if mode == "off" else rest + whole * _ffns(engine, stats[mode], ids)
        listed, firing = stats[mode].listed, stats[mode].firing
        total = sparse_token_bytes(engine.model, mode, list(listed), list(firing))
        found.append(
            ModeTime(mode, stats[mode].shares(engine.model.n_neurons)[1], total, predicted, measured[mode])
        )
    return found


def _prompt(engine: Engine, ids: NDArray[np.int32]) -> Activity:
    """What a prompt's tokens list and fire; the cache has it from here on."""
    meter = ActivityMeter(engine)
    for at in range(0, len(ids), engine.n_batch):
        engine.executor.run(ids[at : at + engine.n_batch], at)
    return meter.read(len(ids))


def _decode(engine: Engine, ids: NDArray[np.int32]) -> list[float]:
    """Seconds of each token behind the prompt."""
    logits, seconds = np.empty((1, engine.model.n_vocab), np.float32), []
    for i in range(N_PROMPT, N_CTX):
        started = time.perf_counter()
        engine.executor.run(ids[i : i + 1], i, logits)
        seconds.append(time.perf_counter() - started)
    return seconds


def _measured(engines: Mapping[str, Engine], ids: NDArray[np.int32]) -> dict[str, float]:
    """Seconds of a token, the modes in turns."""
    rounds: dict[str, list[list[float]]] = {mode: [] for mode in engines}
    until = time.perf_counter() + len(engines) * SECONDS
    while len(rounds["off"]) <= ROUNDS or time.perf_counter() < until:
        for mode, engine in engines.items():
            rounds[mode].append(_decode(engine, ids))
    return {mode: float(np.min(each[1:], axis=0).mean()) for mode, each in rounds.items()}


def _traced(engine: Engine, ids: NDArray[np.int32]) -> tuple[Times, dict[str, float]]:
    """The least seconds of each node at each position, and the mean bytes of weights that it reads."""
    times: Times = {}
    read: dict[str, list[float]] = defaultdict(list)
    position, before = 0, engine.executor.taking

    def hear(taken: Taken) -> None:
        key = taken.node.name, position
        times[key] = min(taken.seconds, times.get(key, np.inf))
        read[taken.node.name].append(weight_bytes(taken.node, 1, taken.counted))

    logits = np.empty((1, engine.model.n_vocab), np.float32)
    engine.executor.taking = Tracing(engine.executor, hear)
    try:
        n, until = 0, time.perf_counter() + SECONDS
        while n < ROUNDS or time.perf_counter() < until:
            for position in range(N_PROMPT, N_CTX):
                engine.executor.run(ids[position : position + 1], position, logits)
            n += 1
    finally:
        engine.executor.taking = before
    return times, {name: float(np.mean(each)) for name, each in read.items()}


def _means(times: Times) -> dict[str, float]:
    """Of each node over the positions."""
    of_node: dict[str, list[float]] = defaultdict(list)
    for (name, _), seconds in times.items():
        of_node[name].append(seconds)
    return {name: float(np.mean(each)) for name, each in of_node.items()}


def _line(n_bytes: NDArray[np.float64], seconds: NDArray[np.float64]) -> tuple[float, float]:
    """Seconds of a node without bytes, and of a byte, by a line through some nodes."""
    if np.ptp(n_bytes) > 0:
        slope, start = np.polyfit(n_bytes, seconds, 1, w=1 / seconds)
        if slope > 0 and start >= 0:
            return float(start), float(slope)
    return 0.0, float(seconds.sum() / n_bytes.sum())


def _ffns(engine: Engine, stats: Activity, ids: NDArray[np.int32]) -> float:
    """Seconds of a sparse mode's FFNs, from the bytes of what a prompt lists and fires, and of its predictors."""
    times, n_bytes = _traced(engine, ids)
    means, bytes_of = _means(times), _ffn_bytes(engine, stats)
    names = [name for name in means if name.startswith(FFN_NODES)]
    start, of_byte = _line(*(np.array([each[name] for name in names]) for each in (n_bytes, means)))
    predictors = [
        layer.fc1.n_bytes + layer.fc2.n_bytes for layer in engine.model.layers if layer.fc1 and layer.fc2
    ]
    read = sum(bytes_of) + sum(predictors) * (engine.sparsity == "predictor")
    return len(bytes_of) * start + of_byte * read


def _ffn_bytes(engine: Engine, stats: Activity) -> list[float]:
    """Of each layer's FFN, for a token that lists and fires as the prompt's did."""
    model, none = engine.model, [0.0] * engine.model.n_layer

    def total(listed: list[float], firing: list[float]) -> float:
        return sparse_token_bytes(model, "exact", listed, firing)

    pairs = zip(stats.listed, stats.firing, strict=True)
    return [total(_at(none, i, a), _at(none, i, b)) - total(none, none) for i, (a, b) in enumerate(pairs)]


def _at(values: list[float], i: int, value: float) -> list[float]:
    return [*values[:i], value, *values[i + 1 :]]
