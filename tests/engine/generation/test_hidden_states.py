"""The states that the head reads: they give the logits, and their mean does not depend on batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold import load
from hotcold.engine.generation.hidden_states import last_states, mean_state
from hotcold.gguf_io.blocks import dequantize

IDS = [1, 270, 265, 400, 17, 23]


def test_the_head_of_the_states_gives_the_logits() -> None:
    with load(n_ctx=16, threads=1, sparsity="off") as engine:
        logits = engine.logits(IDS)
        states = last_states(engine, len(IDS))
        mean = mean_state(engine, IDS)
        output = engine.model.output
        head = dequantize(engine.file.data(output.name), output.type)
    assert np.array_equal((states @ head.T).argmax(axis=1), logits.argmax(axis=1))
    total = states.astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(mean, total / np.linalg.norm(total), rtol=1e-6, atol=1e-8)


def test_batches_make_no_difference() -> None:
    with load(n_ctx=16, threads=1) as engine:
        whole = mean_state(engine, IDS)
    with load(n_ctx=16, threads=1, n_batch=2) as engine:
        assert np.array_equal(mean_state(engine, IDS), whole)


BOUND_OF_QUANTISED = 1.5e-2  # as in test_split_logits.py: rounded inputs fall at ties


@pytest.mark.parametrize(
    ("budget", "least", "head"),
    [
        ("64MiB", 0, "gpu"),
        pytest.param("2300KiB", 0, "cpu", marks=pytest.mark.slow),
        pytest.param("4MiB", 2, "cpu", marks=pytest.mark.slow),
        pytest.param("6MiB", 0, "gpu", marks=pytest.mark.slow),
    ],
)
def test_a_device_has_the_cpus_states(
    budget: str,
    least: int,
    head: str,
    compiler: str,
    distance: Callable[[NDArray[np.float32], NDArray[np.float32]], float],
) -> None:
    """Of a model that is all there, one that is divided, and one whose rows are sent."""
    size: dict[str, Any] = {"n_ctx": 16, "threads": 1, "n_batch": 4}
    with load(**size) as engine:
        want = mean_state(engine, IDS)
    with load(device="emulated", vram_budget=budget, stream_batch=least, **size) as engine:
        plan = engine.executor.plan
        assert [entry.side for entry in plan.weights if entry.role == "head"] == [head]
        assert (plan.streaming is not None) == bool(least)
        assert distance(mean_state(engine, IDS), want) < BOUND_OF_QUANTISED
