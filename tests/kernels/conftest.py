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


# K types, which the gguf package reads but does not make: where the halfs of a block lie
K_TYPE_HALFS = {
    GGMLQuantizationType.Q4_K: slice(0, 4),
    GGMLQuantizationType.Q5_K: slice(0, 4),
    GGMLQuantizationType.Q6_K: slice(208, 210),
}


def _random_k_blocks(rng: np.random.Generator, kind: GGMLQuantizationType, n_rows: int, k: int) -> U8:
    """Random blocks of a K type."""
    halfs = K_TYPE_HALFS[kind]
    blocks = rng.integers(0, 256, (n_rows, k // 256, GGML_QUANT_SIZES[kind][1]), np.uint8)
    shape = (n_rows, k // 256, (halfs.stop - halfs.start) // 2)
    blocks[..., halfs] = rng.uniform(-0.01, 0.01, shape).astype(np.float16).view(np.uint8)
    return blocks.reshape(n_rows, -1)


@pytest.fixture
def make_weights(rng: np.random.Generator) -> Callable[[int, int, int], tuple[U8, F32]]:
    """make_weights(type_id, n_rows, k): a matrix as its type's bytes, and the numbers they hold."""

    def make(type_id: int, n_rows: int, k: int) -> tuple[U8, F32]:
        kind = GGMLQuantizationType(type_id)
        if kind in K_TYPE_HALFS:
            raw = _random_k_blocks(rng, kind, n_rows, k)
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
