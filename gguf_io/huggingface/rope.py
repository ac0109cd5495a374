"""The rotation of queries and keys as a config.json describes it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hotcold.gguf_io.huggingface.fields import Fields

DEFAULT_BASE = 10000.0
KINDS = ("linear", "llama3", "yarn", "longrope", "dynamic")
YARN_BETAS = {"fast": 32.0, "slow": 1.0}


@dataclass(frozen=True)
class Rope:
    """Rotation of whole heads, as GGUF says it.

    Attributes:
        kind: of scaling: "none", "linear", "yarn" or "longrope".
        factor: positions, or YaRN's long waves, are divided by it.
        n_ctx_orig: the context before the model was extended; 0 where it does not matter.
        attn_factor: multiplies queries and keys, beside what YaRN does by itself.
        betas: YaRN's, those that are not the usual ones.
        factors: each divides a frequency, head_dim / 2 of them by the role of their tensor.
        warning: what GGUF cannot say.
    """

    freq_base: float
    kind: str = "none"
    factor: float = 1.0
    n_ctx_orig: int = 0
    attn_factor: float = 1.0
    betas: Mapping[str, float] = field(default_factory=dict)
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    warning: str = ""


def rotated(fields: Fields, head_dim: int) -> int:
    """Elements of a head that rotate, by `partial_rotary_factor`."""
    share = _settings(fields).positive("partial_rotary_factor", 1.0)
    n_rot = int(head_dim * share)
    if not 2 <= n_rot <= head_dim:
        raise _settings(fields).wrong("partial_rotary_factor", f"2 to {head_dim} elements of a head")
    return n_rot


def read_rope(fields: Fields, head_dim: int, n_ctx_train: int, partly: bool = False) -> Rope:
    """The rotation of heads of `head_dim` elements, or of as many of theirs.

    Args:
        partly: whether a part of a head may rotate.

    Raises:
        FileError: a kind of scaling that is not known, a rotation of parts of heads, numbers that are
            out of bounds.
    """
    if head_dim % 2:
        name = fields.named("num_attention_heads", "n_head")
        raise fields.wrong(name, f"a head of {head_dim} elements cannot rotate in pairs")
    settings = _settings(fields)
    base = settings.positive("rope_theta", DEFAULT_BASE)
    name = settings.named("rope_type", "type")
    kind = settings.values.get(name) or "default"
    if not partly and settings.values.get("partial_rotary_factor", 1.0) != 1.0:
        raise settings.wrong("partial_rotary_factor", "must be 1", "use a model that rotates whole heads")
    if kind == "linear":
        factor = settings.positive("factor")
        return Rope(base, "linear" if factor != 1 else "none", factor)
    if kind == "llama3":
        return Rope(base, factors={"rope_freqs": _llama3_factors(settings, base, head_dim)})
    if kind == "yarn":
        return _yarn(settings, base, head_dim, n_ctx_train)
    if kind in ("longrope", "su"):
        return _longrope(settings, base, head_dim, n_ctx_train)
    if kind == "dynamic":
        text = f"rope scaling dynamic is not kept: beyond {n_ctx_train} positions the text is not the model's"
        return Rope(base, warning=text)
    if kind != "default":
        bound = f"rope scaling: supported are {', '.join(KINDS)}"
        raise settings.wrong(name, bound, "use a model without other scaling")
    return Rope(base)


def _yarn(settings: Fields, base: float, head_dim: int, n_ctx_train: int) -> Rope:
    """YaRN (Peng et al., 2023). Ends that are not rounded, which GGUF has no key for, become factors."""
    n_ctx_orig = settings.size("original_max_position_embeddings", n_ctx_train)
    factor = settings.positive("factor", max(1.0, n_ctx_train / n_ctx_orig))
    given = {name: settings.positive(f"beta_{name}", usual) for name, usual in YARN_BETAS.items()}
    magnitude = settings.values.get("attention_factor")
    if magnitude is not None:
        wanted = settings.positive("attention_factor")
    elif settings.values.get("mscale") and settings.values.get("mscale_all_dim"):
        mscale, all_dim = settings.positive("mscale"), settings.positive("mscale_all_dim")
        wanted = _magnitude(factor, mscale) / _magnitude(factor, all_dim)
    else:
        wanted = _magnitude(factor)
    if not settings.flag("truncate", True):
        factors = _yarn_factors(base, head_dim, factor, n_ctx_orig, (given["fast"], given["slow"]))
        return Rope(base, attn_factor=wanted, factors={"rope_freqs": factors})
    betas = {name: beta for name, beta in given.items() if beta != YARN_BETAS[name]}
    return Rope(base, "yarn", factor, n_ctx_orig, wanted / _magnitude(factor), betas)


def _magnitude(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def _yarn_factors(
    base: float, head_dim: int, factor: float, n_ctx_orig: int, betas: tuple[float, float]
) -> tuple[float, ...]:
    """What divides each frequency where the ends of the ramp are not rounded."""
    fast, slow = (
        head_dim * math.log(n_ctx_orig / (2 * math.pi * beta)) / (2 * math.log(base)) for beta in betas
    )
    lo, hi = max(fast, 0.0), min(slow, head_dim - 1.0)
    shares = (min(max((i - lo) / max(hi - lo, 1e-3), 0.0), 1.0) for i in range(head_dim // 2))
    return tuple(1 / (1 - share + share / factor) for share in shares)


def _longrope(settings: Fields, base: float, head_dim: int, n_ctx_train: int) -> Rope:
    """LongRoPE (Ding et al., 2024): factors for contexts up to that of training, and for longer ones."""
    n_ctx_orig = settings.size("original_max_position_embeddings", n_ctx_train)
    stretch = settings.positive("factor", n_ctx_train / n_ctx_orig)
    usual = math.sqrt(1 + math.log(stretch) / math.log(n_ctx_orig)) if stretch > 1 and n_ctx_orig > 1 else 1.0
    factors = {
        f"rope_factors_{name}": settings.positives(f"{name}_factor", head_dim // 2)
        for name in ("long", "short")
    }
    magnitude = settings.positive("attention_factor", usual)
    return Rope(base, "longrope", 1.0, n_ctx_orig, magnitude, factors=factors)


def _settings(fields: Fields) -> Fields:
    """rope_theta and the scaling, which newer configs keep together in rope_parameters."""
    outside = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    settings: dict[str, Any] = {name: fields.values[name] for name in outside if name in fields.values}
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
