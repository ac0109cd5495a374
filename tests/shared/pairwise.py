"""Fewer cases of a full product: enough that every two parameters' values meet."""

from collections.abc import Mapping, Sequence
from itertools import combinations

Case = Mapping[str, object]
"""A case: the value of each parameter, which its `repr` tells from others."""


def covering(cases: Sequence[Case]) -> list[int]:
    """Numbers of some of the cases, in order, that have every pair of values which any case has.

    Cases are walked until nothing is missing, and those that add the most pairs are taken first. Products
    of fewer than three parameters stay whole.
    """
    told = [sorted((name, repr(value)) for name, value in case.items()) for case in cases]
    pairs = [set(combinations(values, min(2, len(values)))) for values in told]
    missing = {pair for some in pairs for pair in some}
    taken: set[int] = set()
    for least in range(max(map(len, pairs), default=0), 0, -1):
        for i in _scattered(len(cases)):
            if i not in taken and len(pairs[i] & missing) >= least:
                taken.add(i)
                missing -= pairs[i]
    return sorted(taken)


def _scattered(n: int) -> list[int]:
    """0 .. n - 1 by the fractional parts of their multiples of the golden ratio, which spread evenly."""
    return sorted(range(n), key=lambda i: i * 0.618033988749895 % 1)
