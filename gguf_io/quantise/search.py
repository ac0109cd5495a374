"""Scales of groups of numbers that are stored as whole multiples of one: weighted least squares.

Of levels l under weights w the scale sum w x l / sum w l^2 errs least. Levels are whole float32 numbers.
"""

import numpy as np

from hotcold.gguf_io.quantise.jit import kernel

SMALLEST = np.float32(1e-15)  # a group with nothing larger counts as zeros
TENTH = np.float32(0.1)
GUESSES = 9  # tenths, down and up, that are added to the range
ROUNDS = 5  # at most, in which single levels move
ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)


@kernel
def floats(n: int) -> np.ndarray:
    """n numbers to fill, contiguous also to the compiler: a row of a matrix would not be."""
    return np.empty(n, np.float32)


@kernel
def clamped(number: np.float32, lowest: np.float32, highest: np.float32) -> np.float32:
    """The nearest whole number within bounds, ties to even; `lowest` for what is no number."""
    level = np.rint(number)
    if level >= highest:
        return highest
    if level > lowest:
        return level
    return lowest


@kernel
def largest(x: np.ndarray) -> np.float32:
    """The number that is farthest from 0, the first of equal ones."""
    found, size = ZERO, ZERO
    for number in x:
        if abs(number) > size:
            found, size = number, abs(number)
    return found


@kernel
def by_the_largest(x: np.ndarray, top: np.float32) -> np.float32:
    """Rounds x in place to whole parts of which its largest number has `top`; returns one part."""
    most = ZERO
    for number in x:
        most = max(most, number)
    factor = top / most if most > 0 else ZERO
    for j in range(len(x)):
        x[j] = np.rint(factor * x[j])
    return most / top


@kernel
def squares(x: np.ndarray, weights: np.ndarray) -> None:
    """weights = x^2: how a group's errors are weighed without an importance matrix."""
    for i in range(len(x)):
        weights[i] = x[i] * x[i]


@kernel
def importance_weights(
    x: np.ndarray, importance: np.ndarray, spread: np.float32, weights: np.ndarray
) -> None:
    """weights = importance * sqrt(spread + x^2), `spread` being about the mean square around x."""
    for i in range(len(x)):
        weights[i] = importance[i] * np.sqrt(spread + x[i] * x[i])


@kernel
def ordered_sum(x: np.ndarray) -> np.float32:
    """The sum in order."""
    total = ZERO
    for number in x:
        total += number
    return total


@kernel
def sum_of_squares(x: np.ndarray) -> np.float32:
    """The sum of squares in order."""
    total = ZERO
    for number in x:
        total += number * number
    return total


@kernel
def sums_along(x: np.ndarray, weights: np.ndarray, levels: np.ndarray) -> tuple[np.float32, np.float32]:
    """sum w x l and sum w l^2, in order."""
    along, square = ZERO, ZERO
    for i in range(len(x)):
        along += weights[i] * x[i] * levels[i]
        square += weights[i] * levels[i] * levels[i]
    return along, square


@kernel
def round_to(
    x: np.ndarray, factor: np.float32, lowest: np.float32, highest: np.float32, levels: np.ndarray
) -> None:
    """levels = x * factor, rounded within bounds."""
    for i in range(len(x)):
        levels[i] = clamped(x[i] * factor, lowest, highest)


@kernel
def divide_to(
    x: np.ndarray, step: np.float32, lowest: np.float32, highest: np.float32, levels: np.ndarray
) -> None:
    """levels = x / step, rounded within bounds."""
    for i in range(len(x)):
        levels[i] = clamped(x[i] / step, lowest, highest)


