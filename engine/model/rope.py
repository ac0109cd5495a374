"""The rotation of queries and keys, and how it is stretched beyond the context of training.

A pair turns by position times its frequency. Scaling changes the frequencies: linear divides all of them,
YaRN (Peng et al., 2023) those of long waves alone, factors each by its own number. The keys are llama.cpp's.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile

KINDS = ("none", "linear", "yarn", "longrope")
BETAS = {"fast": 32.0, "slow": 1.0}  # turns within the original context: more are kept, fewer are scaled


@dataclass(frozen=True)
class RopeScaling:
    """How the rotation is stretched.

    Attributes:
        freq_scale: multiplies every frequency: 1 / factor of linear scaling, 1 without.
        magnitude: multiplies queries and keys as they turn; scores carry its square.
        n_ctx_orig: the context of training. Longer ones use rope_factors_long, others rope_factors_short.
        yarn_betas: of YaRN, whose freq_scale is for long waves alone; None for any other kind.
    """

    freq_scale: float = 1.0
    magnitude: float = 1.0
    n_ctx_orig: int = 0
    yarn_betas: tuple[float, float] | None = None


@dataclass(frozen=True)
class Rotation:
    """How the queries and keys of some layers rotate."""

    freq_base: float
    scaling: RopeScaling = RopeScaling()


def read_scaling(file: GGUFFile, architecture: str, n_ctx_train: int) -> RopeScaling:
    """The scaling that the metadata say. Without a kind it is linear, and a factor of 0 is none.

    Raises:
        FileError: a kind that is not known, or a number that makes no sense.
    """
    key = f"{architecture}.rope.scaling.{{}}".format
    kind = file.get_str(key("type"), "linear")
    if kind not in KINDS:
        bound = f"known: {', '.join(KINDS)}"
        raise FileError(f"{file.path.name}: {key('type')}", kind, bound, "hotcold cannot run this model")
    n_ctx_orig = file.get_int(key("original_context_length"), n_ctx_train)
    if n_ctx_orig < 1:
        what = f"{file.path.name}: {key('original_context_length')}"
        raise FileError(what, n_ctx_orig, "1 or more", "the file is damaged")
    magnitude = _number(file, key("attn_factor"), 1.0)
    if kind in ("none", "longrope"):
        return RopeScaling(1.0, magnitude, n_ctx_orig)
    factor = _number(file, f"{architecture}.rope.scale_linear", 0.0, may_be_0=True)
    factor = _number(file, key("factor"), factor, may_be_0=True) or 1.0
    if kind == "linear":
        return RopeScaling(1 / factor, magnitude, n_ctx_orig)
    fast, slow = (_number(file, key(f"yarn_beta_{name}"), usual) for name, usual in BETAS.items())
    return RopeScaling(1 / factor, yarn_magnitude(factor) * magnitude, n_ctx_orig, (fast, slow))


def yarn_magnitude(factor: float) -> float:
    """What YaRN multiplies queries and keys by."""
    return 1 + 0.1 * math.log(factor) if factor > 1 else 1.0


def _number(file: GGUFFile, key: str, default: float, may_be_0: bool = False) -> float:
    """A finite number above 0, or one that means nothing if it is 0."""
    value = file.get_float(key, default)
    if not (math.isfinite(value) and (value > 0 or (may_be_0 and value == 0))):
        bound = f"a finite number above 0{' or 0' if may_be_0 else ''}"
        raise FileError(f"{file.path.name}: {key}", value, bound, "the file is damaged")
    return value


def frequencies(
    n_rot: int, base: float, scaling: RopeScaling, factors: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """Angle per position of each pair, float64 [n_rot / 2].

    base^(-2i / n_rot) * freq_scale / factors[i]. With YaRN pairs below lo keep the unscaled frequency, those
    above hi have the scaled one, and those between go over in a line; D(b) = n_rot ln(n_ctx_orig / (2 pi b)) /
    (2 ln base) is the pair that turns b times in the original context, lo = floor D(fast), hi = ceil D(slow).
    """
    i = np.arange(n_rot // 2)
    plain = base ** (-2.0 * i / n_rot)
    scaled = plain * scaling.freq_scale
    if scaling.yarn_betas is not None:
        fast, slow = (
            n_rot * math.log(scaling.n_ctx_orig / (2 * math.pi * beta)) / (2 * math.log(base))
            for beta in scaling.yarn_betas
        )
        lo, hi = max(0, math.floor(fast)), min(n_rot - 1, math.ceil(slow))
        kept = 1 - np.clip((i - lo) / max(0.001, hi - lo), 0, 1)
        scaled = scaled * (1 - kept) + plain * kept
    return scaled if factors is None else scaled / factors
