"""Weights and inputs that the kernel tests share."""

from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from random_weights import random_weights

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that differ from test to test, and never from run to run."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture
def make_weights(rng: np.random.Generator) -> Callable[[int, int, int], tuple[U8, F32]]:
    """make_weights(type_id, n_rows, k): a matrix as its type's bytes, and the numbers they hold."""

    def make(type_id: int, n_rows: int, k: int) -> tuple[U8, F32]:
        return random_weights(GGMLQuantizationType(type_id), n_rows, k, rng)

    return make


@pytest.fixture
def make_inputs(rng: np.random.Generator) -> Callable[..., F32]:
    """make_inputs(*shape): standard normal float32."""

    def make(*shape: int) -> F32:
        return rng.standard_normal(shape).astype(np.float32)

    return make
