"""Perplexity of a text by llama.cpp's definition.

The text's ids, BOS first where the model wants one, are cut into chunks of n_ctx; an incomplete last
chunk is dropped. Each chunk runs from an empty cache, with BOS in its first place where the model wants
one. Scored are the ids behind the first half: exp of the mean of -ln p over all of them.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.logprobs import perplexity_of
from hotcold.engine.generation.not_finite import check_finite, overflow_warning
from hotcold.engine.measure.activity import Activity, ActivityMeter
from hotcold.errors import DoesNotFitError, SettingError

DEFINITION = (
    "second half of each chunk of n_ctx ids, BOS first if the model wants it, as llama.cpp defines it"
)
LOGITS_BYTES = 64 << 20  # of logits that are held at once

Run = Callable[[NDArray[np.int32], int, NDArray[np.float32] | None], None]
Progress = Callable[[int, int, float], None]
"""Hears ids that have passed, ids in all, and the perplexity so far: NaN before the first chunk's end."""


@dataclass(frozen=True)
class Perplexity:
    """The figure and where it comes from.

    Attributes:
        value: perplexity.
        deviation: its standard error; infinite where a single id is scored.
        chunk_nlls: sums of -ln p, a chunk each.
        n_scored: ids over all chunks.
        findings: what a user should know of the model, one line each.
    """

    value: float
    deviation: float
    n_ctx: int
    n_scored: int
    chunk_nlls: tuple[float, ...]
    n_tokens: int
    seconds: float
    sparsity: str
    threshold: float | None
    activity: Activity
    findings: tuple[str, ...] = ()

    def numbers(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        numbers = asdict(self) | {"definition": DEFINITION}
        del numbers["findings"]
        return finite_numbers(numbers)


def finite_numbers(numbers: dict[str, Any]) -> dict[str, Any]:
    """The same with None for what is infinite, which JSON has no word for."""
    return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in numbers.items()}


def negative_log_likelihoods(logits: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.float64]:
    """-ln softmax(logits)[id] for each row: [n]."""
    wide = logits.astype(np.float64)
    top = wide.max(1)
    total: NDArray[np.float64] = np.log(np.exp(wide - top[:, None]).sum(1)) + top
    return total - wide[np.arange(len(ids)), ids]


def measure(engine: Engine, text: bytes, progress: Progress | None = None) -> Perplexity:
    """Perplexity of a text with chunks of the engine's n_ctx.

    Args:
        progress: hears at once, and whenever ids have passed.

    Raises:
        DoesNotFitError: a text of fewer than n_ctx ids.
        SettingError: n_ctx below 4.
    """
    n_ctx = engine.n_ctx
    ids = np.array(engine.tokenizer.encode(text), np.int32)
    n_chunks = len(ids) // n_ctx
    if not n_chunks:
        raise DoesNotFitError(
            "text", f"{len(ids)} ids", f"a chunk needs n_ctx = {n_ctx}", "lower -c, or take a longer text"
        )
    return of_chunks(engine, ids[: n_chunks * n_ctx].reshape(n_chunks, n_ctx), progress)


def of_chunks(engine: Engine, chunks: NDArray[np.int32], progress: Progress | None = None) -> Perplexity:
    """The same of a text that is cut already.

    Args:
        chunks: int32 [n_chunks, n_ctx].
    """
    n_chunks, n_ctx = chunks.shape
    if n_ctx < 4:
        raise SettingError("n_ctx", n_ctx, "at least 4 for a perplexity", "raise -c")
    start, meter = time.perf_counter(), ActivityMeter(engine)
    nlls, hidden, n_passed, so_far = list[NDArray[np.float64]](), "", 0, math.nan

    def passed(n: int) -> None:
        nonlocal n_passed
        n_passed += n
        if progress is not None:
            progress(n_passed, chunks.size, so_far)

    passed(0)
    first = engine.first_prompt
    for chunk in chunks:
        run = engine.executor.run if first.is_over else first.run
        nlls.append(_chunk(engine, chunk.copy(), run, passed))
        first.is_over = True
        hidden = hidden or overflow_warning(
            engine.executor, n_ctx, "perplexity"
        )  # the next chunk's keys replace these
        so_far = perplexity_of(np.concatenate(nlls).mean())
        passed(0)
    every = np.concatenate(nlls)
    value = perplexity_of(every.mean())
    return Perplexity(
        value=value,
        deviation=value * float(every.std(ddof=1)) / math.sqrt(len(every)) if len(every) > 1 else math.inf,
        n_ctx=n_ctx,
        n_scored=len(every),
        chunk_nlls=tuple(float(nll.sum()) for nll in nlls),
        n_tokens=n_chunks * n_ctx,
        seconds=time.perf_counter() - start,
        sparsity=engine.sparsity,
        threshold=engine.model.sparse_threshold if engine.sparsity == "predictor" else None,
        activity=meter.read(n_chunks * n_ctx),
        findings=(*first.warnings, *filter(None, (hidden,))),
    )


def _chunk(
    engine: Engine, ids: NDArray[np.int32], run: Run, passed: Callable[[int], None]
) -> NDArray[np.float64]:
    """-ln p of the ids behind the first half of one chunk; `passed` hears how many ids have."""
    if engine.tokenizer.add_bos and engine.tokenizer.bos is not None:
        ids[0] = engine.tokenizer.bos
    half = len(ids) // 2
    for at in range(0, half, engine.n_batch):
        some = ids[at : min(at + engine.n_batch, half)]
        run(some, at, None)
        passed(len(some))
    step = max(1, min(engine.n_batch, LOGITS_BYTES // (4 * engine.model.n_vocab)))
    logits = np.empty((step, engine.model.n_vocab), np.float32)
    nlls = []
    for at in range(half, len(ids), step):
        some = ids[at : at + step]
        engine.executor.run(some, at, logits[: len(some)])
        check_finite(logits[: len(some)], engine.executor, engine.file)
        following = ids[at + 1 : at + 1 + len(some)]
        nlls.append(negative_log_likelihoods(logits[: len(following)], following))
        passed(len(some))
    return np.concatenate(nlls)
