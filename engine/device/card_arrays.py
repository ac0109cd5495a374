"""Arrays on a card, by CuPy, for work that is no kernel of ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from hotcold.engine.device.choice import DeviceChoice
from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.cuda_driver import load_cupy, usable_cards


@contextmanager
def card_arrays(choice: DeviceChoice) -> Iterator[Any]:
    """The module cupy, with the card that was asked for as its current device; None where "auto" finds none.

    Raises:
        DeviceError: the card cannot be used.
    """
    index = choice.index or 0
    try:
        cupy = load_cupy()
        n_cards = usable_cards(cupy)
        if index >= n_cards:
            raise DeviceError("device", f"cuda:{index}", f"{n_cards} cards", "see `hotcold devices`")
        with cupy.cuda.Device(index):
            _check_products(cupy)
    except DeviceError:
        if choice.kind != "auto":
            raise
        yield None
    else:
        with cupy.cuda.Device(index):
            yield cupy


def _check_products(cupy: Any) -> None:
    """Refuse a card or an installation that does not multiply matrices, which takes cuBLAS."""
    try:
        ones = cupy.ones((2, 2), np.float32)
        works = float((ones @ ones)[0, 0]) == 2
    except Exception as error:  # of whichever library fails to load
        raise DeviceError("CuPy", "no products", str(error), "install cuBLAS, or use --device cpu") from error
    if not works:
        raise DeviceError("CuPy", "wrong products", "2 x 2 ones", "use --device cpu")
