"""The rotation of queries and keys as a config.json describes it."""

import math
from dataclasses import dataclass
from typing import Any

from hotcold.gguf_io.huggingface.fields import Fields

DEFAULT_BASE = 10000.0


@dataclass(frozen=True)
class Rope:
    """Rotation of whole heads.

    Attributes:
        linear_factor: positions are divided by it; 1.0 without scaling.
        freq_factors: each frequency is divided by one of them, head_dim / 2 in all; empty without.
    """

    freq_base: float
    linear_factor: float = 1.0
    freq_factors: tuple[float, ...] = ()


def read_rope(fields: Fields, head_dim: int) -> Rope:
    """The rotation of heads of `head_dim` elements.

    Raises:
        FileError: scaling other than linear and llama3, a rotation of parts of heads, numbers that are
            out of bounds.
    """
    if head_dim % 2:
        name = fields.named("num_attention_heads", "n_head")
        raise fields.wrong(name, f"a head of {head_dim} elements cannot rotate in pairs")
    settings = _settings(fields)
    base = settings.positive("rope_theta", DEFAULT_BASE)
    name = settings.named("rope_type", "type")
    kind = settings.values.get(name) or "default"
    if settings.values.get("partial_rotary_factor", 1.0) != 1.0:
        raise settings.wrong("partial_rotary_factor", "must be 1", "use a model that rotates whole heads")
    if kind == "linear":
        return Rope(base, linear_factor=settings.positive("factor"))
    if kind == "llama3":
        return Rope(base, freq_factors=_llama3_factors(settings, base, head_dim))
    if kind != "default":
        bound = "rope scaling: supported are linear, llama3"
        raise settings.wrong(name, bound, "use a model without other scaling")
    return Rope(base)


def _settings(fields: Fields) -> Fields:
    """rope_theta and the scaling, which newer configs keep together in rope_parameters."""
    settings: dict[str, Any] = {
        name: fields.values[name] for name in ("rope_theta", "partial_rotary_factor") if name in fields.values
    }
    for name in ("rope_scaling", "rope_parameters"):
        value = fields.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise fields.wrong(name, "null or an object")
        settings.update(value or {})
    return Fields(fields.path, settings)


def _llama3_factors(settings: Fields, base: float, head_dim: int) -> tuple[float, ...]:
    """Llama 3.1's scaling: long waves slow down by `factor`, short ones stay, with a ramp between.

    A wave is long beyond n_ctx / low_freq_factor positions and short below n_ctx / high_freq_factor, where
    n_ctx is the context before the model was extended.
    """
    factor, low = settings.positive("factor"), settings.positive("low_freq_factor")
    high = settings.positive("high_freq_factor")
    n_ctx = settings.size("original_max_position_embeddings")
    if low >= high:
        raise settings.wrong("low_freq_factor", f"must be below high_freq_factor {high}")
    factors = []
    for i in range(head_dim // 2):
        wave = 2 * math.pi * base ** (2 * i / head_dim)
        share = min(max((n_ctx / wave - low) / (high - low), 0.0), 1.0)
        factors.append(1 / (share + (1 - share) / factor))
    return tuple(factors)
