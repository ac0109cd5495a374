"""What an executor refuses before it runs anything."""

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.plan.plan import Plan
from hotcold.errors import SettingError
from hotcold.kernels.formats import CANDIDATE_WORDS


def check_positions(plan: Plan) -> None:
    """Refuse a context beyond the table of learned positions: there is no row to read."""
    n = plan.model.n_positions
    if n is not None and plan.n_ctx > n:
        raise SettingError("n_ctx", plan.n_ctx, f"the model has learned {n} positions", f"use {n} at most")


def check_run(plan: Plan, ids: NDArray[np.int32], logits: NDArray[np.float32] | None) -> None:
    """SettingError for no or too many tokens, an id outside the vocabulary, or a wrong array."""
    n, n_vocab = ids.size, plan.model.n_vocab
    if not 1 <= n <= plan.n_batch:
        raise SettingError("tokens of one run", n, f"1 to n_batch = {plan.n_batch}")
    if ids.min() < 0 or ids.max() >= n_vocab:
        bad = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise SettingError("token id", bad, f"the vocabulary has 0 to {n_vocab - 1}")
    if logits is None:
        return
    shape = (min(logits.shape[0], n), n_vocab)
    if logits.shape != shape or logits.dtype != np.float32 or not logits.flags.c_contiguous:
        raise SettingError(
            "logits array", f"{logits.dtype} {logits.shape}", f"wanted: contiguous float32 {shape}"
        )


def check_candidates(
    are_given: bool, logits: NDArray[np.float32] | None, candidates: NDArray[np.int32] | None
) -> None:
    """SettingError for candidates that the head does not give, or a wrong array."""
    if candidates is None:
        return
    if not are_given or logits is None:
        raise SettingError("candidates", "wanted", "only with logits, of a head on a device")
    shape = (logits.shape[0], CANDIDATE_WORDS)
    if candidates.shape != shape or candidates.dtype != np.int32:
        raise SettingError(
            "candidates array", f"{candidates.dtype} {candidates.shape}", f"wanted: int32 {shape}"
        )


def check_apart(n: int, n_past: int, slots: list[int], n_out: int) -> None:
    """SettingError unless each of n sequences has a position, a slot of its own and a row of logits."""
    if n < 2 or not n == n_past == len(set(slots)) == len(slots) == n_out:
        raise SettingError("sequences of one run", n, "2 or more, each with a position and a slot of its own")
