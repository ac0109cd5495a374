"""Greedy answers of several sequences, alone in a slot and together."""

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.run.executor import Executor

N_STEPS = 6
Logits = NDArray[np.float32]


def prompts(n_vocab: int) -> list[NDArray[np.int32]]:
    """Of several lengths."""
    dice = np.random.default_rng(7)
    return [dice.integers(0, n_vocab, n).astype(np.int32) for n in (5, 11, 1)]


def alone(executor: Executor, prompt: NDArray[np.int32], n_steps: int, slot: int = 0) -> list[Logits]:
    """Logits after a prompt, and after each of the likeliest tokens that follow it."""
    found = [np.empty((1, executor.model.n_vocab), np.float32)]
    executor.run(prompt, 0, found[0], slot)
    for i in range(n_steps):
        found.append(np.empty_like(found[0]))
        executor.run(np.array([found[-2][0].argmax()], np.int32), prompt.size + i, found[-1], slot)
    return found


def together(executor: Executor, each: list[NDArray[np.int32]], order: list[int]) -> list[list[Logits]]:
    """The same of several sequences, whose tokens pass together, in slots of this order."""
    found = [alone(executor, prompt, 0, slot) for prompt, slot in zip(each, order, strict=True)]
    for i in range(N_STEPS):
        logits = np.empty((len(each), executor.model.n_vocab), np.float32)
        ids = np.array([logits_of[-1][0].argmax() for logits_of in found], np.int32)
        executor.run_apart(ids, [prompt.size + i for prompt in each], order, logits)
        for row, logits_of in zip(logits, found, strict=True):
            logits_of.append(row[None])
    return found
