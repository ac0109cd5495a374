"""What is asked of any setting: a number within bounds, or a known word; and what to print for debugging.

Imports nothing of the engine: a bound is with what it bounds.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

from hotcold.errors import SettingError, shown

DEBUG_VARIABLE = "HOTCOLD_DEBUG"
OFFLOAD_VARIABLE = "LLAMA_OFFLOAD_DEBUG"  # a macro in PowerInfer
LARGEST_FLOAT32 = 3.4028234663852886e38
TRACE_NODES, PRINT_GRAPHS = 2, 3  # levels of HOTCOLD_DEBUG


def whole_number(name: str, value: object, smallest: int, largest: int, *, such_as: str) -> int:
    """`value`, if it is an int within the bounds.

    Args:
        such_as: a good value, as the command line takes it.

    Raises:
        SettingError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise _bad_number(name, value, f"a whole number from {smallest} to {largest}", such_as)
    return value


def number_within(
    name: str, value: object, low: float, high: float, bound: str, *, above: bool = False, such_as: str
) -> None:
    """Accept a finite number from `low` (or above it) to `high`.

    Args:
        bound: what is wanted, in words. such_as: a good value, as the command line takes it.

    Raises:
        SettingError: anything else.
    """
    number = _float(value) if isinstance(value, int | float) else math.nan
    if not math.isfinite(number) or not low <= number <= high or (above and number == low):
        raise _bad_number(name, value, bound, such_as)


def _bad_number(name: str, value: object, bound: str, such_as: str) -> SettingError:
    return SettingError(name, shown(value), bound, f"such as {such_as}")


def finite_number(name: str, value: float | str) -> float:
    """`value` as a number.

    Raises:
        SettingError: not a finite number, or one that float32 does not hold.
    """
    number = math.nan if isinstance(value, str) and "_" in value else _float(value)
    if not abs(number) <= LARGEST_FLOAT32:
        raise SettingError(name, value, "a finite number, as float32 holds it", "such as 0.5")
    return number


def _float(value: Any) -> float:
    """`value` as a float; NaN for a flag, for what is no number, and for a whole number that no float holds."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def one_of(name: str, value: object, known: tuple[str, ...]) -> str:
    """`value`, if it is one of the known words.

    Raises:
        SettingError: it is not.
    """
    if not isinstance(value, str) or value not in known:
        raise SettingError(name, str(value), f"known: {', '.join(known)}", "choose one of them")
    return value


def debug_level(environment: Mapping[str, str] = os.environ) -> int:
    """HOTCOLD_DEBUG: 1 tracebacks, 2 each node as it runs, 3 the graphs; any other word counts as 1."""
    text = environment.get(DEBUG_VARIABLE, "0")
    if text in ("", "0"):
        return 0
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else 1


def offload_debug(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether LLAMA_OFFLOAD_DEBUG asks for the short form of the offload dump."""
    return environment.get(OFFLOAD_VARIABLE, "0") not in ("", "0")
