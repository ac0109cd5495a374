"""Rows of a KV cache for the device's tests: their length, and the numbers that they keep."""

from operands import Array

from hotcold.kernels import ref
from hotcold.kernels.formats import kv_block


def whole(kv_type: str, head_dim: int) -> int:
    """A head of whole blocks."""
    return -(-head_dim // kv_block(kv_type)) * kv_block(kv_type)


def rounded(kv_type: str, x: Array) -> Array:
    """The numbers that a cache keeps of x, of three axes."""
    return ref.cache_numbers(ref.cached(kv_type, x), x.shape)
