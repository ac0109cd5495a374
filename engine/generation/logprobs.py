"""How likely a chosen token was, and which others were: log probabilities, before penalties and temperature."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.sampling import most_likely
from hotcold.engine.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenLogprobs:
    """Of one chosen token.

    Attributes:
        id: the token.
        logprob: the natural logarithm of its probability.
        top: the likeliest tokens with theirs, by falling probability.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The natural logarithm of each token's probability, in float64."""
    values = logits.astype(np.float64)
    highest = values.max()
    values -= highest + np.log(np.exp(values - highest).sum())
    return values


def perplexity_of(nll: float) -> float:
    """exp of a mean of -ln p; infinite where no float holds it, as of a model that is sure, and wrong."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def token_logprobs(logits: NDArray[np.float32], token: int, n: int) -> TokenLogprobs:
    """How likely `token` was, and the `n` likeliest: log softmax of the logits, in float64.

    Args:
        logits: float32 [n_vocab], finite, or -infinity for those that a profile of the head left out, which
            are not told.
    """
    values = log_softmax(logits)
    top = tuple((int(i), float(values[i])) for i in most_likely(values, n) if values[i] > -np.inf)
    return TokenLogprobs(token, float(values[token]), top)


def as_json(chosen: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """An object a token: id, token (its text), bytes (of it), logprob, and top_logprobs with the same keys."""

    def told(token: int, logprob: float) -> dict[str, Any]:
        piece = tokenizer.piece(token, special=True)
        text = piece.decode(errors="replace")
        return {"id": token, "token": text, "bytes": list(piece), "logprob": logprob}

    return [told(one.id, one.logprob) | {"top_logprobs": [told(*pair) for pair in one.top]} for one in chosen]
