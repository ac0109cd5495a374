"""Attention of one head and cache rows, F16 and F32, against the oracle on what the cache holds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.kernels import ref
from hotcold.kernels.cpu import attention
from hotcold.kernels.cpu.rows import F16_ID, F32_ID

F32 = NDArray[np.float32]
Make = Callable[..., F32]
Near = Callable[[Any, Any], None]
Place = Callable[[NDArray[Any]], NDArray[Any]]

DTYPES = {F16_ID: np.float16, F32_ID: np.float32}
kv_types = pytest.mark.parametrize(
    "kv_type", [pytest.param(F16_ID, id="f16"), pytest.param(F32_ID, id="f32")]
)


@kv_types
@pytest.mark.parametrize("head_dim", [16, 17, 40, 64, 100, 128, 1024])
@pytest.mark.parametrize("n_keys", [1, 3, 31, 32, 33, 64, 257])
def test_attend(
    kv_type: int,
    head_dim: int,
    n_keys: int,
    make_activations: Make,
    before_a_hole: Place,
    scratch: NDArray[np.uint8],
    assert_near: Near,
) -> None:
    q = make_activations(1, 1, head_dim)
    keys, values = (
        before_a_hole(make_activations(n_keys, 1, head_dim).astype(DTYPES[kv_type])) for _ in range(2)
    )
    y = before_a_hole(np.full(head_dim, np.nan, np.float32))
    attention.attend(
        kv_type,
        q.ctypes.data,
        keys.ctypes.data,
        values.ctypes.data,
        n_keys,
        head_dim,
        head_dim**-0.5,
        scratch.ctypes.data,
        y.ctypes.data,
    )
    wanted = ref.attention(q, keys.astype(np.float32), values.astype(np.float32), n_past=n_keys - 1)
    assert_near(y, wanted[0, 0])


@pytest.mark.parametrize("rising", [True, False])
def test_scores_far_apart_stay_finite(
    rising: bool, make_activations: Make, scratch: NDArray[np.uint8], assert_near: Near
) -> None:
    """Scores from -3000 to 3000: without the running maximum e^x overflows; rising, each block raises it."""
    n_keys, head_dim = 200, 32
    q, values = np.ones((1, 1, head_dim), np.float32), make_activations(n_keys, 1, head_dim)
    scale = head_dim**-0.5
    scores = np.linspace(-3000, 3000, n_keys)[:: 1 if rising else -1]
    keys = np.repeat(scores[:, None, None] / head_dim / scale, head_dim, 2).astype(np.float32)
    y = np.zeros(head_dim, np.float32)
    where = (a.ctypes.data for a in (q, keys, values))
    attention.attend(F32_ID, *where, n_keys, head_dim, scale, scratch.ctypes.data, y.ctypes.data)
    assert_near(y, ref.attention(q, keys, values, n_past=n_keys - 1)[0, 0])


def test_scores_rising_slowly_weigh_every_block(
    make_activations: Make, scratch: NDArray[np.uint8], assert_near: Near
) -> None:
    n_keys, head_dim = 100, 16
    q, values = np.ones((1, 1, head_dim), np.float32), make_activations(n_keys, 1, head_dim)
    keys = np.repeat(np.linspace(0, 1, n_keys)[:, None, None], head_dim, 2).astype(np.float32)
    y = np.zeros(head_dim, np.float32)
    where = (a.ctypes.data for a in (q, keys, values))
    attention.attend(F32_ID, *where, n_keys, head_dim, 0.25, scratch.ctypes.data, y.ctypes.data)
    assert_near(y, ref.attention(q, keys, values, n_past=n_keys - 1)[0, 0])


@kv_types
@pytest.mark.parametrize("n", [1, 15, 16, 17, 100, 128])
def test_store_row(kv_type: int, n: int, make_activations: Make, before_a_hole: Place) -> None:
    x, to = make_activations(n), before_a_hole(np.zeros(n, DTYPES[kv_type]))
    attention.store_row(kv_type, before_a_hole(x).ctypes.data, n, to.ctypes.data)
    assert np.array_equal(to, x.astype(DTYPES[kv_type]))
