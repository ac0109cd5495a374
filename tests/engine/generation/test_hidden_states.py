"""The states that the head reads: they give the logits, and their mean does not depend on batches."""

import numpy as np

from hotcold import load
from hotcold.engine.generation.hidden_states import last_states, mean_state
from hotcold.gguf_io.blocks import dequantize

IDS = [1, 270, 265, 400, 17, 23]


def test_the_head_of_the_states_gives_the_logits() -> None:
    with load(n_ctx=16, threads=1, sparsity="off") as engine:
        logits = engine.logits(IDS)
        states = last_states(engine, len(IDS)).copy()
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
