"""Weights and activations that the kernel tests share."""

from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that differ from test to test, and never from run to run."""
    return np.random.default_rng(list(request.node.name.encode()))


def _random_q6_k(rng: np.random.Generator, n_rows: int, k: int) -> U8:
    """Random blocks, since the gguf package reads this type but does not make it."""
    blocks = rng.integers(0, 256, (n_rows, k // 256, 210), np.uint8)
    scales = rng.uniform(-0.01, 0.01, (n_rows, k // 256, 1)).astype(np.float16)
    blocks[..., 208:] = scales.view(np.uint8)
    return blocks.reshape(n_rows, -1)


@pytest.fixture
def make_weights(rng: np.random.Generator) -> Callable[[int, int, int], tuple[U8, F32]]:
    """make_weights(type_id, n_rows, k): a matrix as its type's bytes, and the numbers they hold."""

    def make(type_id: int, n_rows: int, k: int) -> tuple[U8, F32]:
        kind = GGMLQuantizationType(type_id)
        if kind == GGMLQuantizationType.Q6_K:
            raw = _random_q6_k(rng, n_rows, k)
        else:
            values = rng.standard_normal((n_rows, k)).astype(np.float32)
            raw = np.ascontiguousarray(quants.quantize(values, kind))
        numbers = np.array(quants.dequantize(raw, kind), np.float32).reshape(n_rows, k)
        block, size = GGML_QUANT_SIZES[kind]
        return raw.view(np.uint8).reshape(n_rows, k // block * size).copy(), numbers

    return make


@pytest.fixture
def make_activations(rng: np.random.Generator) -> Callable[..., F32]:
    """make_activations(*shape): standard normal float32."""

    def make(*shape: int) -> F32:
        return rng.standard_normal(shape).astype(np.float32)

    return make