@kernel
def signed_scale(
    x: np.ndarray, weights: np.ndarray, top: np.float32, levels: np.ndarray, trial: np.ndarray
) -> np.float32:
    """The scale of `x` in levels from -top to top - 1, and those levels; -top for each of a group of zeros.

    The best of 19 ranges: that in which the largest number is -top, and up to nine tenths less or more.
    """
    far = largest(x)
    levels[:] = -top
    if not abs(far) >= SMALLEST:
        return ZERO
    round_to(x, -top / far, -top, top - ONE, levels)
    along, square = sums_along(x, weights, levels)
    scale = along / square if square != 0 else ZERO
    best = scale * along
    for tenths in range(-GUESSES, GUESSES + 1):
        if tenths:
            round_to(x, -(top + TENTH * np.float32(tenths)) / far, -top, top - ONE, trial)
            along, square = sums_along(x, weights, trial)
            if square > 0 and along * along > best * square:
                levels[:] = trial
                scale = along / square
                best = scale * along
    return scale


@kernel
def moved_scale(x: np.ndarray, weights: np.ndarray, top: np.float32, levels: np.ndarray) -> np.float32:
    """As `signed_scale`, but from one range, after which single levels move while that lessens the error."""
    far = largest(x)
    levels[:] = -top
    if not abs(far) >= SMALLEST:
        return ZERO
    round_to(x, -top / far, -top, top - ONE, levels)
    along, square = sums_along(x, weights, levels)
    for _ in range(ROUNDS):
        moved, along, square = move_levels(x, weights, top, levels, along, square)
        if not moved:
            break
    return along / square if square > 0 else ZERO


@kernel
def move_levels(
    x: np.ndarray,
    weights: np.ndarray,
    top: np.float32,
    levels: np.ndarray,
    along: np.float32,
    square: np.float32,
) -> tuple[bool, np.float32, np.float32]:
    """One round of `moved_scale`: whether any level moved, and the sums after it."""
    moved = False
    for i in range(len(x)):
        w, level = weights[i], levels[i]
        rest = along - w * x[i] * level
        if rest > 0:
            rest_square = square - w * level * level
            new = clamped(x[i] * rest_square / rest, -top, top - ONE)
            if new != level:
                rest += w * x[i] * new
                rest_square += w * new * new
                if rest_square > 0 and rest * rest * square > along * along * rest_square:
                    levels[i], along, square, moved = new, rest, rest_square, True
    return moved, along, square


@kernel
def positive_scale(x: np.ndarray, weights: np.ndarray, top: np.float32, levels: np.ndarray) -> np.float32:
    """The scale of numbers that are not negative in levels from 0 to top, and those levels.

    The best of nine ranges, after which single levels move while that lessens the error.
    """
    most = ZERO
    for number in x:
        most = max(most, number)
    levels[:] = ZERO
    if not most >= SMALLEST:
        return ZERO
    factor = positive_range(x, weights, top, most)
    round_to(x, factor, ZERO, top, levels)
    along, square = sums_along(x, weights, levels)
    for _ in range(ROUNDS):
        moved = False
        for i in range(len(x)):
            w, level = weights[i], levels[i]
            rest, rest_square = along - w * x[i] * level, square - w * level * level
            if rest > 0 and rest_square > 0:
                new = clamped(x[i] * rest_square / rest, ZERO, top)
                if new != level:
                    rest += w * x[i] * new
                    rest_square += w * new * new
                    if rest * rest * square > along * along * rest_square:
                        levels[i], along, square, moved = new, rest, rest_square, True
        if not moved:
            break
    return along / square if square > 0 else ZERO


@kernel
def positive_range(x: np.ndarray, weights: np.ndarray, top: np.float32, most: np.float32) -> np.float32:
    """The factor of the least weighted squared error, of those that take `most` to about `top`."""
    best_factor = top / most
    best = squared_error(x, weights, best_factor, top)
    for tenths in range(-4, 5):
        factor = (TENTH * np.float32(tenths) + top) / most
        error = squared_error(x, weights, factor, top)
        if tenths and error < best:
            best_factor, best = factor, error
    return best_factor


@kernel
def squared_error(x: np.ndarray, weights: np.ndarray, factor: np.float32, top: np.float32) -> np.float32:
    """sum w (x - l / factor)^2 over the levels that `factor` gives."""
    scale, total = ONE / factor, ZERO
    for i in range(len(x)):
        difference = x[i] - scale * clamped(x[i] * factor, ZERO, top)
        total += weights[i] * difference * difference
    return total
