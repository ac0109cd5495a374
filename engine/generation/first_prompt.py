"""What the first prompt says of a model: whether its predictors are its own, and its FFN's function right."""

import math

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.logprobs import log_softmax
from hotcold.engine.host.steps import take_all
from hotcold.engine.model.ffn_activation import OPTION, is_a_guess
from hotcold.engine.run import recall
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile

N_SCORED, FEWEST_TOKENS = 16, 64  # few tokens of a long prompt, so that their logits cost next to nothing
LIKELY_SHARE = 1 / 8  # of n_vocab: a perplexity above it is that of a model that knows nothing


class FirstPrompt:
    """Runs the batches of a prompt and looks at them on the way.

    Attributes:
        lines: what -v says. warnings: what a user should know; both one line each, there after `end`.
    """

    def __init__(self, executor: Executor, file: GGUFFile, n_tokens: int) -> None:
        """`n_tokens` of the prompt will run."""
        self._executor, self._file, self._n_watched = executor, file, 0
        self._watching: recall.Watching | None = None
        if executor.plan.sparsity == "predictor" and executor.taking is take_all:
            self._watching = recall.watch(executor)
        self._scores = n_tokens >= FEWEST_TOKENS and is_a_guess(executor.model, file)
        self._perplexity: float | None = None
        self.lines, self.warnings = list[str](), list[str]()

    def run(self, ids: NDArray[np.int32], n_past: int, logits: NDArray[np.float32] | None) -> None:
        """As `Executor.run`."""
        executor = self._executor
        if self._watching is not None and not self._n_watched:
            executor.taking, self._n_watched = self._watching, ids.size
        try:
            if logits is not None and self._scores and ids.size > N_SCORED:
                self._run_scored(ids, n_past, logits)
            else:
                executor.run(ids, n_past, logits)
        finally:
            if self._watching is not None:
                executor.taking = take_all

    def _run_scored(self, ids: NDArray[np.int32], n_past: int, logits: NDArray[np.float32]) -> None:
        some = np.empty((N_SCORED + 1, logits.shape[1]), np.float32)
        self._executor.run(ids, n_past, some)
        logits[:] = some[-1:]
        if np.isfinite(some).all():
            logprobs = [log_softmax(row)[i] for row, i in zip(some[:-1], ids[-N_SCORED:], strict=True)]
            self._perplexity = math.exp(-float(np.mean(logprobs)))

    def end(self, seconds: float) -> None:
        """Say what has been found; the prompt took so many seconds."""
        found = None
        if self._watching is not None and self._n_watched:
            found = recall.measure(self._watching, self._file, self._n_watched, seconds)
        if found is not None:
            self.lines.append(found.line())
            self.warnings += filter(None, (found.warning(),))
        perplexity = self._perplexity
        if perplexity is not None and perplexity > LIKELY_SHARE * self._executor.model.n_vocab:
            text = f"the model finds the prompt no likelier than chance (perplexity {perplexity:.0f})"
            self.warnings.append(f"{text}; if its FFN is ReLU, which its file does not say, try {OPTION}")
