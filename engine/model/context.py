"""The context: its positions, and the tokens that run together."""

from dataclasses import dataclass

from hotcold.engine.settings import whole_number

DEFAULT_N_CTX = 4096  # unless the model's own length is shorter
DEFAULT_N_BATCH = 512
MAX_N_CTX = 1 << 24
MAX_N_BATCH = 1 << 16


@dataclass(frozen=True)
class ContextLength:
    """A context's length, and what a user should know about it (or "")."""

    n_ctx: int
    warning: str = ""


def context_length(wanted: int | None, n_ctx_train: int) -> ContextLength:
    """Positions of the KV cache: the wanted number, else what the model was trained for, up to 4096."""
    if wanted is None:
        return ContextLength(min(n_ctx_train, DEFAULT_N_CTX))
    n_ctx = whole_number("n_ctx", wanted, 1, MAX_N_CTX, such_as="-c 512")
    if n_ctx <= n_ctx_train:
        return ContextLength(n_ctx)
    return ContextLength(
        n_ctx, f"a context of {n_ctx}, the model was trained for {n_ctx_train}: text beyond that gets worse"
    )


def batch_length(wanted: int, n_ctx: int) -> int:
    """Most tokens of one run: the wanted number, clamped to n_ctx."""
    return min(whole_number("n_batch", wanted, 1, MAX_N_BATCH, such_as="-b 512"), n_ctx)
