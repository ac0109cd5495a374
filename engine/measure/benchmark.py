"""Speed of a loaded model: prompt and decode, beside what the machine's memory gives."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.measure.activity import ActivityMeter
from hotcold.errors import DoesNotFitError, SettingError
from hotcold.kernels.cpu.stream import StreamingSum

if TYPE_CHECKING:
    from rich.table import Table

SEED = 0
FIRST_ID = 3  # random ids leave out the control pieces


@dataclass(frozen=True)
class Measured:
    """One test of a benchmark.

    Attributes:
        test: "pp256" for a prompt of 256 tokens, "tg64" for 64 tokens decoded one by one.
        tokens_per_second, deviation: mean and standard deviation over the repetitions.
        bytes_a_token: of weights, as the mode reads them; 0 for a prompt, whose tokens share them, and where
            a device reads a part of them.
        bandwidth_share: bytes a second beside a streaming sum measured in turn; 0 where those are.
    """

    test: str
    tokens_per_second: float
    deviation: float
    bytes_a_token: float = 0.0
    bandwidth_share: float = 0.0

    def numbers(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        return asdict(self)


def run(engine: Engine, n_prompt: int, n_generate: int, repetitions: int) -> list[Measured]:
    """Time a prompt of n_prompt random tokens and n_generate decoding steps; 0 leaves one out.

    Raises:
        SettingError: both are 0.
        DoesNotFitError: more tokens than the context holds.
    """
    wanted = max(n_prompt, n_generate)
    if not wanted:
        raise SettingError("tests", "-p 0 and -n 0", "at least one above 0", "such as -n 64")
    if wanted > engine.n_ctx:
        raise DoesNotFitError("tokens of a test", wanted, f"the context holds {engine.n_ctx}", "raise -c")
    ids = (
        np.random.default_rng(SEED).integers(FIRST_ID, engine.model.n_vocab, max(wanted, 1)).astype(np.int32)
    )
    results = []
    if n_prompt:
        results.append(_prompt(engine, ids[:n_prompt], repetitions))
    if n_generate:
        results.append(_decode(engine, ids[:n_generate], repetitions))
    return results


def _prompt(engine: Engine, ids: NDArray[np.int32], repetitions: int) -> Measured:
    logits = np.empty((1, engine.model.n_vocab), np.float32)
    rates = []
    for i in range(repetitions + 1):
        start = time.perf_counter()
        for at in range(0, len(ids), engine.n_batch):
            last = at + engine.n_batch >= len(ids)
            engine.executor.run(ids[at : at + engine.n_batch], at, logits if last else None)
        if i:  # the first only warms up
            rates.append(len(ids) / (time.perf_counter() - start))
    return Measured(f"pp{len(ids)}", float(np.mean(rates)), float(np.std(rates)))


def _decode(engine: Engine, ids: NDArray[np.int32], repetitions: int) -> Measured:
    logits = np.empty((1, engine.model.n_vocab), np.float32)
    engine.executor.run(ids[:1], 0, logits)
    meter, stream = ActivityMeter(engine), StreamingSum(engine.n_threads)
    views, rates, streamed = engine.file.all_data(), [], []
    sum(map(stream.sum, views))  # pages of the map come in here, not in the figure
    try:
        for _ in range(repetitions):
            start = time.perf_counter()
            for i in range(len(ids)):
                engine.executor.run(ids[i : i + 1], i, logits)
            rates.append(len(ids) / (time.perf_counter() - start))
            start = time.perf_counter()
            n_bytes = sum(map(stream.sum, views))
            streamed.append(n_bytes / (time.perf_counter() - start))
    finally:
        stream.close()
    n_bytes_a_token = meter.read(len(ids) * repetitions).bytes_a_token
    rate = float(np.mean(rates))
    share = rate * n_bytes_a_token / float(np.max(streamed)) if max(streamed) else 0.0
    return Measured(f"tg{len(ids)}", rate, float(np.std(rates)), n_bytes_a_token, share)


def table(results: list[Measured]) -> "Table":
    """A row a test; dashes where a figure has no meaning."""
    from rich.table import Table

    rows = Table()
    for title in ("test", "tokens/s", "MB a token", "of bandwidth"):
        rows.add_column(title, justify="left" if title == "test" else "right")
    for result in results:
        read = (f"{result.bytes_a_token / 1e6:.2f}", f"{result.bandwidth_share:.0%}")
        rate = f"{result.tokens_per_second:.1f} ± {result.deviation:.1f}"
        rows.add_row(result.test, rate, *(read if result.bytes_a_token else ("-", "-")))
    return rows
