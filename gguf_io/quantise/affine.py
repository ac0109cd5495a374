"""Scale and minimum of groups of numbers that are stored as levels l for scale * l + minimum.

Of given levels the two come from the normal equations of weighted least squares; the levels are guessed
from ranges that are a little smaller or larger than the numbers'. A minimum above 0 counts as 0.
"""

import numpy as np

from hotcold.gguf_io.quantise.jit import kernel
from hotcold.gguf_io.quantise.search import ONE, ZERO, clamped

Search = tuple[
    np.float32, np.float32, np.float32, int
]  # levels above 0, first and step of what is added, steps


@kernel
def affine_scale(
    x: np.ndarray,
    weights: np.ndarray,
    search: Search,
    absolute: bool,
    levels: np.ndarray,
    trial: np.ndarray,
) -> tuple[np.float32, np.float32]:
    """The scale and the negated minimum of `x`, and its levels.

    Args:
        absolute: weigh the sizes of differences, not their squares.
    """
    least, most, sum_w, sum_x = bounds(x, weights)
    levels[:] = ZERO
    if not most > least:
        return ZERO, -least
    top, first, step, n_steps = search
    factor = top / (most - least)
    scale = ONE / factor
    levels_above(x, least, factor, top, levels)
    best = error_of(x, weights, levels, scale, least, absolute)
    for i in range(n_steps + 1):
        factor = (first + step * np.float32(i) + top) / (most - least)
        levels_above(x, least, factor, top, trial)
        fits, new_scale, new_least = fitted(x, weights, trial, sum_w, sum_x)
        if fits:
            error = error_of(x, weights, trial, new_scale, new_least, absolute)
            if error < best:
                levels[:] = trial
                best, scale, least = error, new_scale, new_least
    return scale, -least


@kernel
def bounds(x: np.ndarray, weights: np.ndarray) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """The least number or 0, the largest number, sum w and sum w x."""
    least, most, sum_w, sum_x = x[0], x[0], weights[0], weights[0] * x[0]
    for i in range(1, len(x)):
        least, most = min(least, x[i]), max(most, x[i])
        sum_w += weights[i]
        sum_x += weights[i] * x[i]
    return min(least, ZERO), most, sum_w, sum_x


@kernel
def levels_above(
    x: np.ndarray, least: np.float32, factor: np.float32, top: np.float32, levels: np.ndarray
) -> None:
    """levels = (x - least) * factor, rounded within 0 and `top`."""
    for i in range(len(x)):
        levels[i] = clamped(factor * (x[i] - least), ZERO, top)


@kernel
def error_of(
    x: np.ndarray,
    weights: np.ndarray,
    levels: np.ndarray,
    scale: np.float32,
    least: np.float32,
    absolute: bool,
) -> np.float32:
    """The weighed sum of differences, or of their squares, in order."""
    total = ZERO
    for i in range(len(x)):
        difference = scale * levels[i] + least - x[i]
        total += weights[i] * (abs(difference) if absolute else difference * difference)
    return total


@kernel
def fitted(
    x: np.ndarray, weights: np.ndarray, levels: np.ndarray, sum_w: np.float32, sum_x: np.float32
) -> tuple[bool, np.float32, np.float32]:
    """Whether the levels have one solution, its scale and its minimum."""
    sum_l, sum_ll, sum_lx = ZERO, ZERO, ZERO
    for i in range(len(x)):
        weighed = weights[i] * levels[i]
        sum_l += weighed
        sum_ll += weighed * levels[i]
        sum_lx += weighed * x[i]
    determinant = sum_w * sum_ll - sum_l * sum_l
    if not determinant > 0:
        return False, ZERO, ZERO
    scale = (sum_w * sum_lx - sum_x * sum_l) / determinant
    least = (sum_ll * sum_x - sum_l * sum_lx) / determinant
    if least > 0:
        return True, sum_lx / sum_ll, ZERO
    return True, scale, least


@kernel
def divide_above(
    x: np.ndarray, step: np.float32, below: np.float32, top: np.float32, levels: np.ndarray
) -> None:
    """levels = (x + below) / step, rounded within 0 and `top`."""
    for i in range(len(x)):
        levels[i] = clamped((x[i] + below) / step, ZERO, top)
