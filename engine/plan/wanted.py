"""How a model is to run, whatever the budget."""

from dataclasses import dataclass

MAX_SLOTS = 64


@dataclass(frozen=True)
class Wanted:
    """Settings that a plan is made for, checked.

    Attributes:
        sparsity: "off", "exact", "predictor" or "threshold".
        n_ctx: positions of the KV cache.
        n_batch: most tokens of one run.
        kv_type: of the KV cache's numbers.
        n_slots: sequences that have a KV cache of their own.
        stream_batch: tokens of a prompt's batch from which on the device does all of it, and what it lacks is sent;
            0: never; None: where that pays.
    """

    sparsity: str
    n_ctx: int
    n_batch: int
    kv_type: str = "f16"
    n_slots: int = 1
    stream_batch: int | None = 0
