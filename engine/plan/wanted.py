"""How a model is to run, whatever the budget."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wanted:
    """Settings that a plan is made for, checked.

    Attributes:
        sparsity: "off", "exact", "predictor" or "threshold".
        n_ctx: positions of the KV cache.
        n_batch: most tokens of one run.
        kv_type: of the KV cache's numbers.
    """

    sparsity: str
    n_ctx: int
    n_batch: int
    kv_type: str = "f16"
