"""Stands in for CuPy's arrays: NumPy computes, but an array of this machine's memory is refused, as a card's would be.

What CuPy's functions lack is refused too: `axis` and `count` of unpackbits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class CardArray(np.ndarray):
    """An array that no NumPy array meets."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **named: Any) -> Any:
        bare = [_bare(each) for each in inputs]
        targets = None if out is None else tuple(_bare(each) for each in out)
        found = getattr(ufunc, method)(*bare, **({} if targets is None else {"out": targets}), **named)
        if out is not None:
            return out[0]
        return _on_card(found)

    def __array_function__(self, function: Any, kinds: Any, given: Any, named: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} of a card's array")


def _bare(value: Any) -> Any:
    if isinstance(value, CardArray):
        return value.view(np.ndarray)
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value


def _on_card(found: Any) -> Any:
    return found.view(CardArray) if isinstance(found, np.ndarray) else np.asarray(found).view(CardArray)


class StubArrays:
    """The module. `used` has the names that were asked for."""

    def __init__(self) -> None:
        self.used = set[str]()

    def asarray(self, numbers: Any) -> Any:
        self.used.add("asarray")
        return numbers if isinstance(numbers, CardArray) else np.array(numbers).view(CardArray)

    def asnumpy(self, array: Any) -> NDArray[Any]:
        self.used.add("asnumpy")
        assert isinstance(array, CardArray)
        return np.array(array.view(np.ndarray))

    def unpackbits(self, bits: Any, axis: None = None, bitorder: str = "big") -> Any:
        self.used.add("unpackbits")
        assert axis is None
        order: Any = bitorder
        return _on_card(np.unpackbits(_bare(bits), bitorder=order))

    def __getattr__(self, name: str) -> Any:
        self.used.add(name)
        function = getattr(np, name)

        def call(*given: Any, **named: Any) -> Any:
            def bare(value: Any) -> Any:
                return tuple(map(_bare, value)) if isinstance(value, tuple) else _bare(value)

            out = named.get("out")
            found = function(*map(bare, given), **{key: bare(value) for key, value in named.items()})
            return out if out is not None else _on_card(found)

        return call
