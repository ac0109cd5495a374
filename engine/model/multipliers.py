"""Numbers that a model multiplies with, in embedding, residual, scores and logits."""

import math
from dataclasses import dataclass

from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile
from hotcold.gguf_io.architectures import ARCHITECTURES


@dataclass(frozen=True)
class Multipliers:
    """A model's multipliers, which are 1 in most.

    Attributes:
        embedding: of a token's row.
        residual: of what attention and FFN add.
        attention: of scores; None for 1 / sqrt(head_dim).
        logits: they are divided by it.
    """

    embedding: float = 1.0
    residual: float = 1.0
    attention: float | None = None
    logits: float = 1.0


def read_multipliers(file: GGUFFile, architecture: str) -> Multipliers:
    """Those of the metadata, if the architecture has them.

    Raises:
        FileError: a divisor of the logits that is missing, or a number that makes no sense.
    """
    if not ARCHITECTURES[architecture].multipliers:
        return Multipliers()
    key = f"{architecture}.{{}}".format
    has_scale = key("attention.scale") in file.metadata
    return Multipliers(
        _number(file, key("embedding_scale"), 1.0),
        _number(file, key("residual_scale"), 1.0),
        _number(file, key("attention.scale")) if has_scale else None,
        _number(file, key("logit_scale")),
    )


def _number(file: GGUFFile, key: str, default: float | None = None) -> float:
    value = file.get_float(key, default)
    if not (math.isfinite(value) and value > 0):
        raise FileError(f"{file.path.name}: {key}", value, "a finite number above 0", "the file is damaged")
    return value
