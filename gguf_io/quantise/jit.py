"""How this folder's kernels are compiled: no reordered sums, and kept on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

from hotcold.code_files import check_compiling, code_folder
from hotcold.compiled_code import cache_of, kept_in

Function = TypeVar("Function", bound=Callable[..., Any])

check_compiling()
FOLDER = code_folder(Path(__file__).parent)


def kernel(function: Function) -> Function:
    """`function` compiled when it is first called, without Python's lock and without fast-math."""
    dispatcher: Any = njit(nogil=True, error_model="numpy")(function)
    with kept_in(FOLDER):
        dispatcher._cache = cache_of(function)
    return cast(Function, dispatcher)
