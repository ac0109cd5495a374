"""What of a prompt is refused before anything runs: too many tokens, and ids that are none."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.tokenizer.tokenizer import Tokenizer
from hotcold.errors import DoesNotFitError, SettingError


def check_length(prompt: str | bytes, tokenizer: Tokenizer, n_ctx: int) -> None:
    """Refuse what is too long whatever its tokens are, since making them takes time and memory.

    Raises:
        DoesNotFitError: it is.
    """
    n_bytes = len(prompt)  # of a str at least that many
    fewest = tokenizer.fewest_tokens(n_bytes)
    if fewest > n_ctx:
        raise _too_long("prompt", f"{n_bytes} bytes, so at least {fewest} tokens", n_ctx)


def checked_ids(
    what: str, ids: Sequence[int] | NDArray[np.integer], n_vocab: int, n_ctx: int
) -> NDArray[np.int32]:
    """Token ids, int32 [n].

    Args:
        what: they are, for messages.

    Raises:
        SettingError: something else than ids of a vocabulary. DoesNotFitError: more than the context holds.
    """
    tokens = np.asarray(ids)
    if tokens.size and (tokens.dtype.kind not in "iu" or tokens.ndim != 1):
        raise SettingError(what, f"{tokens.dtype} {list(tokens.shape)}", "token ids: whole numbers in a row")
    if tokens.size > n_ctx:
        raise _too_long(what, f"{tokens.size} tokens", n_ctx)
    outside = tokens[(tokens < 0) | (tokens >= n_vocab)] if tokens.size else tokens
    if outside.size:
        raise SettingError("token id", int(outside[0]), f"the vocabulary has 0 to {n_vocab - 1}")
    return tokens.astype(np.int32)


def _too_long(what: str, length: str, n_ctx: int) -> DoesNotFitError:
    return DoesNotFitError(what, length, f"the context holds {n_ctx}", "raise n_ctx, or shorten it")
