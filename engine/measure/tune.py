"""The time of a token in each mode that a model can run in: predicted from statistics and speeds, and measured.

The prediction knows the model's shapes, which neurons a prompt of other tokens lists and fires, and what this machine
takes for a row, a neuron or a vector (`probes.py`); a token is the sum of its records (`token_time.py`). All
times are the least of some rounds over the same tokens, and of one thread its own, so that another program's
turn does not count.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.measure.activity import Activity, ActivityMeter
from hotcold.engine.measure.probes import Probes, clock_of
from hotcold.engine.measure.token_time import token_seconds, touched_bytes
from hotcold.engine.measure.traffic import sparse_token_bytes
from hotcold.kernels.cpu.team import Team

SEED, FIRST_ID = 0, 3
N_PROMPT, N_TOKENS = 64, 8
ROUNDS, SECONDS = 6, 2.0  # at least, and then on until a mode has had so long
EMPTY_RUNS = 200
N_CTX = N_PROMPT + N_TOKENS


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
    """Predict and measure all modes.

    Args:
        engines: on the CPU, of N_CTX positions at least and as many threads each, by mode.
    """
    first = next(iter(engines.values()))
    n_vocab, random = first.model.n_vocab, np.random.default_rng(SEED)
    ids = random.integers(min(FIRST_ID, n_vocab - 1), n_vocab, N_CTX).astype(np.int32)
    stats = {mode: _prompt(engine, ids[:N_PROMPT]) for mode, engine in engines.items()}
    with Team(first.n_threads) as team:
        touched = max(map(touched_bytes, engines.values()))
        probes = Probes(team, touched, first.file.all_data())
        predicted = {
            mode: token_seconds(engine, stats[mode], probes, _empty_run(engine, ids))
            for mode, engine in engines.items()
        }
    measured = _measured(engines, ids)
    found = []
    for mode, engine in engines.items():
        listed, firing = stats[mode].listed, stats[mode].firing
        total = sparse_token_bytes(engine.model, mode, list(listed), list(firing))
        computed = stats[mode].shares(engine.model.n_neurons)[1]
        found.append(ModeTime(mode, computed, total, predicted[mode], measured[mode]))
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
    clock = clock_of(engine.n_threads)
    for i in range(N_PROMPT, N_CTX):
        started = clock()
        engine.executor.run(ids[i : i + 1], i, logits)
        seconds.append(clock() - started)
    return seconds


def _empty_run(engine: Engine, ids: NDArray[np.int32]) -> float:
    """The least seconds of a run whose steps are not taken: what Python does for a token."""
    before, engine.executor.taking = engine.executor.taking, lambda steps, context: None
    logits, clock, seconds = np.empty((1, engine.model.n_vocab), np.float32), clock_of(engine.n_threads), []
    try:
        for _ in range(EMPTY_RUNS):
            started = clock()
            engine.executor.run(ids[N_PROMPT : N_PROMPT + 1], N_PROMPT, logits)
            seconds.append(clock() - started)
    finally:
        engine.executor.taking = before
    return min(seconds)


def _measured(engines: Mapping[str, Engine], ids: NDArray[np.int32]) -> dict[str, float]:
    """Seconds of a token, the modes in turns."""
    rounds: dict[str, list[list[float]]] = {mode: [] for mode in engines}
    until = time.perf_counter() + len(engines) * SECONDS
    while len(min(rounds.values(), key=len)) <= ROUNDS or time.perf_counter() < until:
        for mode, engine in engines.items():
            rounds[mode].append(_decode(engine, ids))
    return {mode: float(np.min(each[1:], axis=0).mean()) for mode, each in rounds.items()}
