"""What the first prompt says of a model: whether its predictors are its own, and its FFN's function right."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.logprobs import log_softmax, perplexity_of
from hotcold.engine.host.steps import take_all
from hotcold.engine.model.ffn_activation import OPTION, is_a_guess
from hotcold.engine.run import recall
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile

N_SCORED, FEWEST_TOKENS = 16, 24  # its last tokens, whose logits cost little; see docs/models.md
LIKELY_SHARE = 1 / 8  # of n_vocab: a perplexity above it is that of a model that knows nothing


class FirstPrompt:
    """Runs the batches of a prompt and keeps what they say; what that means is worked out when it is asked for.

    Attributes:
        is_over: whether it has passed; to be set by whoever runs it.
    """

    def __init__(self, executor: Executor, file: GGUFFile) -> None:
        self._executor, self._file, self._n_runs, self.is_over = executor, file, 0, False
        self._watching: recall.Watching | None = None
        if executor.plan.sparsity == "predictor" and executor.taking is take_all:
            self._watching = recall.Watching(executor, file)
        self._perplexity: float | None = None

    def run(self, ids: NDArray[np.int32], n_past: int, logits: NDArray[np.float32] | None) -> None:
        """As `Executor.run`."""
        executor, self._n_runs = self._executor, self._n_runs + 1
        if self._watching is None or self._n_runs > 1 or executor.taking is not take_all:
            self._run(ids, n_past, logits)
            return
        executor.taking = self._watching  # of the first batch, which says enough
        try:
            self._run(ids, n_past, logits)
        finally:
            executor.taking = take_all

    def _run(self, ids: NDArray[np.int32], n_past: int, logits: NDArray[np.float32] | None) -> None:
        executor = self._executor
        if logits is not None and ids.size >= FEWEST_TOKENS and is_a_guess(executor.model, self._file):
            self._run_scored(ids, n_past, logits)
        else:
            executor.run(ids, n_past, logits)

    def _run_scored(self, ids: NDArray[np.int32], n_past: int, logits: NDArray[np.float32]) -> None:
        some = np.empty((N_SCORED + 1, logits.shape[1]), np.float32)
        self._executor.run(ids, n_past, some)
        logits[:] = some[-1:]
        if np.isfinite(some).all():
            logprobs = [log_softmax(row)[i] for row, i in zip(some[:-1], ids[-N_SCORED:], strict=True)]
            self._perplexity = perplexity_of(-float(np.mean(logprobs)))

    @cached_property
    def _recall(self) -> recall.Recall | None:
        return self._watching.recall() if self._watching is not None and self._n_runs else None

    @property
    def lines(self) -> tuple[str, ...]:
        """What -v says, one line each."""
        return () if self._recall is None else (self._recall.line(),)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know, one line each."""
        said = [] if self._recall is None else [self._recall.warning()]
        perplexity = self._perplexity
        if perplexity is not None and perplexity > LIKELY_SHARE * self._executor.model.n_vocab:
            text = f"the model finds the prompt no likelier than chance (perplexity {perplexity:.0f})"
            said.append(f"{text}; if its FFN is ReLU, which its file does not say, try {OPTION}")
        return tuple(filter(None, said))
