"""Sliding windows: which layers see the last positions alone, and how queries and keys rotate there."""

import math
from dataclasses import dataclass

import numpy as np

from hotcold.engine.model.rope import Rotation
from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile
from hotcold.gguf_io.architectures import ARCHITECTURES
from hotcold.gguf_io.architectures.table import WindowFacts

MAX_WINDOW = 1 << 30


@dataclass(frozen=True)
class Windows:
    """The windowed layers of a model.

    Attributes:
        size: positions that a token sees there, its own the last.
        layers: of each layer whether it has the window.
        rotation: of those layers.
    """

    size: int
    layers: tuple[bool, ...]
    rotation: Rotation


def read_windows(file: GGUFFile, architecture: str, n_layer: int, rotation: Rotation) -> Windows | None:
    """The windows that the metadata speak of; None for a model without.

    Args:
        rotation: of layers that see all.

    Raises:
        FileError: a window that is missing or of no positions, or a pattern that is no pattern.
    """
    facts, key = ARCHITECTURES[architecture].windows, f"{architecture}.attention.sliding_window"
    if facts is None or (key not in file.metadata and not facts.required):
        return None
    size = file.get_int(key)
    if facts.size and size == 0:
        return None
    if not 1 <= size <= MAX_WINDOW:
        bound = f"1 to {MAX_WINDOW} positions"
        raise FileError(f"{file.path.name}: {key}", size, bound, "the file is damaged")
    layers = _pattern(file, f"{key}_pattern", n_layer, facts)
    usual = facts.freq_base or rotation.freq_base
    freq_base = file.get_float(f"{architecture}.rope.freq_base_swa", usual)
    if not (math.isfinite(freq_base) and freq_base > 0):
        what = f"{file.path.name}: {architecture}.rope.freq_base_swa"
        raise FileError(what, freq_base, "a finite number above 0", "the file is damaged")
    own = Rotation(freq_base, rotation.scaling) if facts.scaled else Rotation(freq_base)
    return Windows(facts.size or size, layers, own)


def windowed_layers(n_layer: int, period: int, first_sees_all: bool) -> tuple[bool, ...]:
    """Of each layer whether it has the window, where one of `period` sees all: the first, or the last."""
    of_all = 0 if first_sees_all else period - 1
    return tuple(i % period != of_all for i in range(n_layer))


def _pattern(file: GGUFFile, key: str, n_layer: int, facts: WindowFacts) -> tuple[bool, ...]:
    """The layers by the file's pattern: a period, or an array with a truth value a layer."""
    value = file.metadata.get(key)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biu":
        if len(value) < n_layer:
            bound = f"one for each of {n_layer} layers"
            raise FileError(f"{file.path.name}: {key}", f"{len(value)} values", bound, "the file is damaged")
        return tuple(bool(each) for each in value[:n_layer])
    if value is not None and not isinstance(value, int):
        bound = "a number, or a truth value a layer"
        raise FileError(f"{file.path.name}: {key}", str(value)[:60], bound, "the file is damaged")
    period = file.get_int(key, facts.period)
    if not 1 <= period <= MAX_WINDOW:
        raise FileError(f"{file.path.name}: {key}", period, "a period of 1 or more", "the file is damaged")
    return windowed_layers(n_layer, period, facts.first_sees_all)
