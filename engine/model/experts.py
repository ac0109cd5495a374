"""What a mixture of experts is like: how many experts, of what width, and how a router's logits become weights."""

from dataclasses import dataclass

from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile
from hotcold.gguf_io.architectures import ARCHITECTURES
from hotcold.gguf_io.architectures.table import MAX_EXPERTS, ExpertFacts

MAX_EXPERT_FF = 1 << 20
GATING_FUNCTIONS = {1: "softmax", 2: "sigmoid"}
"""GGUF's expert_gating_func, as far as an architecture reads it."""


@dataclass(frozen=True)
class Experts:
    """The experts of every layer.

    Attributes:
        n_expert, n_used: how many there are, and how many each token goes to.
        n_ff: rows of each.
        n_ff_shared: rows of the shared expert; 0 without one.
        gating, normed, scale: see `kernels.ref.top_k`.
    """

    n_expert: int
    n_used: int
    n_ff: int
    n_ff_shared: int
    gating: str
    normed: bool
    scale: float = 1.0

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that the shapes of tensors name."""
        return {"n_expert": self.n_expert, "n_ff_exp": self.n_ff, "n_ff_shexp": self.n_ff_shared}


def read_experts(file: GGUFFile, architecture: str) -> Experts | None:
    """The experts that the metadata speak of; None for a model without.

    Raises:
        FileError: a number of experts, used or of rows that makes no sense, no gating function where the
            architecture needs one, or experts in an architecture that has none.
    """
    table, key = ARCHITECTURES[architecture], f"{architecture}.{{}}".format
    n_expert = file.get_int(key("expert_count"), 0)
    if n_expert == 0 and not table.always_experts:
        return None
    _check(file, key("expert_count"), n_expert, MAX_EXPERTS)
    if file.is_powerinfer:
        bound = "none in a file with predictors, whose magic is PWRI: a router says which rows are read"
        raise FileError(
            f"{file.path.name}: {key('expert_count')}", n_expert, bound, "convert the model again"
        )
    if table.experts is None:
        bound = f"{architecture} without experts"
        raise FileError(
            f"{file.path.name}: {key('expert_count')}", n_expert, bound, "hotcold cannot run this model"
        )
    n_used = file.get_int(key("expert_used_count"))
    _check(file, key("expert_used_count"), n_used, n_expert, f"1 to expert_count = {n_expert}")
    return Experts(
        n_expert,
        n_used,
        _width(file, key(table.experts.width)),
        _shared_width(file, key(table.experts.shared_width), table.experts),
        _gating(file, key("expert_gating_func"), table.experts),
        table.experts.normed,
    )


def _check(file: GGUFFile, key: str, value: int, most: int, bound: str = "") -> None:
    if not 1 <= value <= most:
        raise FileError(f"{file.path.name}: {key}", value, bound or f"1 to {most}", "the file is damaged")


def _width(file: GGUFFile, key: str) -> int:
    n_ff = file.get_int(key)
    _check(file, key, n_ff, MAX_EXPERT_FF)
    return n_ff


def _shared_width(file: GGUFFile, key: str, facts: ExpertFacts) -> int:
    """Rows of the shared expert; 0 without one."""
    if not facts.shared_width or (facts.may_lack_shared and not file.get_int(key, 0)):
        return 0
    return _width(file, key)


def _gating(file: GGUFFile, key: str, facts: ExpertFacts) -> str:
    if facts.gating:
        return facts.gating
    if key not in file.metadata and _is_powerinfers(file):
        return "sigmoid"
    if key not in file.metadata:
        bound = "missing: a router's logits could mean anything"
        raise FileError(f"{file.path.name}: metadata key", key, bound, "convert the model again")
    number = file.get_int(key)
    if number not in GATING_FUNCTIONS:
        known = ", ".join(f"{n} {name}" for n, name in GATING_FUNCTIONS.items())
        raise FileError(
            f"{file.path.name}: {key}", number, f"known: {known}", "hotcold cannot run this model"
        )
    return GATING_FUNCTIONS[number]


def _is_powerinfers(file: GGUFFile) -> bool:
    """Whether a file is PowerInfer's, whose down projections have rows as long as the others'.

    Its converter leaves the gating function out where it is the sigmoid.
    """
    up, down = (file.tensors.get(f"blk.0.ffn_{part}_exps.weight") for part in ("up", "down"))
    return up is not None and down is not None and up.ne == down.ne and up.ne[0] != up.ne[1]
