"""What runs tell of the tokens that may come next: their logits, or the likeliest of them where those are enough."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.not_finite import check_finite
from hotcold.engine.generation.token_sequence import TokenSequence
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.formats import CANDIDATE_WORDS, N_CANDIDATES


class Rows:
    """Room for a row a token of the last run, by which sequences choose."""

    def __init__(self, executor: Executor, n: int) -> None:
        self._n_vocab = executor.model.n_vocab
        self._logits = np.empty((n, self._n_vocab), np.float32)
        self._gives_candidates = executor.gives_candidates
        self._candidates = np.empty((n, CANDIDATE_WORDS), np.int32)
        self._are_candidates = False

    def __len__(self) -> int:
        return len(self._logits)

    def of_run(
        self, n: int, sequences: Sequence[TokenSequence] = ()
    ) -> tuple[NDArray[np.float32], NDArray[np.int32] | None]:
        """Where the next run is to put n rows: `logits` and `candidates` of `Executor.run`.

        Args:
            sequences: that choose by them, if candidates may be enough.
        """
        enough = bool(sequences) and all(each.takes_candidates(self._n_vocab) for each in sequences)
        self._are_candidates = self._gives_candidates and enough
        return self._logits[:n], self._candidates[:n] if self._are_candidates else None

    def accept(self, row: int, sequence: TokenSequence, executor: Executor, file: GGUFFile) -> str:
        """Let a sequence choose by a row; text that can be shown then.

        Raises:
            SettingError, FileError: logits that are not all finite; see `check_finite`.
        """
        found = self._candidates[row]
        if self._are_candidates and not found[0]:
            return sequence.accept_candidates(
                found[1 : 1 + N_CANDIDATES], found[1 + N_CANDIDATES :].view(np.float32)
            )
        logits = self._logits[row]
        check_finite(logits[: sequence.n_vocab], executor, file)
        return sequence.accept(logits)
