"""How functions of this folder are compiled; they are kept on disk as `hotcold.compiled_code` says."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import sigutils
from numba.core.ccallback import CFunc

from hotcold.compiled_code import cache_of

F = TypeVar("F", bound=Callable[..., Any])

# Sums keep their order (no "reassoc").
OPTIONS: dict[str, Any] = {
    "fastmath": {"contract", "nsz"},
    "boundscheck": False,
    "error_model": "numpy",
}


def compiled(function: F) -> F:
    """A function that Numba compiles when it is first called with arguments of some types.

    It does not hold the interpreter's lock.
    """
    dispatcher: Any = njit(**OPTIONS, nogil=True)(function)
    dispatcher._cache = cache_of(function)
    return cast(F, dispatcher)


def compiled_code(signature: Any) -> Callable[[Callable[..., None]], Any]:
    """A decorator that compiles a function to code which is called by its address, at once."""

    def wrap(function: Callable[..., None]) -> Any:
        code: Any = CFunc(function, sigutils.normalize_signature(signature), locals={}, options=dict(OPTIONS))
        code._cache = cache_of(function)
        code.compile()
        return code

    return wrap
